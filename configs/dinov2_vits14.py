"""ViT-S/14 on ImageNet-1k without labels: the short recipe of DINOv2 (arXiv:2304.07193) for a small model.

The settings are those of dinov2_vitl16_short with patches of 14 px, local crops of 98 px and a drop path of
0.1. That recipe was not published for a ViT-S, so no published number is a target: the released ViT-S/14 is
distilled from a ViT-g/14. start=RUN is the stage at 518 px after the run in folder RUN.

Measured: not run, nor compiled for TPUs; configs/dinov2_vitl16_short.py was.

    vit-registers train --config=dinov2_vits14:registers=4 --workdir=/shared/run
"""

import dataclasses
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
        data="imagenet2012",
        batch=1024,
        steps=125_000,
        start="",
        seed=0,
    )
    config = recipes_dinov2.dinov2_short(batch=a.batch, steps=a.steps, seed=a.seed)
    objective = config.objective
    own = dataclasses.replace(objective.self_distillation, local_size=98)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, variant="S", patch_size=14, drop_path=0.1),
        objective=dataclasses.replace(objective, self_distillation=own),
    )
    return to_config_dict(
        recipes_dinov2.adjusted(config, registers=a.registers, mask=a.mask, k=a.k, data=a.data, start=a.start)
    )


def sweep(arg: str | None = None) -> Iterator[dict[str, object]]:
    """0 to 16 registers."""
    del arg
    for count in (0, 1, 2, 4, 8, 16):
        yield {"model.num_registers": count}
