"""The part of an image that data.eval_ops show to a model: at another image size, and in words."""

import ast
from typing import NamedTuple

from vit_registers.errors import ConfigError

_RESIZE_SMALL, _CROP, _RESIZE = "resize_small", "central_crop", "resize"


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
    size = _pixels(calls.get(_RESIZE_SMALL))
    if size is None:
        raise ConfigError(
            f"data.eval_ops={ops!r} cannot be scaled from images of {_px(old)} to {_px(new)}, as it has no "
            "resize_small(PIXELS): give --config.data.eval_ops as well"
        )
    scaled = size.value * max(new) // max(old)
    return f"{ops[: size.start]}{scaled}{ops[size.end :]}"


def shown_part(ops: str, image_size: tuple[int, int]) -> Shown:
    """The part of an image that the chain `ops` keeps, for a model of `image_size`."""
    calls = _calls(ops)
    if not ops.strip():
        return Shown(1.0, None, "whole images, not resized")
    if set(calls) == {_RESIZE}:
        method = _method(calls[_RESIZE], 0)
        return Shown(1.0, method, f"whole images, resized to {_px(image_size)} of any aspect")
    size = _pixels(calls.get(_RESIZE_SMALL))
    if size is None or not set(calls) <= {_RESIZE_SMALL, _CROP}:
        return Shown(None, None, f"what data.eval_ops={ops!r} leaves")
    height, width = (side / size.value for side in image_size)
    method = _method(calls[_RESIZE_SMALL], 1)
    text = f"{100 * min(height, width):.1f} % of the short side"
    text += f" ({100 * height * width:.1f} % of a square image)"
    return Shown(min(height, width), method, text)


def _calls(ops: str) -> dict[str, ast.Call | None]:
    """The operations of a chain by name, with their call if they have arguments.

    Empty for text that is not a chain: the data pipeline reports it.
    """
    try:
        node = ast.parse(ops.strip(), mode="eval").body if ops.strip() else None
    except SyntaxError:
        return {}
    calls: dict[str, ast.Call | None] = {}
    while node is not None:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            last, node = node.right, node.left
        else:
            last, node = node, None
        name = last.func if isinstance(last, ast.Call) else last
        if isinstance(name, ast.Name):
            calls[name.id] = last if isinstance(last, ast.Call) else None
    return calls


class _Pixels(NamedTuple):
    value: int
    start: int  # first and last place in the text of the chain
    end: int


def _pixels(call: ast.Call | None) -> _Pixels | None:
    """The number of pixels of resize_small."""
    if call is None:
        return None
    named = [keyword.value for keyword in call.keywords if keyword.arg == "size"]
    for node in (*call.args[:1], *named):
        if isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value > 0:
            end = node.end_col_offset
            return None if end is None or node.value is True else _Pixels(node.value, node.col_offset, end)
    return None


def _method(call: ast.Call | None, place: int) -> str | None:
    if call is None:
        return None
    named = [keyword.value for keyword in call.keywords if keyword.arg == "method"]
    for node in (*call.args[place : place + 1], *named):
        if isinstance(node, ast.Constant):
            return str(node.value)
    return None


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} px"
