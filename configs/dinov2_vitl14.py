"""ViT-L/14 on ImageNet-22k without labels, with registers: arXiv:2309.16588, with DINOv2's long recipe.

The settings are those of vitl14 in DINOv2's code. Deviations: vit_registers/recipes_dinov2.py. registers=0 is
the model without registers. The data are a folder root/{train,val}/<class>/*, from which labels are used for
k-NN only; data=imagenet2012 trains on ImageNet-1k. start=RUN is the stage after the run in folder RUN: 10,000
steps at 518 px, with all schedules compressed.

Published: k-NN 82.0, linear 84.5 on ImageNet-1k without registers, 3.3 days on 96 A100 (README of DINOv2's
code); linear 84.3 without and 84.8 with 4 registers (arXiv:2309.16588).
Measured: not run, nor compiled for TPUs; configs/dinov2_vitl16_short.py was.

    vit-registers train --config=dinov2_vitl14 --config.data.data_dir=root --workdir=/shared/run
    vit-registers train --config=dinov2_vitl14:start=/shared/run,batch=1024 --workdir=/shared/518 \\
        --config.data.data_dir=root
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from vit_registers import recipes_dinov2
from vit_registers.config import parse_arg, to_config_dict


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: registers, mask, k (0: no summaries), data (a TFDS name | folder), batch, steps, start (the
    folder of a run of this card, after which the stage at 518 px continues), seed."""
    a = parse_arg(
        arg,
        registers=4,
        mask="none",
        k=0,
        data="folder",
        batch=3072,
        steps=625_000,
        start="",
        seed=0,
    )
    config = recipes_dinov2.dinov2_long(batch=a.batch, steps=a.steps, seed=a.seed)
    return to_config_dict(
        recipes_dinov2.adjusted(config, registers=a.registers, mask=a.mask, k=a.k, data=a.data, start=a.start)
    )


def sweep(arg: str | None = None) -> Iterator[dict[str, object]]:
    """0 and 4 registers, as in arXiv:2309.16588, and the numbers between and beyond."""
    del arg
    for count in (0, 1, 2, 4, 8, 16):
        yield {"model.num_registers": count}
