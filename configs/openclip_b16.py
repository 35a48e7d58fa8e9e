"""ViT-B/16 on images and texts of the web, with registers: the OpenCLIP row of arXiv:2309.16588.

The settings are those of OpenCLIP's code (mlfoundations/open_clip) and of its ViT-B/16 on LAION-400M: AdamW,
32 epochs, here 390,625 steps of 32,768 pairs (there 33,792), random crops of 0.9 to 1 of the area, no flip.
registers=4 adds registers before the LayerNorm that precedes the blocks; the paper does not say where, so it
is our choice. Deviations: bfloat16 without scaled gradients; positions are not decayed, as in newer versions
of that code; the warm-up is one step behind.

The data are a folder root/{train,val}/*.tar, as WebDataset has them, or another one of docs/captions.md. Each
pair takes 48 bytes of memory: 20 GB in each process for LAION-400M. With data=laion400m/images they are those
of TFDS, prepared as array_record files; data.train_split and data.eval_split are then parts of its train.

Published: 67.1 zero-shot on ImageNet-1k without registers, 61 hours on 176 A100 (OpenCLIP's docs). With a
corpus that is not public, 59.9 without and 60.1 with 4 registers (arXiv:2309.16588).
Measured: not run. By the TPU compiler: 45.3 GiB of 95 on each chip of v5p:4x4x4, 46.1 with 4 registers
(docs/performance.md).

    vit-registers train --config=openclip_b16:registers=4,data_dir=root --workdir=/shared/run
    vit-registers evaluate --checkpoint=/shared/run --task=zero_shot --data=imagenet2012:validation \\
        --config.tasks.zero_shot.prompts="package(data='imagenet1k')"
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from vit_registers.config import (
    Captions,
    Checkpoint,
    Config,
    Data,
    ImageTextSettings,
    Mesh,
    Model,
    ObjectiveSettings,
    Optimizer,
    Run,
    Text,
    parse_arg,
    to_config_dict,
)

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: registers, mask, k (0: no summaries), positions, data (image_text | a TFDS name), data_dir,
    batch, steps, seed."""
    a = parse_arg(
        arg,
        registers=0,
        mask="none",
        k=0,
        positions="learned",
        data="image_text",
        data_dir="",
        batch=32_768,
        steps=390_625,
        seed=0,
    )
    config = Config(
        model=Model(
            variant="B",
            num_classes=0,
            num_registers=a.registers,
            summary_factor=a.k or None,
            mask=a.mask,
            positions=a.positions,
            use_norm_pre=True,
            use_norm_after_pool=True,
            use_patch_bias=False,
            norm_eps=1e-5,
            init="open_clip",
            dtype="bfloat16",
        ),
        text=Text(dtype="bfloat16"),
        data=Data(
            name=a.data,
            data_dir=a.data_dir or None,
            eval_split="val",
            batch_size=a.batch,
            drop_last=True,
            train_ops="random_resized_crop(area_min=0.9)",
            eval_ops="resize_small(224, method='pil_bicubic') | central_crop(rounding='half_even')",
            mean=MEAN,
            std=STD,
            on_broken="skip",
            captions=Captions(tokenizer="clip"),
        ),
        objective=ObjectiveSettings(name="image_text", image_text=ImageTextSettings(loss="clip")),
        optimizer=Optimizer(
            learning_rate=5e-4,
            warmup_steps=min(2000, a.steps // 5),
            weight_decay=0.2,
            decayed="matrices",
            b2=0.98,
            eps=1e-6,
            grad_clip_norm=None,
        ),
        mesh=Mesh(data=-1),
        run=Run(total_steps=a.steps, eval_every_steps=max(a.steps // 32, 1), seed=a.seed),
        # One checkpoint of 20 is kept, for figures over training.
        checkpoint=Checkpoint(every_steps=2500, keep_every_steps=50_000),
    )
    return to_config_dict(config)


def sweep(arg: str | None = None) -> Iterator[dict[str, object]]:
    """0 and 4 registers, as in arXiv:2309.16588."""
    del arg
    for count in (0, 4):
        yield {"model.num_registers": count}
