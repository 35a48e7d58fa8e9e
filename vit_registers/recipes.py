"""The papers' training recipes on ImageNet as Configs, from which config files start.

Those without labels are in recipes_dinov2.py.

Recipe A trains a plain ViT-S/16 (arXiv:2205.01580). It has two variants: that of big_vision, and that of the
code of arXiv:2601.15506. Recipe B is DeiT-III (arXiv:2204.07118) as in "Registers in Small Vision
Transformers". Recipe C is that of DeiT-III for ImageNet-21k, which arXiv:2309.16588 uses with registers, with
its second stage on ImageNet-1k. docs/recipes.md lists all settings and the tests that compare them with the
references.
"""

import dataclasses

from vit_registers.config import (
    Checkpoint,
    ClassificationSettings,
    Config,
    Data,
    InitFrom,
    Model,
    ObjectiveSettings,
    Optimizer,
    Run,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
REAL, V2 = "imagenet2012_real validation", "imagenet_v2/matched-frequency test"


def recipe_a_big_vision(*, epochs: float = 90.0, seed: int = 0) -> Config:
    """Recipe A as in big_vision's vit_s16_i1k: 99 % of the training split, MLP head, tanh GELU.

    Deviation: the batch is mixed in 8 groups, as on 8 devices, on any number of devices.
    """
    return Config(
        model=Model(
            positions="sincos2d",
            use_cls=False,
            pooling="gap",
            use_pre_logits=True,
            activation="gelu_tanh",
            init="big_vision",
        ),
        data=Data(
            train_split="train[:99%]",
            also_eval=("imagenet2012 train[99%:]", REAL, V2),
            shuffle_buffer=250_000,
            train_ops="inception_crop | flip | randaugment(2, 10)",
            eval_ops="resize_small(256) | central_crop",
        ),
        objective=ObjectiveSettings(
            classification=ClassificationSettings(
                mixup_alpha=0.2,
                use_mixup_folding=True,
                mix_groups=8,
                mix_noise="global",
            ),
        ),
        optimizer=Optimizer(
            learning_rate=1e-3,
            warmup_steps=10_000,
            weight_decay=0.1,  # multiplied by the rate: 1e-4 at the peak
            mu_dtype="bfloat16",
        ),
        run=Run(total_epochs=epochs, eval_every_steps=2500, seed=seed),
        checkpoint=Checkpoint(every_steps=2500),
    )


def recipe_a_fractal(*, epochs: float = 90.0, seed: int = 0) -> Config:
    """Recipe A as in the code of arXiv:2601.15506: the whole training split, linear head, exact GELU.

    The crop is that of --torchvision-inception-crop, a flag that all scripts of that code set.
    """
    return Config(
        model=Model(positions="sincos2d", use_cls=False, pooling="gap", init="big_vision"),
        data=Data(
            also_eval=(REAL, V2),
            train_ops="random_resized_crop(area_min=0.05, method='pil_bilinear') | flip "
            "| randaugment(2, 10, contrast='mean')",
            eval_ops="resize_small(256, method='pil_bilinear') | central_crop(rounding='half_even')",
        ),
        objective=ObjectiveSettings(
            classification=ClassificationSettings(
                mixup_alpha=0.2,
                mix_groups=8,
                mix_noise="per_group",
            ),
        ),
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=10_000, weight_decay=0.1),
        run=Run(total_epochs=epochs, eval_every_steps=2500, seed=seed),
        # 9 of the checkpoints are kept over 90 epochs, for figures over training.
        checkpoint=Checkpoint(every_steps=2500, keep_every_steps=12_500),
    )


def recipe_b_deit3(*, ranks: int = 4, epochs: float = 800.0, seed: int = 0) -> Config:
    """Recipe B: DeiT-III Small with a batch of 256 for each of `ranks` processes.

    The registers study used 4 GPUs, so `ranks` is 4; DeiT-III's command has 8. The average (ema) is evaluated
    in addition to the parameters, which both papers report.

    Deviation: bfloat16 instead of float16 with scaled gradients.
    """
    return Config(
        model=Model(
            positions="learned",
            has_cls_position=False,
            layer_scale_init=1e-4,
            drop_path=0.05,
            drop_path_schedule="constant",
            init="deit3",
            dtype="bfloat16",
        ),
        data=Data(
            batch_size=256 * ranks,
            repeats=3,
            drop_last=True,
            train_ops="random_resized_crop | flip | three_augment | color_jitter(0.3, 0.3, 0.3)",
            eval_ops="resize_small(224, method='pil_bicubic') | central_crop(rounding='half_even')",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        ),
        objective=ObjectiveSettings(
            classification=ClassificationSettings(
                loss="multi_hot",
                mixup_alpha=0.8,
                cutmix_alpha=1.0,
                mix_partner="flip",
                mix_groups=ranks,
                mix_noise="per_group",
            ),
        ),
        optimizer=Optimizer(
            name="lamb",
            schedule="cosine_per_epoch",
            learning_rate=4e-3,
            warmup_learning_rate=1e-6,
            min_learning_rate=1e-5,
            warmup_epochs=5.0,
            weight_decay=0.05,
            ema_decay=0.99996,
        ),
        run=Run(total_epochs=epochs, eval_every_epochs=1.0, seed=seed),
        # 10 of the checkpoints are kept over 800 epochs, for figures over training.
        checkpoint=Checkpoint(every_steps=10_000, keep_every_steps=100_000),
    )


def recipe_c_deit3_21k(*, ranks: int = 32, epochs: float = 240.0, seed: int = 0) -> Config:
    """Recipe C: DeiT-III Base on ImageNet-21k, with a batch of 64 for each of `ranks` processes.

    The settings are those of the command in README_revenge.md of DeiT's code; those that it does not set are
    as in recipe B. Images are resized to a short side of 224 px, then cropped at random with 4 px of
    mirrored border. CutMix always, no mixup, cross entropy with smoothed labels, each image once per epoch.
    """
    return _deit3_after_b(
        ranks, epochs, seed, drop_path=0.1, learning_rate=1e-3, keep_every_steps=200_000, start=InitFrom()
    )


def recipe_c_deit3_1k(*, path: str, ranks: int = 32, epochs: float = 50.0, seed: int = 0) -> Config:
    """The second stage of recipe C: ImageNet-1k from the parameters of the run `path`, with a new head."""
    start = InitFrom(path=path)
    return _deit3_after_b(
        ranks, epochs, seed, drop_path=0.15, learning_rate=3e-4, keep_every_steps=None, start=start
    )


def _deit3_after_b(
    ranks: int,
    epochs: float,
    seed: int,
    *,
    drop_path: float,
    learning_rate: float,
    keep_every_steps: int | None,
    start: InitFrom,
) -> Config:
    """Both stages of recipe C: recipe B with what differs."""
    b = recipe_b_deit3(ranks=ranks, epochs=epochs, seed=seed)
    crop = "resize_small(224, method='pil_bicubic') | random_crop(4, mode='reflect')"
    return dataclasses.replace(
        b,
        model=dataclasses.replace(b.model, variant="B", drop_path=drop_path),
        init_from=start,
        data=dataclasses.replace(
            b.data,
            batch_size=64 * ranks,
            repeats=1,
            train_ops=f"{crop} | flip | three_augment | color_jitter(0.3, 0.3, 0.3)",
        ),
        objective=ObjectiveSettings(
            classification=dataclasses.replace(
                b.objective.classification, loss="softmax", mixup_alpha=0.0, label_smoothing=0.1
            )
        ),
        optimizer=dataclasses.replace(b.optimizer, learning_rate=learning_rate, weight_decay=0.02),
        checkpoint=dataclasses.replace(b.checkpoint, keep_every_steps=keep_every_steps),
    )
