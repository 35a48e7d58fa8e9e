"""DeiT-III Small on ImageNet-1k with 0, 2, 4, 8 and 16 registers: recipe B.

Paper: Registers in Small Vision Transformers: A Reproducibility Study of Vision Transformers Need Registers,
section 4.1: one run each; 66 hours per model on 4 A100.
Measured: not run yet.

    vit-registers prepare --name=imagenet2012   # requires the ImageNet archives
    vit-registers sweep --config=registers_table --workdir=/shared/registers
    vit-registers tabulate --config=registers_table --workdir=/shared/registers
"""

import dataclasses
from collections.abc import Iterator

from ml_collections import ConfigDict

from vit_registers import recipes
from vit_registers.config import parse_arg, to_config_dict
from vit_registers.errors import ConfigError

TOP1 = {0: 81.05, 2: 80.96, 4: 80.81, 8: 81.04, 16: 81.07}
SOURCE = "Registers in Small Vision Transformers, section 4.1"


def _parse(arg: str | None):
    return parse_arg(
        arg,
        registers=0,
        mask="none",
        k=0,
        ranks=4,
        seeds=1,
        data="imagenet2012",
        epochs=800.0,
        seed=0,
    )


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: registers, mask, k (0: no summaries), ranks (processes with 256 images each: 4, or 8 as in
    DeiT-III), seeds (their number in the sweep), data (a TFDS name | folder), epochs, seed."""
    a = _parse(arg)
    if a.ranks < 1:
        raise ConfigError(f"config argument 'ranks'={a.ranks}: must be >= 1")
    config = recipes.recipe_b_deit3(ranks=a.ranks, epochs=a.epochs, seed=a.seed)
    model = dataclasses.replace(
        config.model, num_registers=a.registers, summary_factor=a.k or None, mask=a.mask
    )
    data = dataclasses.replace(config.data, name=a.data)
    return to_config_dict(dataclasses.replace(config, model=model, data=data))


def sweep(arg: str | None = None) -> Iterator[dict[str, object]]:
    """All numbers of registers of the study, one seed after the other."""
    for seed in range(_parse(arg).seeds):
        for count in TOP1:
            yield {"model.num_registers": count, "run.seed": seed}


def label(point: dict[str, object], arg: str | None = None) -> dict[str, str]:
    """The columns that name a cell of the table."""
    del arg
    return {"registers": str(point["model.num_registers"])}


def published(arg: str | None = None) -> list[tuple[dict[str, str], float, str]]:
    """The results of the study on ImageNet-1k after 800 epochs."""
    if _parse(arg).data != "imagenet2012":
        return []
    return [({"registers": str(count)}, value, SOURCE) for count, value in TOP1.items()]
