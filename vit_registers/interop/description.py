"""Lines of text about a checkpoint: what was recognized and inferred, and how its images are normalised."""

from vit_registers.config import Data
from vit_registers.interop.channels import describe_channels
from vit_registers.interop.opened import OpenedWeights
from vit_registers.models.blocks import dims


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
    parts.append(f"positions {model.positions} (other sizes: {model.position_resampling})")
    parts.append(f"{model.activation}, norm eps {model.norm_eps:g}, pooling {model.pooling}")
    parts.append(f"head of {model.num_classes}" if model.num_classes else "no head")
    text = f"{found.weights.where}: " + "; ".join(parts)
    if model.channels != opened.native.channels:
        text += f"; {describe_channels(opened.native.channels, model.channels)}"
    if found.note:
        text += f"; {found.note}"
    kinds: dict[str, int] = {}
    for what in found.left_out.values():
        kinds[what] = kinds.get(what, 0) + 1
    if kinds:
        text += "; left out: " + ", ".join(f"{what} ({count} tensors)" for what, count in kinds.items())
    return text


def describe_normalisation(data: Data, origin: str | None) -> str:
    """The normalisation of images and its origin, in one line."""
    numbers = (", ".join(f"{value:g}" for value in values) for values in (data.mean, data.std))
    return "normalisation {}: mean {}, std {}".format(origin or "of the config", *numbers)
