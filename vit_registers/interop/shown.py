"""The part of an image that data.eval_ops show to a model: at another image size, and in words."""

import re
from typing import NamedTuple

from vit_registers.errors import ConfigError

_RESIZE_SMALL, _CROP, _RESIZE = "resize_small", "central_crop", "resize"
_CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*(\(.*\))?\s*")
_PIXELS = re.compile(r"\bresize_small\((?:[^()]*\bsize\s*=)?\s*([1-9]\d*)(?=\s*[,)])")
_METHOD = re.compile(r"""['"](\w+)['"]""")


class Shown(NamedTuple):
    """The part of an image that a model is shown."""

    share: float | None  # of the short side; 1: a whole square image; None: unknown
    method: str | None  # of resizing
    text: str


def eval_ops_at(ops: str, *, old: tuple[int, int], new: tuple[int, int]) -> str:
    """`ops`, written for images of size `old`, for images of size `new`. The crop keeps its share.

    The size of resize_small is scaled by the ratio of the longer sides, and rounded down. Raises ConfigError
    if there is a crop without a resize_small(PIXELS) to scale.
    """
    ops = ops.strip()
    calls = _calls(ops)
    if old == new or _RESIZE in calls or not calls.keys() & {_RESIZE_SMALL, _CROP}:
        return ops
    size = _PIXELS.search(ops)
    if size is None:
        raise ConfigError(
            f"data.eval_ops={ops!r} cannot be scaled from images of {_px(old)} to {_px(new)}, as it has no "
            "resize_small(PIXELS): give --config.data.eval_ops as well"
        )
    scaled = int(size[1]) * max(new) // max(old)
    return f"{ops[: size.start(1)]}{scaled}{ops[size.end(1) :]}"


def shown_part(ops: str, image_size: tuple[int, int]) -> Shown:
    """The part of an image that the chain `ops` keeps, for a model of `image_size`."""
    if not ops.strip():
        return Shown(1.0, None, "whole images, not resized")
    calls = _calls(ops)
    method = _METHOD.search(calls.get(_RESIZE, "") + calls.get(_RESIZE_SMALL, ""))
    name = None if method is None else method[1]
    if set(calls) == {_RESIZE}:
        return Shown(1.0, name, f"whole images, resized to {_px(image_size)} of any aspect")
    size = _PIXELS.search(ops)
    if size is None or not calls or set(calls) - {_RESIZE_SMALL, _CROP}:
        return Shown(None, None, f"what data.eval_ops={ops!r} leaves")
    height, width = (side / int(size[1]) for side in image_size)
    text = f"{100 * min(height, width):.1f} % of the short side"
    text += f" ({100 * height * width:.1f} % of a square image)"
    return Shown(min(height, width), name, text)


class Resizing(NamedTuple):
    """How a chain of operations makes images of the model's size."""

    shorter_side: int | None  # in pixels, to which it is resized; None: the whole image is, or none is
    is_cropped: bool
    method: str | None  # of METHODS in data/ops/resize.py; None: it is not resized


def resizing(ops: str) -> Resizing | None:
    """The Resizing of `ops`; None for a chain that resizes otherwise."""
    calls = _calls(ops)
    method = _METHOD.search(calls.get(_RESIZE, "") + calls.get(_RESIZE_SMALL, ""))
    size = _PIXELS.search(ops)
    if not ops.strip() or set(calls) == {_CROP}:
        return Resizing(None, bool(calls), None)
    if set(calls) == {_RESIZE}:
        return Resizing(None, False, "bilinear" if method is None else method[1])
    if set(calls) == {_RESIZE_SMALL, _CROP} and size is not None:
        return Resizing(int(size[1]), True, "area" if method is None else method[1])
    return None


def _calls(ops: str) -> dict[str, str]:
    """The operations of a chain by name, with the text of their arguments.

    Empty for text that is not a chain: the data pipeline reports it.
    """
    calls: dict[str, str] = {}
    for part in ops.split("|"):
        call = _CALL.fullmatch(part)
        if call is None:
            return {}
        calls.setdefault(call[1], call[2] or "")
    return calls


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} px"
