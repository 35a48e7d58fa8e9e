"""ViT-L/16 on ImageNet-1k without labels: the short recipe of DINOv2 (arXiv:2304.07193).

The settings are those of vitl16_short in DINOv2's code, without registers by default. Deviations:
vit_registers/recipes_dinov2.py. The learning rate follows the root of the batch, the warm-up the length.

Published: 81.6 k-NN, 82.9 linear, about a day on 32 A100 (README of DINOv2's code; without registers).
Measured: not run. By the TPU compiler, with model.use_scan=True and the batch of 2,048: 3.4 GiB of 16 on each
chip of v5e:8x8, 3.6 GiB on v5p:4x4x4 (docs/performance.md).

    vit-registers prepare --name=imagenet2012   # requires the ImageNet archives
    vit-registers train --config=dinov2_vitl16_short:registers=4 --workdir=/shared/run
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from vit_registers import recipes_dinov2
from vit_registers.config import parse_arg, to_config_dict


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: registers, mask, k (0: no summaries), data (a TFDS name | folder), batch, steps, start (the
    folder of a run of this card, after which the stage at 512 px continues), seed."""
    a = parse_arg(
        arg,
        registers=0,
        mask="none",
        k=0,
        data="imagenet2012",
        batch=2048,
        steps=125_000,
        start="",
        seed=0,
    )
    config = recipes_dinov2.dinov2_short(batch=a.batch, steps=a.steps, seed=a.seed)
    return to_config_dict(
        recipes_dinov2.adjusted(config, registers=a.registers, mask=a.mask, k=a.k, data=a.data, start=a.start)
    )


def sweep(arg: str | None = None) -> Iterator[dict[str, object]]:
    """0 to 16 registers."""
    del arg
    for count in (0, 1, 2, 4, 8, 16):
        yield {"model.num_registers": count}
