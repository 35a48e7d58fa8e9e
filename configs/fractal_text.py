"""The fractal mask on text: a language model of bytes, with positions, summaries or neither.

    vit-registers train --config=fractal_text:arm=fractal --workdir=runs/fractal
    vit-registers sweep --config=fractal_text --workdir=runs/fractal_text
    vit-registers tabulate --config=fractal_text --workdir=runs/fractal_text

An open question of arXiv:2601.15506: whether summary tokens and the fractal mask help a language model. The
texts are the docstrings and help topics of Python (docs/text.md), so nothing is downloaded. Measured:
docs/results.md.
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

POSITIONS = {"sincos1d": "sinusoids", "none": "none"}
# Summaries are fixed zeros without positions in arXiv:2601.15506; learned ones differ between each other.
_ZEROS = {"model.summary_factor": 4, "model.summaries": "zeros"}
_LEARNED = {"model.summary_factor": 4, "model.summaries": "learned"}
_FRACTAL = {"model.mask": "fractal_causal"}
ARMS: tuple[dict[str, Any], ...] = (
    {"model.positions": "sincos1d"},
    {"model.positions": "none"},
    {"model.positions": "none"} | _ZEROS | _FRACTAL,
    {"model.positions": "none"} | _LEARNED | _FRACTAL,
    {"model.positions": "sincos1d"} | _LEARNED | _FRACTAL,
    {"model.positions": "sincos1d"} | _LEARNED,
)


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: predicts (next | hidden, with the masks none and fractal), positions, registers, mask, k (0:
    no summaries), summaries (learned | zeros), length (bytes of a sequence), rate (learning rate), steps,
    seed.
    """
    a = parse_arg(
        arg,
        predicts="next",
        positions="sincos1d",
        registers=0,
        mask="causal",
        k=0,
        summaries="learned",
        length=128,
        rate=3e-3,
        steps=800,
        seed=0,
    )
    config = Config(
        model=Model(
            width=128,
            depth=6,
            num_heads=4,
            patch_size=1,
            image_size=(1, a.length),
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
            name="python_docs",
            image_size=(1, a.length),
            batch_size=8,
            eval_batch_size=32,
            train_ops="",
            eval_ops="",
            mean=(0.5,),
            std=(0.5,),
        ),
        objective=ObjectiveSettings(
            name="language_model", language_model=LanguageModelSettings(predicts=a.predicts)
        ),
        optimizer=Optimizer(learning_rate=a.rate, warmup_share=0.1, b2=0.98),
        checkpoint=Checkpoint(every_steps=max(a.steps // 2, 1), keep_last=2),
        run=Run(
            total_steps=a.steps,
            log_every_steps=10,
            eval_every_steps=max(a.steps // 2, 1),
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
        "positions": POSITIONS[str(point["model.positions"])],
        "summaries": str(point["model.summaries"]) if "model.summary_factor" in point else "-",
        "mask": str(point.get("model.mask", "causal")),
    }
