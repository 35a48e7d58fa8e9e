"""Train, evaluate and dissect Vision Transformers with register tokens, summary tokens and fractal masks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vit_registers.models.vit import ViT

__version__ = "0.1.0"


def load(
    path: str,
    *,
    step: int | None = None,
    params: str | None = None,
    source: str = "auto",
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
    hidden_act: str | None = None,
    interpolation: str | None = None,
    pooling: str | None = None,
    mask: str | None = None,
    architecture: str | None = None,
    leave_out: str | Sequence[str] = (),
    channels: int | None = None,
) -> "ViT":
    """The model of a run folder, or of other people's checkpoint: `load("runs/digits")(images).logits`.

    `images` are floats [batch, height, width, channels], normalised as in training (a run's data.mean and
    data.std).

    Of a run folder, `step` picks a checkpoint, by default the newest intact one, and `params` the trained
    parameters ("params") or their average ("ema"); None picks those that count, which are the average after
    schedule-free training, else the trained ones. Other people's checkpoints are files (.safetensors, .npz,
    .pth, .pt, .bin) or folders of DINOv2, DeiT, DINO, iBOT, CLIP, OpenCLIP, timm, transformers, big_vision or
    the fractal paper's code. What they are is recognised, and printed in a line; what their tensors do not
    tell can be given: `source` (interop.SOURCES), `image_size` (px) that the model is made for, to which
    learned positions are resampled, `num_heads`, `hidden_act` (gelu | quick_gelu | gelu_tanh),
    `interpolation` of positions at other sizes (models/resampling.py), `pooling`, `mask`, `architecture`
    (timm's name of the model, where no config.json says it). Of a file with several copies of the network,
    `params` picks the trained one ("params") or the averaged one ("ema"); None picks the one that its authors
    evaluate. `leave_out` are patterns, as in fnmatch, of names in the file that are not read:
    `leave_out=["head.*"]`. `channels` are those of the images: for one, the patch kernel is summed over its
    channels, else repeated and scaled.

    Raises errors.CheckpointError where there is nothing to load, or where it does not fit, with all listed.
    """
    from vit_registers import loading
    from vit_registers.interop.hints import make_hints

    hints = make_hints(
        image_size, num_heads, hidden_act, interpolation, pooling, mask, architecture, leave_out, channels
    )
    return loading.load_model(str(path), step=step, params=params, source=source, hints=hints)
