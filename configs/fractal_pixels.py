"""The fractal mask in a generative model: digits pixel by pixel, with positions, summaries or neither.

    vit-registers train --config=fractal_pixels:mask=fractal,k=2,positions=none --workdir=runs/pixels
    vit-registers sweep --config=fractal_pixels --workdir=runs/fractal_pixels
    vit-registers tabulate --config=fractal_pixels --workdir=runs/fractal_pixels

An open question of arXiv:2601.15506: whether summary tokens and the fractal mask help to generate images. A
pixel is a token, and pixels are predicted in any order (docs/text.md). Measured: docs/results.md.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from vit_registers.config import (
    Checkpoint,
    Config,
    Data,
    LanguageModelSettings,
    Model,
    ObjectiveSettings,
    Optimizer,
    Run,
    parse_arg,
    to_config_dict,
)

# Summaries are fixed zeros without positions in arXiv:2601.15506; learned ones differ between each other.
_ZEROS = {"model.summary_factor": 2, "model.summaries": "zeros"}
_LEARNED = {"model.summary_factor": 2, "model.summaries": "learned"}
_FRACTAL = {"model.mask": "fractal"}
ARMS: tuple[dict[str, Any], ...] = (
    {"model.positions": "learned"},
    {"model.positions": "none"},
    {"model.positions": "none"} | _ZEROS | _FRACTAL,
    {"model.positions": "none"} | _LEARNED | _FRACTAL,
    {"model.positions": "learned"} | _LEARNED | _FRACTAL,
    {"model.positions": "learned"} | _LEARNED,
)


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: positions, registers, mask, k (0: no summaries), summaries (learned | zeros), rate (learning
    rate), steps, seed.
    """
    a = parse_arg(
        arg,
        positions="learned",
        registers=0,
        mask="none",
        k=0,
        summaries="learned",
        rate=2e-3,
        steps=800,
        seed=0,
    )
    config = Config(
        model=Model(
            width=64,
            depth=4,
            num_heads=4,
            patch_size=1,
            image_size=(8, 8),
            channels=1,
            pixels="byte",
            num_classes=0,
            use_cls=False,
            pooling="gap",
            use_mask_token=True,
            positions=a.positions,
            num_registers=a.registers,
            mask=a.mask,
            summary_factor=a.k or None,
            summaries=a.summaries,
        ),
        data=Data(
            loader="memory",
            name="digits",
            eval_split="test",
            batch_size=32,
            eval_batch_size=64,
            train_ops="",
            eval_ops="",
            mean=(0.5,),
            std=(0.5,),
        ),
        objective=ObjectiveSettings(
            name="language_model", language_model=LanguageModelSettings(predicts="any_order")
        ),
        optimizer=Optimizer(learning_rate=a.rate, warmup_share=0.1, b2=0.98),
        checkpoint=Checkpoint(every_steps=max(a.steps // 2, 1), keep_last=2),
        run=Run(
            total_steps=a.steps,
            log_every_steps=20,
            eval_every_steps=max(a.steps // 4, 1),
            seed=a.seed,
            use_tensorboard=False,
        ),
    )
    return to_config_dict(config)


def sweep(arg: str | None = None) -> Iterator[dict[str, object]]:
    """Positions, fractal mask, both and neither, with three seeds."""
    del arg
    for seed in range(3):
        for arm in ARMS:
            yield {**arm, "run.seed": seed}


def label(point: dict[str, object], arg: str | None = None) -> dict[str, str]:
    """The columns that name a cell of the table."""
    del arg
    return {
        "positions": str(point["model.positions"]),
        "summaries": str(point["model.summaries"]) if "model.summary_factor" in point else "-",
        "mask": str(point.get("model.mask", "none")),
    }
