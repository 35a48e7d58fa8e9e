"""Imagenette, ten classes of ImageNet at 160 px, with a ViT-Ti/16 on 8 x 8 patches of 128 px crops.

Measured: not run yet.

    vit-registers prepare --name=imagenette/160px-v2
    vit-registers train --config=imagenette:registers=4 --workdir=runs/imagenette
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
    """Arguments: variant, registers, mask, k (0: no summaries), data (a TFDS name | folder), epochs, seed."""
    a = parse_arg(
        arg,
        variant="Ti",
        registers=0,
        mask="none",
        k=0,
        data="imagenette/160px-v2",
        epochs=100.0,
        seed=0,
    )
    config = Config(
        model=Model(
            variant=a.variant,
            image_size=(128, 128),
            num_classes=10,
            num_registers=a.registers,
            summary_factor=a.k or None,
            mask=a.mask,
            drop_path=0.1,
        ),
        data=Data(
            name=a.data,
            batch_size=256,
            eval_batch_size=256,
            train_ops="inception_crop(area_min=0.25) | flip",
            eval_ops="resize_small(144) | central_crop",
        ),
        objective=ObjectiveSettings(
            classification=ClassificationSettings(
                mixup_alpha=0.2,
                cutmix_alpha=1.0,
            ),
        ),
        optimizer=Optimizer(warmup_epochs=5.0),
        run=Run(total_epochs=a.epochs, eval_every_epochs=5.0, seed=a.seed),
        checkpoint=Checkpoint(every_steps=500),
    )
    return to_config_dict(config)


def sweep(arg: str | None = None) -> Iterator[dict[str, object]]:
    """Registers, and summaries without and with the fractal mask."""
    for registers in (0, 4):
        yield {"model.num_registers": registers}
    for mask in ("none", "fractal"):
        yield {"model.summary_factor": 2, "model.mask": mask}
