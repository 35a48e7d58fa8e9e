"""CIFAR-10 with a small ViT, 2.7 M parameters, on a 16 x 16 grid of patches of 2 px.

Paper: on this grid the released mask of arXiv:2601.15506 equals the geometric mask (k = 2 or 4).
Measured: not run to the end yet.

    vit-registers prepare --name=cifar10
    vit-registers train --config=cifar10:registers=4 --workdir=runs/cifar10

To read a folder root/{train,test}/<class>/*.png instead: data=folder, and --config.data.data_dir=root.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from vit_registers.config import (
    Checkpoint,
    ClassificationSettings,
    Config,
    Data,
    Model,
    ObjectiveSettings,
    Optimizer,
    Run,
    parse_arg,
    to_config_dict,
)


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: registers, mask, k (0: no summaries), data (cifar10 | folder), loader, epochs, seed."""
    a = parse_arg(arg, registers=0, mask="none", k=0, data="cifar10", loader="tfdata", epochs=100.0, seed=0)
    config = Config(
        model=Model(
            width=192,
            depth=6,
            num_heads=6,
            patch_size=2,
            image_size=(32, 32),
            num_classes=10,
            num_registers=a.registers,
            summary_factor=a.k or None,
            mask=a.mask,
            positions="sincos2d",
            pooling="gap",
            use_cls=False,
        ),
        data=Data(
            loader=a.loader,
            name=a.data,
            eval_split="test",
            batch_size=512,
            train_ops="random_crop(padding=4) | flip",
            eval_ops="",
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        objective=ObjectiveSettings(
            classification=ClassificationSettings(
                mixup_alpha=0.2,
            ),
        ),
        optimizer=Optimizer(warmup_epochs=5.0),
        run=Run(total_epochs=a.epochs, eval_every_epochs=5.0, seed=a.seed),
        checkpoint=Checkpoint(every_steps=1000),
    )
    return to_config_dict(config)


def sweep(arg: str | None = None) -> Iterator[dict[str, object]]:
    """Registers, and summaries without and with the fractal mask, with three seeds."""
    for seed in range(3):
        for registers in (0, 4, 16):
            yield {"model.num_registers": registers, "run.seed": seed}
        for k in (2, 4):
            for mask in ("none", "fractal"):
                yield {"model.summary_factor": k, "model.mask": mask, "run.seed": seed}
