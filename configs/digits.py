"""Handwritten digits of 8 x 8 px, which are part of scikit-learn: the demonstration.

Measured: more than 97 % top-1 (docs/configs.md), in about a minute and a half on 2 CPU cores.

    vit-registers train --config=digits:registers=4 --workdir=runs/digits
    vit-registers train --config=digits:mask=fractal,k=2 --workdir=runs/fractal
    vit-registers sweep --config=digits:grid=integration --workdir=runs/integration
"""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace

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
    lookup,
    parse_arg,
    to_config_dict,
)

# What forces cls to be made of patches (arXiv:2505.05892, section 5), by the name in the table.
INTEGRATION: dict[str, dict[str, object]] = {
    "baseline": {},
    "cls in the last block only": {"model.cls_blocks": 1},
    "no skip for cls": {"model.has_cls_skip": False},
    "neighbour loss, weight 0.01": {"objective.classification.neighbour_weight": 0.01},
    "neighbour loss, weight 0.1": {"objective.classification.neighbour_weight": 0.1},
}

SIZES = ({"model.width": 64, "model.depth": 3}, {"model.width": 96, "model.depth": 4})
GRIDS: dict[str, list[dict[str, object]]] = {
    "registers": [
        *({"model.num_registers": number} for number in (0, 1, 4, 8)),
        *({"model.summary_factor": 2, "model.mask": mask} for mask in ("none", "fractal")),
    ],
    "integration": [
        settings | {"model.num_registers": number} for number in (0, 4) for settings in INTEGRATION.values()
    ],
    "sizes": [size | {"model.num_registers": number} for size in SIZES for number in (0, 1, 4, 8, 16)],
}


def _parse(arg: str | None) -> SimpleNamespace:
    a = parse_arg(arg, registers=0, mask="none", k=0, loader="memory", steps=2000, seed=0, grid="registers")
    lookup(GRIDS, a.grid, "grid")
    return a


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: registers, mask, k (0: no summaries), loader (memory | tfdata), steps, seed, grid of the
    sweep (registers | integration | sizes)."""
    a = _parse(arg)
    config = Config(
        model=Model(
            width=64,
            depth=3,
            num_heads=4,
            patch_size=2,
            image_size=(8, 8),
            channels=1,
            num_classes=10,
            num_registers=a.registers,
            summary_factor=a.k or None,
            mask=a.mask,
        ),
        data=Data(
            loader=a.loader,
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
        optimizer=Optimizer(learning_rate=2e-3, warmup_steps=min(100, a.steps // 5)),
        checkpoint=Checkpoint(every_steps=500),
        run=Run(
            total_steps=a.steps,
            log_every_steps=10,
            eval_every_steps=500,
            seed=a.seed,
            use_tensorboard=False,
        ),
    )
    return to_config_dict(config)


def sweep(arg: str | None = None) -> Iterator[dict[str, object]]:
    """Registers, and summaries without and with the fractal mask; or models whose cls is made of patches,
    with 0 and 4 registers; or two sizes, with 0 to 16 registers. Three seeds each."""
    for seed in range(3):
        for cell in GRIDS[_parse(arg).grid]:
            yield cell | {"run.seed": seed}


def label(point: Mapping[str, object], arg: str | None) -> dict[str, str]:
    """The columns of a cell in the table: the model and its registers; or the settings."""
    grid = _parse(arg).grid
    if grid == "sizes":
        size = f"{point['model.width']} x {point['model.depth']}"
        return {"width x depth": size, "registers": str(point["model.num_registers"])}
    if grid == "registers":
        return {
            name.removeprefix("model."): str(value) for name, value in point.items() if name != "run.seed"
        }
    own = {key: value for key, value in point.items() if key not in ("run.seed", "model.num_registers")}
    name = next(name for name, settings in INTEGRATION.items() if settings == own)
    return {"model": name, "registers": str(point["model.num_registers"])}
