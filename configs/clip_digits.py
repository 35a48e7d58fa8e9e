"""Images and texts (CLIP's loss) on handwritten digits, with texts of their classes: minutes on 2 CPU cores.

    vit-registers train --config=clip_digits --workdir=runs/clip
    vit-registers evaluate --checkpoint=runs/clip --task=zero_shot

A batch consists of groups of ten images of different classes, and the pairs of a group are compared: two
images of one class would have texts that say the same. It sees as many images as the card digits.
"""

from collections.abc import Iterator

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


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: registers, mask, k (0: no summaries), loss (clip | siglip), steps, seed."""
    a = parse_arg(arg, registers=0, mask="none", k=0, loss="clip", steps=1600, seed=0)
    is_clip = a.loss == "clip"
    config = Config(
        model=Model(
            width=64,
            depth=3,
            num_heads=4,
            patch_size=2,
            image_size=(8, 8),
            channels=1,
            num_classes=0,
            num_registers=a.registers,
            summary_factor=a.k or None,
            mask=a.mask,
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
            name="image_text",
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
    """0 and 4 registers, with three seeds."""
    for seed in range(3):
        for registers in (0, 4):
            yield {"model.num_registers": registers, "run.seed": seed}
