"""DeiT-III Base on ImageNet-21k with registers, and its fine-tuning on ImageNet-1k: recipe C.

arXiv:2309.16588 trains DeiT-III-B on "ImageNet-22k" by the official recipe, with 0 and with 4 registers. The
settings are those of README_revenge.md in DeiT's code (facebookresearch/deit): LAMB, a batch of 2,048 on 32
GPUs, 240 epochs at a rate of 1e-3, then 50 epochs on ImageNet-1k at 3e-4. Not confirmed: the crop of the
evaluation (here the whole short side, as in recipe B; the default of that code is 0.875 of it), and what
arXiv:2309.16588 changed, if anything. A reimplementation in JAX has a rate of 3e-3.

TFDS has no ImageNet-21k. Download it from image-net.org, unpack it to root/train/<class>/*, and prepare it
under the name imagenet21k, or train on the folder with data=folder. The names of the folders, such as
n01440764, are the classes. The release of 2011 has 21,841 of them, that of 2021 has 19,167; classes= must be
their number. There is no official validation split: 0.2 % of the images of train, drawn at random, are held
out and evaluated. An epoch, over the others, is 0.2 % shorter than the published one.

Published: 85.7 top-1 on ImageNet-1k after both stages, without registers (README_revenge.md); linear 84.7
without and with 4 registers (arXiv:2309.16588).
Measured: not run. By the TPU compiler, with model.use_scan=True: 14.24 GiB of 95 on each of 16 chips of v5p,
14.48 with 4 registers.

    vit-registers prepare --name=imagenet21k --from_folder=root
    vit-registers train --config=deit3_b16_i21k:registers=4 --workdir=/shared/21k
    vit-registers train --config=deit3_b16_i21k:registers=4,stage=1k,path=/shared/21k --workdir=/shared/1k
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from vit_registers import recipes
from vit_registers.config import Config, lookup, parse_arg, to_config_dict
from vit_registers.data.sources.parts import held_out, kept
from vit_registers.errors import ConfigError

HELD_OUT = 0.002  # of the images of train


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: stage (21k | 1k), path (the run of stage 21k, for stage 1k), registers, mask, k (0: no
    summaries), classes (0: those of the stage, 21,841 or 1,000), data (a TFDS name | folder; imagenet21k or
    imagenet2012), ranks (processes with 64 images each), epochs (0: 240 or 50), seed."""
    a = parse_arg(
        arg,
        stage="21k",
        path="",
        registers=0,
        mask="none",
        k=0,
        classes=0,
        data="",
        ranks=32,
        epochs=0.0,
        seed=0,
    )
    if a.ranks < 1:
        raise ConfigError(f"config argument 'ranks'={a.ranks}: must be >= 1")
    config, num_classes = lookup({"21k": _first, "1k": _second}, a.stage, "config argument 'stage'")(a)
    model = dataclasses.replace(
        config.model,
        num_classes=a.classes or num_classes,
        num_registers=a.registers,
        summary_factor=a.k or None,
        mask=a.mask,
    )
    return to_config_dict(dataclasses.replace(config, model=model))


def _first(a: Any) -> tuple[Config, int]:
    if a.path:
        raise ConfigError("config argument 'path' is for stage=1k: add stage=1k, or leave it out")
    config = recipes.recipe_c_deit3_21k(ranks=a.ranks, epochs=a.epochs or 240.0, seed=a.seed)
    train, test = (part("train", HELD_OUT, 0) for part in (kept, held_out))
    data = dataclasses.replace(config.data, name=a.data or "imagenet21k", train_split=train, eval_split=test)
    return dataclasses.replace(config, data=data), 21_841


def _second(a: Any) -> tuple[Config, int]:
    if not a.path:
        raise ConfigError("config argument 'path' is missing: stage=1k requires the run folder of stage 21k")
    config = recipes.recipe_c_deit3_1k(path=a.path, ranks=a.ranks, epochs=a.epochs or 50.0, seed=a.seed)
    data = dataclasses.replace(config.data, name=a.data or "imagenet2012")
    return dataclasses.replace(config, data=data), 1000


def sweep(arg: str | None = None) -> Iterator[dict[str, object]]:
    """0 and 4 registers, as in arXiv:2309.16588."""
    del arg
    for count in (0, 4):
        yield {"model.num_registers": count}
