"""A checkpoint of another code base that has been opened, and its description in lines of text."""

import dataclasses
from collections import Counter

from vit_registers.config import Data, Model
from vit_registers.interop.channels import describe_channels
from vit_registers.interop.recognize import RecognizedWeights
from vit_registers.interop.tensor_map import TensorRule
from vit_registers.models.blocks import dims
from vit_registers.models.positions import position_rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedWeights:
    """A checkpoint that has been recognized; its tensors are not read yet."""

    found: RecognizedWeights
    native: Model  # at the image size and channels of the tensors
    model: Model  # at the requested image size and channels
    tensor_map: tuple[TensorRule, ...]


def describe_weights(opened: OpenedWeights) -> str:
    """What was recognized and inferred, in one line."""
    model, sizes, found = opened.model, dims(opened.model), opened.found
    height, width = model.image_size
    parts = [
        f"{found.source}" + (f" ({found.kind})" if found.kind else ""),
        f"width {sizes.width}, depth {sizes.depth}, {sizes.num_heads} heads, {sizes.mlp} {sizes.mlp_dim}",
        f"patches of {model.patch_size} px, made for {height} x {width} px",
    ]
    extra = [f"{model.num_registers} registers"] if model.num_registers else []
    extra += [f"summaries k={model.summary_factor}, mask {model.mask}"] if model.summary_factor else []
    parts += ["cls"] * model.use_cls + extra
    resampling = f" (other sizes: {model.position_resampling})"
    parts.append(f"positions {model.positions}" + resampling * position_rule(model.positions).has_table)
    parts.append(f"{model.activation}, norm eps {model.norm_eps:g}, pooling {model.pooling}")
    parts.append(f"head of {model.num_classes}" if model.num_classes else "no head")
    text = f"{found.weights.where}: " + "; ".join(parts)
    if model.channels != opened.native.channels:
        text += f"; {describe_channels(opened.native.channels, model.channels)}"
    if found.note:
        text += f"; {found.note}"
    if kinds := Counter(found.left_out.values()):
        text += "; left out: " + ", ".join(f"{what} ({count} tensors)" for what, count in kinds.items())
    return text


def describe_normalisation(data: Data, origin: str | None) -> str:
    """The normalisation of images and its origin, in one line."""
    numbers = (", ".join(f"{value:g}" for value in values) for values in (data.mean, data.std))
    return "normalisation {}: mean {}, std {}".format(origin or "of the config", *numbers)
