"""ViT-S/16 on ImageNet-1k: the plain recipe of arXiv:2205.01580, without RandAugment for now.

Expected: not yet run here. The recipe is not complete, so the published numbers do not apply.

    python -m tools.prepare_data --name=imagenet2012   # needs the ImageNet archives
    python -m vit_registers.train --config=configs/vit_s16_i1k.py:registers=4 --workdir=/shared/run
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from vit_registers.config import Checkpoint, Config, Data, Model, Optimizer, Run, parse_arg, to_config_dict


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: variant, registers, mask, k (0: no summaries), data (a TFDS name | folder), epochs, seed."""
    a = parse_arg(arg, variant="S", registers=0, mask="none", k=0, data="imagenet2012", epochs=90.0, seed=0)
    config = Config(
        model=Model(
            variant=a.variant,
            num_registers=a.registers,
            summary_factor=a.k or None,
            mask=a.mask,
            positions="sincos2d",
            extra_positions="sincos2d" if a.k else "none",
            summaries="zeros" if a.k else "learned",
            use_cls=False,
            pooling="gap",
            use_pre_logits=True,
            activation="gelu_tanh",
            dtype="bfloat16",
        ),
        data=Data(
            name=a.data,
            train_split="train[:99%]" if a.data == "imagenet2012" else "train",
            mixup_alpha=0.2,
        ),
        optimizer=Optimizer(warmup_steps=10_000, mu_dtype="bfloat16"),
        run=Run(total_epochs=a.epochs, eval_every_epochs=5.0, seed=a.seed),
        checkpoint=Checkpoint(every_steps=2500),
    )
    return to_config_dict(config)


def sweep() -> Iterator[dict[str, object]]:
    """The extra tokens of arXiv:2601.15506: 0, 4, 9, 17 and 59, as registers or as summaries."""
    for count in (0, 4, 9, 17, 59):
        yield {"model.num_registers": count}
    for k in (5, 4, 3, 2):
        for mask in ("none", "fractal", "fractal_released"):
            yield {"model.summary_factor": k, "model.mask": mask}
