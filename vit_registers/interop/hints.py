"""What a user can specify about a checkpoint whose tensors do not determine the model."""

import dataclasses
import numbers
from collections.abc import Sequence

from vit_registers.errors import ConfigError

HIDDEN_ACTS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hints:
    """What a user specifies about a checkpoint; None: inferred from its tensors and files."""

    image_size: tuple[int, int] | None = None  # (height, width) in pixels; positions are resampled to it
    num_heads: int | None = None
    hidden_act: str | None = None  # gelu | quick_gelu | gelu_tanh
    interpolation: str | None = None  # models/resampling.py: RESAMPLINGS
    pooling: str | None = None
    mask: str | None = None  # the flex-attention variant of the fractal paper's code does not store it
    architecture: str | None = None  # timm's name of the model, if no config.json has it
    params: str | None = None  # of several copies in a file: a key of COPIES (unwrap.py)
    leave_out: tuple[str, ...] = ()  # patterns of names in the file that are not read
    channels: int | None = None  # of the images; the patch kernel is summed over its channels, or repeated


def make_hints(
    image_size: int | tuple[int, int] | None,
    num_heads: int | None,
    hidden_act: str | None,
    interpolation: str | None,
    pooling: str | None,
    mask: str | None,
    architecture: str | None,
    leave_out: str | Sequence[str],
    channels: int | None,
) -> Hints:
    """The Hints of a user: one number is a square image, one text is one pattern. Raises ConfigError."""
    patterns = (leave_out,) if isinstance(leave_out, str) else tuple(leave_out)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigError(f"leave_out={leave_out!r}: must be patterns of names, such as ['head.*']")
    size = None
    if image_size is not None:
        sides = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
        if not (len(sides) == 2 and all(map(_is_positive, sides))):
            raise ConfigError(f"image_size={image_size!r}: must be pixels, as 224 or (height, width)")
        size = (int(sides[0]), int(sides[1]))
    if num_heads is not None and not _is_positive(num_heads):
        raise ConfigError(f"num_heads={num_heads!r}: must be an integer, 1 or more")
    if channels is not None and not isinstance(channels, numbers.Integral):
        raise ConfigError(f"channels={channels!r}: must be an integer")
    return Hints(
        leave_out=patterns,
        channels=channels,
        image_size=size,
        num_heads=num_heads,
        hidden_act=hidden_act,
        interpolation=interpolation,
        pooling=pooling,
        mask=mask,
        architecture=architecture,
    )


def _is_positive(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1
