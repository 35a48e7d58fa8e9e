"""Does a correct fractal mask help? A small ViT on a fifth of CIFAR-10, with the paper's 14 x 14 patches.

    vit-registers sweep --config=fractal_cifar10 --workdir=runs/fractal_cifar10
    vit-registers tabulate --config=fractal_cifar10 --workdir=runs/fractal_cifar10

On 14 x 14 patches the mask of the released code of arXiv:2601.15506 is not the geometric one. The grid
compares both, three other masks of as many tokens, registers, and summaries without a mask, each with and
without a position table. To read a folder root/{train,test}/<class>/*.png instead: data=folder, and
--config.data.data_dir=root. Measured: docs/results.md.
"""

from collections.abc import Iterator
from typing import Any

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

POSITIONS = ("sincos2d", "none")
TOKENS = {17: 3, 59: 2}  # extra tokens, and the factor k that gives as many summaries
MASKS = {
    "none": "summaries",
    "fractal": "summaries, fractal mask",
    "fractal_released": "summaries, released mask",
    "window(radius=1)": "summaries, window of 3 x 3 patches",
    "one_way": "summaries, one-way mask",
    "shifted(offset=1)": "summaries, fractal mask shifted by 1 patch",
}
MASKS_OF = {17: tuple(MASKS), 59: ("none", "fractal", "fractal_released")}


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: positions, registers, mask, k (0: no summaries), data (cifar10 | folder), rate (learning
    rate), steps, seed.
    """
    a = parse_arg(
        arg,
        positions="sincos2d",
        registers=0,
        mask="none",
        k=0,
        data="cifar10",
        rate=2e-3,
        steps=750,
        seed=0,
    )
    model = Model(
        width=64,
        depth=4,
        num_heads=4,
        patch_size=2,
        image_size=(28, 28),
        num_classes=10,
        use_cls=False,
        pooling="gap",
        positions=a.positions,
        num_registers=a.registers,
        **(_summaries(a.positions, a.mask, a.k) if a.k else {}),
    )
    config = Config(
        model=model,
        data=Data(
            loader="memory",
            name=a.data,
            train_split="train[::5]",
            eval_split="test",
            batch_size=64,
            eval_batch_size=100,
            train_ops="random_crop(padding=4) | flip",
            eval_ops="central_crop",
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        objective=ObjectiveSettings(classification=ClassificationSettings(mixup_alpha=0.2)),
        optimizer=Optimizer(learning_rate=a.rate, warmup_share=0.1),
        checkpoint=Checkpoint(every_steps=max(a.steps // 4, 1), keep_last=2),
        run=Run(
            total_steps=a.steps,
            log_every_steps=50,
            eval_every_steps=a.steps,
            seed=a.seed,
            use_tensorboard=False,
        ),
    )
    return to_config_dict(config)


def _summaries(positions: str, mask: str, k: int) -> dict[str, Any]:
    """Summaries as in the paper's code: zeros, with positions of their regions where patches have some."""
    extra_positions = "sincos2d" if positions == "sincos2d" else "none"
    return {"summary_factor": k, "mask": mask, "summaries": "zeros", "extra_positions": extra_positions}


def _cells(count: int) -> Iterator[dict[str, object]]:
    for positions in POSITIONS:
        base: dict[str, object] = {"model.positions": positions}
        if count == min(TOKENS):
            yield base
            yield {**base, "model.num_registers": count}
        for mask in MASKS_OF[count]:
            own = _summaries(positions, mask, TOKENS[count])
            yield {**base, **{f"model.{name}": value for name, value in own.items()}}


def sweep(arg: str | None = None) -> Iterator[dict[str, object]]:
    """All cells with 17 tokens, then those with 59, one of three seeds after the other."""
    del arg
    for count in TOKENS:
        for seed in range(3):
            for cell in _cells(count):
                yield {**cell, "run.seed": seed}


def comparisons(arg: str | None = None) -> list[tuple[dict[str, str], dict[str, str]]]:
    """The pairs of cells that are compared by seed: what extra tokens add, then what a mask does to them."""
    del arg
    pairs = []
    for positions in POSITIONS:
        plain = _labels(positions, 0, "-")
        for count, masks in MASKS_OF.items():
            summaries, fractal = (_labels(positions, count, MASKS[name]) for name in ("none", "fractal"))
            if count == min(TOKENS):
                pairs.append((_labels(positions, count, "registers"), plain))
            pairs += [(summaries, plain), (fractal, plain), (fractal, summaries)]
            others = (
                _labels(positions, count, MASKS[name]) for name in masks if name not in ("none", "fractal")
            )
            pairs += [(fractal, other) for other in others]
    return pairs


def _labels(positions: str, count: int, which: str) -> dict[str, str]:
    return {"positions": positions, "extra tokens": str(count), "which are": which}


def label(point: dict[str, object], arg: str | None = None) -> dict[str, str]:
    """The columns that name a cell of the table."""
    del arg
    registers, k = point.get("model.num_registers", 0), point.get("model.summary_factor")
    count = next((count for count, factor in TOKENS.items() if factor == k), registers)
    which = MASKS[str(point["model.mask"])] if k else ("registers" if registers else "-")
    return _labels(str(point["model.positions"]), int(str(count)), which)
