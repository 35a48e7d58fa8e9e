"""The grid of arXiv:2601.15506, also at small scales: positions x number of extra tokens x their kind.

Paper: top-1 of 72.93 without positions and 77.68 with sincos2d; gains of 0.15 to 0.2 with 4 to 59 extra
tokens. The paper does not say to which cells the gains belong, so the table prints no published numbers.
Measured: docs/results.md.

    vit-registers sweep --config=fractal_table:scale=digits --workdir=runs/digits
    vit-registers tabulate --config=fractal_table:scale=digits --workdir=runs/digits

positions=rope2d gives rotary positions, which the paper does not have. With rotary=True the sweep has their
cells.

Scales:
  imagenet  ViT-S/16 at 224 px, the recipe of the paper's code; 5.7 h per run on 8 A100 (its README)
  cifar28   CIFAR-10, 28 px of 32 and patches of 2 px: the paper's 14 x 14 grid, with its 4, 9, 17 and 59
            tokens, where the released mask differs from the geometric one
  cifar32   CIFAR-10 at 32 px: 16 x 16 patches, 17 and 85 tokens, where both masks are equal
  digits    handwritten digits, 4 x 4 patches, 5 tokens, where both masks are equal; adds three alternative
            masks; runs on a laptop
"""

import dataclasses
from collections.abc import Iterator

from ml_collections import ConfigDict

from vit_registers import recipes
from vit_registers.config import (
    Checkpoint,
    ClassificationSettings,
    Config,
    Data,
    Model,
    ObjectiveSettings,
    Optimizer,
    Run,
    lookup,
    parse_arg,
    to_config_dict,
)

POSITIONS = ("sincos2d", "learned", "alibi2d", "none")
REGISTERS, SUMMARIES = "registers", "summaries"
MASKS = {
    "fractal": "summaries, fractal mask",
    "fractal_released": "summaries, released mask",
    "shifted(offset=1)": "summaries, fractal mask shifted by 1 patch",
    "one_way": "summaries, one-way mask",
    "window(radius=1)": "summaries, window of 3 x 3 patches",
}
# For each scale: {extra tokens: factor k with that number of summaries}, and the distinct masks.
TOKENS = {
    "imagenet": {4: 7, 9: 4, 17: 3, 59: 2},
    "cifar28": {4: 7, 9: 4, 17: 3, 59: 2},
    "cifar32": {17: 4, 85: 2},
    "digits": {5: 2},
}
BOTH, ONE = ("fractal", "fractal_released"), ("fractal",)
ALTERNATIVES = ("shifted(offset=1)", "one_way", "window(radius=1)")
MASKS_OF = {"imagenet": BOTH, "cifar28": BOTH, "cifar32": ONE, "digits": ONE + ALTERNATIVES}


def _cifar(size: int, epochs: float) -> Config:
    """A ViT of 2.7 M parameters on CIFAR-10 in memory; tuned only on the cell without extra tokens."""
    return Config(
        model=Model(
            width=192,
            depth=6,
            num_heads=6,
            patch_size=2,
            image_size=(size, size),
            num_classes=10,
            use_cls=False,
            pooling="gap",
            dtype="bfloat16",
        ),
        data=Data(
            loader="memory",
            name="cifar10",
            eval_split="test",
            batch_size=512,
            eval_batch_size=2000,
            train_ops="random_crop(padding=4) | flip",
            eval_ops="" if size == 32 else "central_crop",
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        objective=ObjectiveSettings(
            classification=ClassificationSettings(
                mixup_alpha=0.2,
            ),
        ),
        optimizer=Optimizer(learning_rate=1e-3, warmup_epochs=5.0),
        run=Run(total_epochs=epochs, eval_every_epochs=10.0, use_tensorboard=False),
        checkpoint=Checkpoint(every_steps=1000),
    )


def _digits(steps: int) -> Config:
    """A ViT of 0.15 M parameters on 8 x 8 px; tuned only on the cell without extra tokens."""
    return Config(
        model=Model(
            width=64,
            depth=3,
            num_heads=4,
            patch_size=2,
            image_size=(8, 8),
            channels=1,
            num_classes=10,
            use_cls=False,
            pooling="gap",
        ),
        data=Data(
            loader="memory",
            name="digits",
            eval_split="test",
            batch_size=64,
            eval_batch_size=360,
            train_ops="random_crop(padding=1)",
            eval_ops="",
            mean=(0.5,),
            std=(0.5,),
        ),
        objective=ObjectiveSettings(
            classification=ClassificationSettings(
                mixup_alpha=0.2,
            ),
        ),
        optimizer=Optimizer(learning_rate=2e-3, warmup_steps=min(100, steps // 5)),
        run=Run(
            total_steps=steps, log_every_steps=100, eval_every_steps=max(steps // 2, 1), use_tensorboard=False
        ),
        checkpoint=Checkpoint(every_steps=max(steps // 2, 1)),
    )


def _parse(arg: str | None):
    a = parse_arg(
        arg,
        scale="imagenet",
        registers=0,
        mask="none",
        k=0,
        positions="sincos2d",
        rotary=False,
        seeds=3,
        epochs=90.0,
        steps=1000,
        data="",
        seed=0,
    )
    lookup(TOKENS, a.scale, "config argument 'scale'")
    return a


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: scale, registers, mask, k (0: no summaries), positions, rotary (in the sweep), seeds (their
    number in the sweep), epochs (steps with scale=digits), data (another TFDS name, or folder), seed."""
    a = _parse(arg)
    if a.scale == "imagenet":
        config = recipes.recipe_a_fractal(epochs=a.epochs)
    elif a.scale == "digits":
        config = _digits(a.steps)
    else:
        config = _cifar(28 if a.scale == "cifar28" else 32, a.epochs)
    model = dataclasses.replace(config.model, num_registers=a.registers, positions=a.positions)
    if a.k:
        model = dataclasses.replace(model, summary_factor=a.k, mask=a.mask, **_contents(a.positions))
    data = dataclasses.replace(config.data, name=a.data) if a.data else config.data
    run = dataclasses.replace(config.run, seed=a.seed)
    return to_config_dict(dataclasses.replace(config, model=model, data=data, run=run))


def _contents(positions: str) -> dict[str, str]:
    """The settings of summaries as in the paper's code: sincos2d tables, learned vectors, or zeros."""
    if positions == "learned":
        return {"summaries": "learned", "extra_positions": "none"}
    return {"summaries": "zeros", "extra_positions": "sincos2d" if positions == "sincos2d" else "none"}


def _cells(arg: str | None) -> Iterator[dict[str, object]]:
    a = _parse(arg)
    scale = a.scale
    for positions in (*POSITIONS, *["rope2d"] * a.rotary):
        base = {"model.positions": positions}
        yield base
        for count, k in TOKENS[scale].items():
            yield {**base, "model.num_registers": count}
            contents = {f"model.{name}": value for name, value in _contents(positions).items()}
            for mask in ("none", *MASKS_OF[scale]):
                yield {**base, "model.summary_factor": k, "model.mask": mask, **contents}


def sweep(arg: str | None = None) -> Iterator[dict[str, object]]:
    """The grid, one seed after the other, so that a part of the runs gives a complete table."""
    for seed in range(_parse(arg).seeds):
        for cell in _cells(arg):
            yield {**cell, "run.seed": seed}


def label(point: dict[str, object], arg: str | None = None) -> dict[str, str]:
    """The columns that name a cell of the table."""
    registers, k = point.get("model.num_registers", 0), point.get("model.summary_factor")
    mask = str(point.get("model.mask", "none"))
    count = next((n for n, factor in TOKENS[_parse(arg).scale].items() if factor == k), registers)
    return {
        "positions": str(point["model.positions"]),
        "extra tokens": str(count),
        "which are": MASKS.get(mask, SUMMARIES) if k else (REGISTERS if registers else "-"),
    }
