r"""Fine-tuning from other weights, with registers or summaries added.

The model and the normalisation of images are those of the weights. A resumed run reads both from its
checkpoint, and does not require the weights. Accuracy depends on the weights.

    vit-registers train --workdir=runs/finetuned \
        --config=transfer:path=weights/model.safetensors,registers=4,data=folder,classes=10 \
        --config.data.data_dir=root --config.data.eval_split=val

The head is initialised, unless --config.init_from.keep_head is set. Registers and summaries that the weights
do not have are initialised too. The recipe is plain: AdamW, cosine decay, little weight decay, no mixup.

    vit-registers train --workdir=runs/finetuned \
        --config=transfer:path=runs/mine,data=cifar10,classes=10,layer_decay=0.75,head_rate=10
    vit-registers train --workdir=runs/probe \
        --config=transfer:path=runs/mine,data=cifar10,classes=10,frozen='vit/[!h]*'

The first decays the rate from block to block and gives the head its own; the second trains the head alone.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from vit_registers import cli
from vit_registers.config import (
    Checkpoint,
    Config,
    Data,
    InitFrom,
    Model,
    Optimizer,
    Run,
    parse_arg,
    to_config_dict,
)
from vit_registers.errors import ConfigError
from vit_registers.fine_tuning import start_settings
from vit_registers.interop import preprocessing, shown
from vit_registers.interop.channels import adapt_statistics


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: path (required), source, heads, act (if the tensors do not determine them), params (params |
    ema), leave_out (patterns joined by +), channels (0: those of the weights), registers (-1: those of the
    weights), old_registers (if the weights have another number: keep | fresh), mask, k (0: that of the
    weights), old_summaries (if the weights have another k: fresh), image (px, 0: that of the weights),
    classes, data (a TFDS name | folder), epochs, seed; layer_decay, head_rate (a multiple of the learning
    rate), frozen (patterns of parameters, joined by +)."""
    a = parse_arg(
        arg,
        path="",
        source="auto",
        heads=0,
        act="",
        params="",
        leave_out="",
        channels=0,
        registers=-1,
        old_registers="same",
        old_summaries="same",
        mask="none",
        k=0,
        image=224,
        classes=1000,
        data="imagenet2012",
        epochs=20.0,
        seed=0,
        layer_decay=1.0,
        head_rate=1.0,
        frozen="",
    )
    start = _start(a)
    weights, images = start_settings(start, run=cli.early_flag("workdir"))
    model = _changed(weights, a)
    config = Config(
        model=model,
        init_from=start,
        data=Data(
            name=a.data,
            batch_size=256,
            eval_batch_size=256,
            mean=adapt_statistics(images.mean, model.channels),
            std=adapt_statistics(images.std, model.channels),
            eval_ops=_eval_ops(images, old=images.image_size or weights.image_size, new=model.image_size),
        ),
        optimizer=Optimizer(
            learning_rate=1e-4,
            warmup_epochs=1.0,
            weight_decay=0.05,
            layer_decay=a.layer_decay,
            head_rate=a.head_rate,
            frozen=_patterns(a.frozen),
        ),
        run=Run(total_epochs=a.epochs, eval_every_epochs=1.0, seed=a.seed),
        checkpoint=Checkpoint(every_steps=1000),
    )
    return to_config_dict(config)


def _start(a: Any) -> InitFrom:
    """The weights that the arguments name, and what is read of them."""
    if not a.path:
        raise ConfigError("--config=transfer:path=... is missing: give a run folder or weights")
    return InitFrom(
        path=a.path,
        source=a.source,
        num_heads=a.heads or None,
        hidden_act=a.act or None,
        params=a.params or None,
        leave_out=_patterns(a.leave_out),
        registers=a.old_registers,
        summaries=a.old_summaries,
    )


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(text.split("+")) if text else ()


def _changed(weights: Model, a: Any) -> Model:
    """The model of the weights with the changes that the arguments ask for."""
    return dataclasses.replace(
        weights,
        image_size=(a.image, a.image) if a.image else weights.image_size,
        num_classes=a.classes,
        use_head_bias=True,
        channels=a.channels or weights.channels,
        num_registers=weights.num_registers if a.registers < 0 else a.registers,
        summary_factor=a.k or weights.summary_factor,
        mask=a.mask if a.mask != "none" else weights.mask,
        drop_path=0.1,
    )


def _eval_ops(images: Data, *, old: tuple[int, int], new: tuple[int, int]) -> str:
    """The evaluation operations of the weights at the new image size; a crop of 7/8 if they do not resize."""
    if "resize" not in images.eval_ops:
        return preprocessing.eval_ops(new, 7 / 8, "pil_bicubic", is_floor=False)
    return shown.eval_ops_at(images.eval_ops, old=old, new=new)


def sweep(arg: str | None = None) -> Iterator[dict[str, object]]:
    """Learning rates, each without and with drop path."""
    for learning_rate in (3e-5, 1e-4, 3e-4):
        for drop_path in (0.0, 0.1):
            yield {"optimizer.learning_rate": learning_rate, "model.drop_path": drop_path}
