"""Images and texts (CLIP's loss) on handwritten digits, with texts of their classes: minutes on 2 CPU cores.

    vit-registers train --config=clip_digits --workdir=runs/clip
    vit-registers evaluate --checkpoint=runs/clip --task=zero_shot

A batch consists of groups of ten images of different classes, and the pairs of a group are compared: two
images of one class would have texts that say the same. It sees as many images as the card digits.

grid=positions is a sweep of learned positions and 2-D ALiBi; with objective=classification it trains the same
image tower with a classifier, by the same optimiser on the same number of images (docs/results.md):

    vit-registers sweep --config=clip_digits:grid=positions --workdir=runs/texts
    vit-registers sweep --config=clip_digits:grid=positions,objective=classification --workdir=runs/classes
"""

from collections.abc import Iterator
from types import SimpleNamespace

from ml_collections import ConfigDict

from vit_registers.config import (
    Captions,
    Checkpoint,
    Config,
    Data,
    ImageTextSettings,
    Model,
    ObjectiveSettings,
    Optimizer,
    Run,
    Text,
    lookup,
    parse_arg,
    to_config_dict,
)

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a photo of a {}.",
    "a handwritten {}.",
    "the number {}.",
    "a scan of the digit {}.",
)
GRIDS = ("registers", "positions")
OBJECTIVES = ("image_text", "classification")


def _parse(arg: str | None) -> SimpleNamespace:
    a = parse_arg(
        arg,
        registers=0,
        mask="none",
        k=0,
        positions="learned",
        loss="clip",
        steps=1600,
        seed=0,
        grid="registers",
        objective="image_text",
    )
    lookup(dict.fromkeys(GRIDS), a.grid, "grid")
    lookup(dict.fromkeys(OBJECTIVES), a.objective, "objective")
    return a


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: registers, mask, k (0: no summaries), positions, loss (clip | siglip), steps, seed, grid
    (registers | positions: that of the sweep), objective (image_text | classification, of the same tower)."""
    a = _parse(arg)
    is_clip = a.loss == "clip"
    config = Config(
        model=Model(
            width=64,
            depth=3,
            num_heads=4,
            patch_size=2,
            image_size=(8, 8),
            channels=1,
            num_classes=0 if a.objective == "image_text" else 10,
            num_registers=a.registers,
            summary_factor=a.k or None,
            mask=a.mask,
            positions=a.positions,
            use_norm_pre=True,
        ),
        text=Text(width=64, depth=2, num_heads=4, mlp_dim=256, vocab_size=258, context=32, embed_dim=64),
        data=Data(
            loader="memory",
            name="digits",
            eval_split="test",
            batch_size=80,
            eval_batch_size=360,
            train_ops="random_crop(padding=1)",
            eval_ops="",
            mean=(0.5,),
            std=(0.5,),
            captions=Captions(tokenizer="bytes", templates=TEMPLATES, class_texts=DIGITS),
        ),
        objective=ObjectiveSettings(
            name=a.objective,
            image_text=ImageTextSettings(
                loss=a.loss,
                initial_scale=1 / 0.07 if is_clip else 10.0,
                initial_bias=0.0 if is_clip else -2.0,  # about -ln 9: nine texts of a group are of others
                group=10,
            ),
        ),
        optimizer=Optimizer(
            learning_rate=2e-3,
            warmup_share=0.05,
            b2=0.98,
            eps=1e-6,
            decayed="matrices",
        ),
        checkpoint=Checkpoint(every_steps=max(a.steps // 4, 1)),
        run=Run(
            total_steps=a.steps,
            log_every_steps=10,
            eval_every_steps=max(a.steps // 4, 1),
            seed=a.seed,
            use_tensorboard=False,
        ),
    )
    return to_config_dict(config)


def sweep(arg: str | None = None) -> Iterator[dict[str, object]]:
    """0 and 4 registers, or learned positions and 2-D ALiBi, with three seeds."""
    setting, values = "model.num_registers", (0, 4)
    if _parse(arg).grid == "positions":
        setting, values = "model.positions", ("learned", "alibi2d")
    for seed in range(3):
        for value in values:
            yield {setting: value, "run.seed": seed}
