"""The operations of data.eval_ops on one image, by numpy and PIL, to the loaders' pixels. No TensorFlow."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from vit_registers.config import lookup
from vit_registers.data.ops import strings
from vit_registers.data.ops.strings import Target
from vit_registers.errors import ConfigError

ImageOp = Callable[[np.ndarray], np.ndarray]  # image_HxWxC -> image_HxWxC, uint8
Resize = Callable[[np.ndarray, tuple[int, int]], np.ndarray]  # image_HxWxC, (height, width) -> image, uint8


def compose_pil(text: str, target: Target, *, where: str, loader: str = "pil") -> ImageOp:
    """The function of a decoded image that the operation string `text` describes for data.loader.

    Raises ConfigError, which names the setting `where`, for operations that draw at random.
    """
    ops = [op for _, op in strings.build(text, EVAL_OPS[loader], target, where=where)]

    def apply(image_HxWxC: np.ndarray) -> np.ndarray:
        for op in ops:
            image_HxWxC = op(image_HxWxC)
        return image_HxWxC

    return apply


def resize_in_memory(image_HxWxC: np.ndarray, target: Target) -> np.ndarray:
    """The image resized to the target by PIL's bilinear filter: "resize" of the memory loader."""
    return _pil(image_HxWxC, (target.height, target.width), Image.Resampling.BILINEAR)


def _pil(image_HxWxC: np.ndarray, sides: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    channels = image_HxWxC.shape[-1]
    image = Image.fromarray(image_HxWxC[..., 0] if channels == 1 else image_HxWxC)
    return np.asarray(image.resize((sides[1], sides[0]), method)).reshape(*sides, channels)


def _pil_by_axes(method: Image.Resampling) -> Resize:
    """PIL's resizing with the horizontal pass first, as in Pillow up to 12 and in pil_resize.py."""

    def apply(image_HxWxC: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
        wide = _pil(image_HxWxC, (image_HxWxC.shape[0], sides[1]), method)
        return _pil(wide, sides, method)

    return apply


def _bilinear(image_HxWxC: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """tf.image.resize(method="bilinear", antialias=False), truncated, in TensorFlow's order of operations."""

    def places(size: int, out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(index below, index above, share of the latter) of each of `out` pixels."""
        half = np.float32(0.5)
        at = (np.arange(out, dtype=np.float32) + half) * (np.float32(size) / np.float32(out)) - half
        floor = np.floor(at)
        low, high = np.maximum(floor, 0), np.minimum(np.ceil(at), size - 1)
        return low.astype(np.int64), high.astype(np.int64), at - floor

    (y0, y1, dy), (x0, x1, dx) = (places(*one) for one in zip(image_HxWxC.shape[:2], sides, strict=True))
    image, dx = image_HxWxC.astype(np.float32), dx[None, :, None]
    top, bottom = (image[y][:, x0] + (image[y][:, x1] - image[y][:, x0]) * dx for y in (y0, y1))
    return (top + (bottom - top) * dy[:, None, None]).astype(np.uint8)


def _area(image_HxWxC: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """tf.image.resize(method="area"), truncated, in TensorFlow's order of operations."""
    (height, width), channels = image_HxWxC.shape[:2], image_HxWxC.shape[2]
    y_IxT, y_weight_IxT, y_scale = _area_taps(height, sides[0])
    x_IxT, x_weight_IxT, x_scale = _area_taps(width, sides[1])
    image = image_HxWxC.astype(np.float32)
    # A sum over columns, then over rows, in float32, in this order.
    rows = np.zeros((height, sides[1], channels), np.float32)
    for x_I, weight_I in zip(x_IxT.T, x_weight_IxT.T, strict=True):
        rows += image[:, x_I] * weight_I[None, :, None]
    out = np.zeros((*sides, channels), np.float32)
    for y_I, weight_I in zip(y_IxT.T, y_weight_IxT.T, strict=True):
        out += rows[y_I] * weight_I[:, None, None]
    return (out * (np.float32(1.0) / (y_scale * x_scale))).astype(np.uint8)


def _area_taps(size: int, out: int) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """(indices, weights, scale) of the pixels that each of `out` pixels is the mean of; 0 if unused."""
    scale = np.float32(size) / np.float32(out)
    start = np.arange(out, dtype=np.float32) * scale
    end = np.arange(1, out + 1, dtype=np.float32) * scale
    first, last = np.floor(start).astype(np.int64), np.ceil(end).astype(np.int64)
    index_IxT = first[:, None] + np.arange((last - first).max())[None]
    # In float32 where TensorFlow's are: i + 1 - start, end - i.
    at = index_IxT.astype(np.float32)
    start, end = start[:, None], end[:, None]
    inside = np.where(at + 1 > end, end - at, np.float32(1.0))
    weight_IxT = np.where(at < start, np.where(at + 1 > end, scale, at + 1 - start), inside)
    weight_IxT = np.where(index_IxT < last[:, None], weight_IxT, np.float32(0.0)).astype(np.float32)
    return np.clip(index_IxT, 0, size - 1), weight_IxT, scale


NUMPY_METHODS: dict[str, Resize] = {
    "area": _area,
    "bilinear": _bilinear,
    "pil_bilinear": _pil_by_axes(Image.Resampling.BILINEAR),
    "pil_bicubic": _pil_by_axes(Image.Resampling.BICUBIC),
}


def _same(target: Target) -> ImageOp:
    return lambda image_HxWxC: image_HxWxC


def _resize(target: Target, method: str = "bilinear") -> ImageOp:
    resize_image = lookup(NUMPY_METHODS, method, "resize: method")
    return lambda image_HxWxC: resize_image(image_HxWxC, (target.height, target.width))


def _resize_small(target: Target, size: int, method: str = "area") -> ImageOp:
    if size < 1:
        raise ConfigError(f"resize_small: size={size}: must be >= 1")
    resize_image = lookup(NUMPY_METHODS, method, "resize_small: method")

    def apply(image_HxWxC: np.ndarray) -> np.ndarray:
        sides = np.array(image_HxWxC.shape[:2])
        if method.startswith("pil_"):
            sides = sides * size // sides.min()
        else:
            scale = np.float32(size) / np.float32(sides.min())
            sides = np.rint(sides.astype(np.float32) * scale).astype(np.int64)
        return resize_image(image_HxWxC, (int(sides[0]), int(sides[1])))

    return apply


def _central_crop(target: Target, rounding: str = "floor") -> ImageOp:
    half = lookup({"floor": np.floor, "half_even": np.rint}, rounding, "central_crop: rounding")

    def apply(image_HxWxC: np.ndarray) -> np.ndarray:
        sides = image_HxWxC.shape[:2]
        kept = [min(side, wanted) for side, wanted in zip(sides, target, strict=False)]
        y, x = (int(half((side - part) / 2)) for side, part in zip(sides, kept, strict=True))
        return image_HxWxC[y : y + kept[0], x : x + kept[1]]

    return apply


def _resize_by_memory(target: Target) -> ImageOp:
    return lambda image_HxWxC: resize_in_memory(image_HxWxC, target)


def _crop_by_memory(target: Target) -> ImageOp:
    return _central_crop(target)


PIL_OPS: dict[str, Callable[..., ImageOp]] = {
    "decode": _same,
    "resize": _resize,
    "resize_small": _resize_small,
    "central_crop": _central_crop,
}
EVAL_OPS: dict[str, dict[str, Callable[..., ImageOp]]] = {  # by data.loader
    "tfdata": PIL_OPS,
    "pil": PIL_OPS,
    "memory": {"resize": _resize_by_memory, "central_crop": _crop_by_memory},
}
