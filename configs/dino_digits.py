"""Self-distillation (the losses of DINOv2) on handwritten digits: a smoke test of minutes on 2 CPU cores.

    python -m vit_registers.train --config=configs/dino_digits.py:registers=4 --workdir=runs/dino

Raw pixels reach a 20-NN accuracy of 98 % on these centred digits, so it says whether training works, and
nothing about the quality of a recipe.
"""

from collections.abc import Iterator
from types import SimpleNamespace

from ml_collections import ConfigDict

from vit_registers.config import (
    Checkpoint,
    Config,
    Data,
    Model,
    ObjectiveSettings,
    Optimizer,
    Run,
    SelfDistillationSettings,
    lookup,
    parse_arg,
    to_config_dict,
)

SIZES = ({"model.width": 64, "model.depth": 3}, {"model.width": 96, "model.depth": 4})
GRIDS: dict[str, list[dict[str, object]]] = {
    "registers": [{"model.num_registers": number} for number in (0, 4)],
    "sizes": [size | {"model.num_registers": number} for size in SIZES for number in (0, 1, 4, 8, 16)],
}


def _parse(arg: str | None) -> SimpleNamespace:
    a = parse_arg(arg, registers=4, mask="none", k=0, steps=1200, seed=0, grid="registers")
    lookup(GRIDS, a.grid, "grid")
    return a


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: registers, mask, k (0: no summaries), steps, seed, grid of the sweep (registers | sizes)."""
    a = _parse(arg)
    config = Config(
        model=Model(
            width=64,
            depth=3,
            num_heads=4,
            patch_size=4,
            image_size=(16, 16),
            channels=1,
            num_classes=0,
            num_registers=a.registers,
            summary_factor=a.k or None,
            mask=a.mask,
            use_mask_token=True,
            positions="learned",
            position_resampling="bicubic_aa",
            layer_scale_init=1.0,  # with 1e-5, blocks would stay the identity for the whole run
            init="dinov2",
            pooling="cls",
        ),
        data=Data(
            loader="memory",
            name="digits",
            eval_split="test",
            batch_size=64,
            eval_batch_size=360,
            train_ops="",
            eval_ops="resize",
            mean=(0.5,),
            std=(0.5,),
        ),
        objective=ObjectiveSettings(name="self_distillation", self_distillation=_losses()),
        optimizer=_optimizer(),
        # All are kept, for figures over training.
        checkpoint=Checkpoint(every_steps=max(a.steps // 8, 1), keep_last=8),
        run=Run(
            total_steps=a.steps,
            log_every_steps=10,
            eval_every_steps=max(a.steps // 4, 1),
            eval_at_start=True,
            seed=a.seed,
            use_tensorboard=False,
        ),
    )
    return to_config_dict(config)


def _losses() -> SelfDistillationSettings:
    crop = "resize(16) | random_resized_crop({}, {}) | jitter(0.4, 0.4, 0, 0, p=0.8)"
    return SelfDistillationSettings(
        num_locals=3,
        local_size=8,
        global_ops=(crop.format(0.5, 1.0), crop.format(0.5, 1.0)),
        local_ops=crop.format(0.3, 0.7),  # smaller parts of a digit are alike for all classes
        mask_min_patches=1,
        num_prototypes=64,  # about half of the rows of a batch
        head_hidden=128,
        head_bottleneck=32,
        has_ibot_head=True,
        ibot_prototypes=64,
        ibot_bottleneck=32,
        targets="sinkhorn",
        # With 0.04 and a momentum of 0.99, targets stay nearly uniform for a thousand steps.
        temperatures=(0.03, 0.03),
        momentum=(0.97, 1.0),
    )


def _optimizer() -> Optimizer:
    """All lengths are shares of the run, so that schedules follow run.total_steps."""
    return Optimizer(
        schedule="cosine_from_peak",
        learning_rate=2e-3,
        min_learning_rate=1e-6,
        warmup_share=0.1,
        weight_decay=0.01,
        weight_decay_end=0.05,
        decayed="all_but_norms",
        grad_clip_norm=3.0,
        grad_clip_per="module",
        delayed=("*/last_layer/*",),
        delay_share=0.01,
    )


def sweep(arg: str | None = None) -> Iterator[dict[str, object]]:
    """0 and 4 registers; or two sizes, with 0 to 16 registers. Three seeds each."""
    for seed in range(3):
        for cell in GRIDS[_parse(arg).grid]:
            yield cell | {"run.seed": seed}
