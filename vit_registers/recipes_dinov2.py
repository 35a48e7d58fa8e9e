"""The recipes of DINOv2 (arXiv:2304.07193), without labels, as Configs, from which config files start.

They are those of DINOv2's code: its short recipe for a ViT-L/16 on ImageNet-1k, and that of a ViT-L/14 on
ImageNet-22k, which "Vision Transformers Need Registers" (arXiv:2309.16588) trains too. An epoch of that code
has 1,250 steps, whatever the data.

Deviations: bfloat16 instead of float16 with scaled gradients; an exact number of masked patches in each
batch; masks are drawn within groups of 32 images, so that a group lies within a device where a device has 32.
"""

import dataclasses
import math

from vit_registers.config import (
    Checkpoint,
    Config,
    Data,
    InitFrom,
    Mesh,
    Model,
    ObjectiveSettings,
    Optimizer,
    Run,
    SelfDistillationSettings,
)
from vit_registers.recipes import IMAGENET_MEAN, IMAGENET_STD

_RATES_BATCH = 1024  # base rates are for this batch, and are multiplied by the root of its multiple
_MASK_GROUP = 32
_HIGH_RESOLUTION = 518  # px, for patches of 14 px


def dinov2_short(*, batch: int = 2048, steps: int = 125_000, seed: int = 0) -> Config:
    """The short recipe (vitl16_short): 100 epochs on ImageNet-1k, one head, centring."""
    return _dinov2(
        Model(
            variant="L",
            patch_size=16,
            drop_path=0.3,
            drop_path_group=64,  # images of a GPU there
        ),
        SelfDistillationSettings(mask_group=_MASK_GROUP),  # whose defaults are those of this recipe
        Optimizer(learning_rate=4e-3, weight_decay=0.04, weight_decay_end=0.4, layer_decay=0.9),
        name="imagenet2012",
        batch=batch,
        steps=steps,
        epochs=100,
        warmup=10,
        seed=seed,
    )


def dinov2_long(*, batch: int = 3072, steps: int = 625_000, seed: int = 0) -> Config:
    """The long recipe (vitl14): 500 epochs on ImageNet-22k, two heads, Sinkhorn-Knopp."""
    return _dinov2(
        Model(
            variant="L",
            patch_size=14,
            mlp="swiglu",
            mlp_dim=2736,  # (int(4 * 1024 * 2 / 3) + 7) // 8 * 8
            drop_path=0.4,
            drop_path_group=32,
        ),
        SelfDistillationSettings(
            local_size=98,
            mask_group=_MASK_GROUP,
            num_prototypes=131_072,
            head_bottleneck=384,
            has_ibot_head=True,
            ibot_prototypes=131_072,
            ibot_bottleneck=256,
            targets="sinkhorn",
            temperature_share=30 / 500,
            momentum=(0.994, 1.0),
            koleo_group=32,  # images of a GPU there
        ),
        Optimizer(learning_rate=2e-4, weight_decay=0.04, weight_decay_end=0.2),
        name="folder",
        batch=batch,
        steps=steps,
        epochs=500,
        warmup=80,
        seed=seed,
    )


def _dinov2(
    model: Model,
    settings: SelfDistillationSettings,
    optimizer: Optimizer,
    *,
    name: str,
    batch: int,
    steps: int,
    epochs: int,
    warmup: int,
    seed: int,
) -> Config:
    """What both recipes share. `epochs`, and `warmup` in them, are those of the recipe, and `steps` the
    length of the run; learning rates of `optimizer` are base rates."""
    return Config(
        model=dataclasses.replace(
            model,
            num_classes=0,
            use_mask_token=True,
            positions="learned",
            position_resampling="bicubic_aa",
            layer_scale_init=1e-5,
            drop_path_schedule="constant",
            init="dinov2",
            pooling="cls",
            dtype="bfloat16",
            remat="block",
        ),
        data=Data(
            name=name,
            eval_split=_eval_split(name),
            batch_size=batch,
            train_ops="",
            eval_ops=_eval_ops(224),
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        ),
        objective=ObjectiveSettings(name="self_distillation", self_distillation=settings),
        optimizer=dataclasses.replace(
            optimizer,
            schedule="cosine_from_peak",
            learning_rate=optimizer.learning_rate * math.sqrt(batch / _RATES_BATCH),
            min_learning_rate=1e-6,
            warmup_steps=steps * warmup // epochs,
            decayed="all_but_norms",
            patch_embed_rate=0.2,
            grad_clip_norm=3.0,
            grad_clip_per="module",
            delayed=("*/last_layer/*",),
            delay_share=1 / epochs,
        ),
        mesh=Mesh(data=1, fsdp=-1),
        run=Run(total_steps=steps, eval_every_steps=max(steps // 10, 1), seed=seed),
        # 10 of the checkpoints are kept, for figures over training.
        checkpoint=Checkpoint(every_steps=2500, keep_every_steps=max(steps // 10, 1)),
    )


def _eval_split(data: str) -> str:
    """The split to test on: that of TFDS for ImageNet-1k, else the folder of ImageNet's layout."""
    return "validation" if data == "imagenet2012" else "val"


def _eval_ops(size: int) -> str:
    """Evaluation at `size` px: the image at 8/7 of it, and its central part."""
    return f"resize_small({round(size * 8 / 7)}, method='pil_bicubic') | central_crop(rounding='half_even')"


def adjusted(config: Config, *, registers: int, mask: str, k: int, data: str, start: str) -> Config:
    """`config` with the usual arguments of the run cards of DINOv2.

    Registers; a mask; summaries with factor `k`, if not 0; a data set, if not "". With `start`, the folder of
    a run of `config`, it is the stage at 518 px after it.
    """
    model = dataclasses.replace(
        config.model,
        num_registers=registers,
        summary_factor=k or None,
        mask=mask,
        extra_positions="sincos2d" if k else "none",
        summaries="zeros" if k else "learned",
    )
    config = dataclasses.replace(config, model=model)
    if data and data != config.data.name:
        images = dataclasses.replace(config.data, name=data, eval_split=_eval_split(data))
        config = dataclasses.replace(config, data=images)
    return high_resolution(config, path=start) if start else config


def high_resolution(config: Config, *, path: str, steps: int = 10_000) -> Config:
    """The stage after `config`, which continues from its run in the folder `path`: images of 518 px.

    The size is 512 px for patches of 16 px.

    All schedules are compressed to the length of the stage, as in the paper, which trains 10,000 steps. The
    learning rate, which it calls smaller and does not give, is a quarter of that of `config` here. Both
    student and teacher start from the teacher, with its heads.
    """
    size = _HIGH_RESOLUTION // config.model.patch_size * config.model.patch_size
    share = steps / (config.run.total_steps or steps)
    warmup = round((config.optimizer.warmup_steps or 0) * share)
    every = max(steps // 4, 1)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, image_size=(size, size)),
        init_from=InitFrom(path=path, keep_head=True),
        data=dataclasses.replace(config.data, eval_ops=_eval_ops(size)),
        optimizer=dataclasses.replace(
            config.optimizer, learning_rate=config.optimizer.learning_rate / 4, warmup_steps=warmup
        ),
        run=dataclasses.replace(config.run, total_steps=steps, eval_every_steps=every),
        checkpoint=Checkpoint(every_steps=1000, keep_every_steps=every),
    )
