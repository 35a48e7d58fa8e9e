"""ViT-S/16 on ImageNet-1k: the plain recipe of arXiv:2205.01580.

recipe=big_vision is that of big_vision, recipe=fractal that of the code of arXiv:2601.15506.

Paper: 76.5 top-1 after 90 epochs with recipe=big_vision, according to a comment in big_vision's config file.
Measured: not run yet.

    vit-registers prepare --name=imagenet2012   # requires the ImageNet archives
    vit-registers train --config=vit_s16_i1k:registers=4 --workdir=/shared/run
"""

import dataclasses
from collections.abc import Iterator

from ml_collections import ConfigDict

from vit_registers import recipes
from vit_registers.config import lookup, parse_arg, to_config_dict

RECIPES = {"big_vision": recipes.recipe_a_big_vision, "fractal": recipes.recipe_a_fractal}


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: recipe (big_vision | fractal), variant, registers, mask, k (0: no summaries), data (a TFDS
    name | folder), epochs (90, 150 or 300 in the papers), schedule_free, seed."""
    a = parse_arg(
        arg,
        recipe="big_vision",
        variant="S",
        registers=0,
        mask="none",
        k=0,
        data="imagenet2012",
        epochs=90.0,
        schedule_free=False,
        seed=0,
    )
    config = lookup(RECIPES, a.recipe, "config argument 'recipe'")(epochs=a.epochs, seed=a.seed)
    model = dataclasses.replace(
        config.model,
        variant=a.variant,
        num_registers=a.registers,
        summary_factor=a.k or None,
        mask=a.mask,
        extra_positions="sincos2d" if a.k else "none",
        summaries="zeros" if a.k else "learned",
    )
    data, optimizer = config.data, config.optimizer
    if a.data != "imagenet2012":
        data = dataclasses.replace(data, name=a.data, train_split="train", also_eval=())
    if a.schedule_free:
        optimizer = dataclasses.replace(
            optimizer, name="schedule_free_adamw", schedule="constant", mu_dtype="float32"
        )
    return to_config_dict(dataclasses.replace(config, model=model, data=data, optimizer=optimizer))


def sweep(arg: str | None = None) -> Iterator[dict[str, object]]:
    """Registers, with both optimisers. The grid of arXiv:2601.15506 is in fractal_table.py."""
    del arg
    for count in (0, 4, 16):
        yield {"model.num_registers": count}
        yield {
            "model.num_registers": count,
            "optimizer.name": "schedule_free_adamw",
            "optimizer.schedule": "constant",
            "optimizer.mu_dtype": "float32",
        }
