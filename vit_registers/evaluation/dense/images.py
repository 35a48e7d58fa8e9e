"""Images and labels on the host: resizing without antialiasing, and distortion of colors, as in mmseg."""

import numpy as np
from PIL import Image

_EXTENT = Image.Transform.EXTENT
_BRIGHTNESS, _CONTRAST, _SATURATION = 32.0, (0.5, 1.5), (0.5, 1.5)
_HUE_DEGREES = 36.0  # 18 of the 180 hues of OpenCV


def size_of_short_side(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """(height, width) when the short side is `short_side` px and the aspect is kept, rounded half up."""
    scale = short_side / min(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def resize_and_cut(
    array_HxWxC: np.ndarray, size: tuple[int, int], top_left: tuple[int, int], part: tuple[int, int]
) -> np.ndarray:
    """The part, (height, width) at (top, left), of an image or of labels resized to `size`.

    Images, uint8 HxWxC, are resized by bilinear interpolation between pixel centres, without antialiasing.
    Labels, HxW of any type, get the nearest pixel. Only the part is computed.
    """
    (height, width), (top, left) = array_HxWxC.shape[:2], top_left
    if size == (height, width):
        return array_HxWxC[top : top + part[0], left : left + part[1]]
    if array_HxWxC.ndim == 2:
        rows = ((np.arange(top, top + part[0]) + 0.5) * (height / size[0])).astype(np.int64)
        columns = ((np.arange(left, left + part[1]) + 0.5) * (width / size[1])).astype(np.int64)
        return array_HxWxC[np.minimum(rows, height - 1)][:, np.minimum(columns, width - 1)]
    y, x = height / size[0], width / size[1]
    box = (left * x, top * y, (left + part[1]) * x, (top + part[0]) * y)
    channels = array_HxWxC.shape[2]
    image = Image.fromarray(array_HxWxC[..., 0] if channels == 1 else array_HxWxC)
    resized = image.transform((part[1], part[0]), _EXTENT, box, Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(*part, channels)


def resized(array_HxWxC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The whole image, or all labels, as `resize_and_cut` resizes them."""
    return resize_and_cut(array_HxWxC, size, (0, 0), size)


def distorted(image_HxWxC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The photometric distortion of mmseg, each change with probability 0.5 and rounded to 8 bits.

    Brightness by up to 32 levels; contrast by 0.5 to 1.5, second or last; saturation by 0.5 to 1.5 and hue by
    up to 36 degrees, both of images with colors.
    """
    has_brightness, is_contrast_early, has_contrast, has_saturation, has_hue = rng.random(5) < 0.5
    brightness = rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)
    contrast, saturation = rng.uniform(*_CONTRAST), rng.uniform(*_SATURATION)
    hue = rng.uniform(-_HUE_DEGREES, _HUE_DEGREES)
    if has_brightness:
        image_HxWxC = _levels(image_HxWxC + np.float32(brightness))
    if has_contrast and is_contrast_early:
        image_HxWxC = _levels(image_HxWxC * np.float32(contrast))
    if image_HxWxC.shape[2] == 3 and (has_saturation or has_hue):
        hsv_HxWx3 = np.array(Image.fromarray(image_HxWxC).convert("HSV"))
        if has_saturation:
            hsv_HxWx3[..., 1] = _levels(hsv_HxWx3[..., 1] * np.float32(saturation))
        if has_hue:
            hsv_HxWx3[..., 0] += np.uint8(round(float(hue) * 256 / 360) % 256)  # modulo 256: the circle
        image_HxWxC = np.asarray(Image.fromarray(hsv_HxWx3, "HSV").convert("RGB"))
    if has_contrast and not is_contrast_early:
        image_HxWxC = _levels(image_HxWxC * np.float32(contrast))
    return image_HxWxC


def _levels(x: np.ndarray) -> np.ndarray:
    return np.clip(x, 0, 255).astype(np.uint8)
