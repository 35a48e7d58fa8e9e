"""Images and texts (CLIP's loss) on CIFAR-10, with the model of the card cifar10 and texts of its classes.

    vit-registers prepare --name=cifar10
    vit-registers train --config=clip_cifar10:registers=4 --workdir=runs/clip_cifar10

Measured: not run yet. The templates are those of OpenAI's CLIP for CIFAR-10 that name one object. A batch
consists of groups of ten images of different classes, as in clip_digits.
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

TEMPLATES = (
    "a photo of a {}.",
    "a blurry photo of a {}.",
    "a black and white photo of a {}.",
    "a low contrast photo of a {}.",
    "a high contrast photo of a {}.",
    "a bad photo of a {}.",
    "a good photo of a {}.",
    "a photo of a small {}.",
    "a photo of a big {}.",
)


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: registers, mask, k (0: no summaries), positions, loss, loader, epochs, seed.

    loss is clip or siglip.
    """
    a = parse_arg(
        arg,
        registers=0,
        mask="none",
        k=0,
        positions="sincos2d",
        loss="clip",
        loader="tfdata",
        epochs=100.0,
        seed=0,
    )
    is_clip = a.loss == "clip"
    config = Config(
        model=Model(
            width=192,
            depth=6,
            num_heads=6,
            patch_size=2,
            image_size=(32, 32),
            num_classes=0,
            num_registers=a.registers,
            summary_factor=a.k or None,
            mask=a.mask,
            positions=a.positions,
            use_norm_pre=True,
        ),
        text=Text(width=128, depth=3, num_heads=4, mlp_dim=512, vocab_size=258, context=48, embed_dim=128),
        data=Data(
            loader=a.loader,
            name="cifar10",
            eval_split="test",
            batch_size=480,
            train_ops="random_crop(padding=4) | flip",
            eval_ops="",
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            captions=Captions(tokenizer="bytes", templates=TEMPLATES),
        ),
        objective=ObjectiveSettings(
            name="image_text",
            image_text=ImageTextSettings(
                loss=a.loss,
                initial_scale=1 / 0.07 if is_clip else 10.0,
                initial_bias=0.0 if is_clip else -2.0,
                group=10,
            ),
        ),
        optimizer=Optimizer(warmup_epochs=5.0, b2=0.98, eps=1e-6, decayed="matrices"),
        run=Run(total_epochs=a.epochs, eval_every_epochs=5.0, seed=a.seed),
        checkpoint=Checkpoint(every_steps=1000),
    )
    return to_config_dict(config)


def sweep(arg: str | None = None) -> Iterator[dict[str, object]]:
    """Registers, and 2-D ALiBi in place of sine-cosine positions, with three seeds."""
    for seed in range(3):
        for registers in (0, 4):
            for positions in ("sincos2d", "alibi2d"):
                yield {"model.num_registers": registers, "model.positions": positions, "run.seed": seed}
