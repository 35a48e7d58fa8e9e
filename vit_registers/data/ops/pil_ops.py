"""The operations of evaluation without TensorFlow, on single images: data.loader='pil'.

PIL's methods give the pixels of resize.py and crops.py bit for bit; others differ by one level at most.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from vit_registers.config import lookup
from vit_registers.data.ops.strings import Target, build
from vit_registers.errors import ConfigError

ImageOp = Callable[[np.ndarray], np.ndarray]  # image_HxWxC -> image_HxWxC, uint8
_Resize = Callable[[np.ndarray, int, int], np.ndarray]  # image_HxWxC, height, width


def _pil(filter: Image.Resampling) -> _Resize:
    def apply(image_HxWxC: np.ndarray, height: int, width: int) -> np.ndarray:
        channels = image_HxWxC.shape[-1]
        image = Image.fromarray(image_HxWxC[..., 0] if channels == 1 else image_HxWxC)
        # One axis after the other, because Pillow 13 chooses which comes first.
        image = image.resize((width, image.height), filter).resize((width, height), filter)
        return np.asarray(image).reshape(height, width, channels)

    return apply


def _weighted(weights: Callable[[int, int], np.ndarray]) -> _Resize:
    """Resizing by weights(size, out)[out, size] along each axis, truncated to integers."""

    def apply(image_HxWxC: np.ndarray, height: int, width: int) -> np.ndarray:
        rows, columns = weights(image_HxWxC.shape[0], height), weights(image_HxWxC.shape[1], width)
        image = np.einsum("yh,hwc->ywc", rows, image_HxWxC.astype(np.float64), optimize=True)
        image = np.einsum("xw,ywc->yxc", columns, image, optimize=True)
        return (image + 1e-4).astype(np.uint8)  # sums of exact levels may be slightly below them

    return apply


def _area_weights(size: int, out: int) -> np.ndarray:
    """The share of each source pixel in the interval of each target pixel."""
    edges, place = np.arange(out + 1) * size / out, np.arange(size)
    overlap = np.minimum(edges[1:, None], place + 1) - np.maximum(edges[:-1, None], place)
    return np.maximum(overlap, 0.0) * out / size


def _bilinear_weights(size: int, out: int) -> np.ndarray:
    """Linear interpolation between the two nearest pixel centres, without antialiasing."""
    center = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1)
    return np.maximum(1.0 - np.abs(center[:, None] - np.arange(size)), 0.0)


_METHODS: dict[str, _Resize] = {
    "area": _weighted(_area_weights),
    "bilinear": _weighted(_bilinear_weights),
    "pil_bilinear": _pil(Image.Resampling.BILINEAR),
    "pil_bicubic": _pil(Image.Resampling.BICUBIC),
}


def _resize_small(target: Target, size: int, method: str = "area") -> ImageOp:
    if size < 1:
        raise ConfigError(f"resize_small: size={size}: must be >= 1")
    resize_image = lookup(_METHODS, method, "resize_small: method")

    def apply(image_HxWxC: np.ndarray) -> np.ndarray:
        height, width = image_HxWxC.shape[:2]
        short = min(height, width)
        if method.startswith("pil_"):
            return resize_image(image_HxWxC, height * size // short, width * size // short)
        scale = np.float32(size / short)
        sides = (int(np.round(np.float32(side) * scale)) for side in (height, width))
        return resize_image(image_HxWxC, *sides)

    return apply


def _resize(target: Target, method: str = "bilinear") -> ImageOp:
    resize_image = lookup(_METHODS, method, "method")
    return lambda image_HxWxC: resize_image(image_HxWxC, target.height, target.width)


def _central_crop(target: Target, rounding: str = "floor") -> ImageOp:
    half = lookup({"floor": np.floor, "half_even": np.round}, rounding, "central_crop: rounding")

    def apply(image_HxWxC: np.ndarray) -> np.ndarray:
        sides = np.array(image_HxWxC.shape[:2])
        size = np.minimum(sides, (target.height, target.width))
        top, left = half((sides - size) / 2).astype(int)
        return image_HxWxC[top : top + size[0], left : left + size[1]]

    return apply


PIL_OPS: dict[str, Callable[..., ImageOp]] = {
    "resize_small": _resize_small,
    "resize": _resize,
    "central_crop": _central_crop,
}


def compose_pil(text: str, target: Target, *, where: str) -> ImageOp:
    """The function image_HxWxC -> image_HxWxC (uint8) that an operation string describes.

    The result has the size of the target, unless the string does not resize. Raises ConfigError, which names
    the setting `where`, for operations other than PIL_OPS.
    """
    ops = [op for _, op in build(text, PIL_OPS, target, where=where)]

    def apply(image_HxWxC: np.ndarray) -> np.ndarray:
        for op in ops:
            image_HxWxC = op(image_HxWxC)
        return image_HxWxC

    return apply
