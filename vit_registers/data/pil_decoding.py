"""Decoding by PIL, which defines the pixels of every format. No TensorFlow.

The tf.data loader decodes plain JPEG and PNG with TensorFlow, to the same pixels, and the rest with PIL.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

# PIL's limit, above which it raises DecompressionBombError. From half of it on it warns, which is ignored.
MAX_PIXELS = 2 * 89_478_485
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# PIL also reads formats that start other programs (EPS) or that depend on its build.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_PNG_END = b"\0\0\0\0IEND\xaeB\x60\x82"
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"


class BrokenImageError(Exception):
    """Bytes that are no image, or an image without defined 8-bit pixels. str() is the reason, if known."""


def decode_image(data: bytes, *, channels: int) -> np.ndarray:
    """The pixels of an encoded image, uint8 [height, width, channels], where channels is 1 or 3.

    An animation gives its first frame. Alpha is dropped, 16-bit values lose their low byte, as by libpng, and
    palettes are looked up. The grey of colours is the luma of ITU-R 601; for JPEG it is the Y plane, before
    chroma is added and clipped. A rotation in EXIF is not applied, as in torchvision's ImageFolder; PIL
    applies that of TIFF, where it is part of the format. Raises BrokenImageError.
    """
    with _opened(io.BytesIO(data)) as image:
        _check_end(data, image)
        if channels == 1 and image.format in ("JPEG", "MPO"):
            image.draft("L", image.size)
        return _pixels(image, channels)


def pixels_of(image: Image.Image, *, channels: int) -> np.ndarray:
    """The pixels of an opened image as `decode_image` gives them. Raises BrokenImageError."""
    try:
        return _pixels(image.copy(), channels)
    except BrokenImageError:
        raise
    except Exception:  # of damaged bytes, which are decoded here
        raise BrokenImageError from None


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    image.load()
    if 0 in image.size:
        raise BrokenImageError("it has no pixels")
    image_HxWxC = np.asarray(_to_8_bits(image).convert("L" if channels == 1 else "RGB"))
    return image_HxWxC.reshape(*image_HxWxC.shape[:2], channels)


def read_size(source: bytes | Path) -> tuple[int, int]:
    """(width, height) of an encoded image, from its header. Raises OSError and BrokenImageError."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    with file, _opened(file) as image:
        return image.size


@contextlib.contextmanager
def _opened(file: BinaryIO) -> Iterator[Image.Image]:
    """The opened image. All errors, those of the block included, become BrokenImageError."""
    try:
        with Image.open(file, formats=_FORMATS) as image:
            yield image
    except BrokenImageError:
        raise
    except Image.UnidentifiedImageError:
        raise BrokenImageError(f"it is in none of the formats {', '.join(_FORMATS)}") from None
    except Image.DecompressionBombError:
        raise BrokenImageError(f"it has more than {MAX_PIXELS:,} pixels") from None
    except Exception:  # PIL raises many types for damaged bytes: OSError, SyntaxError, struct.error ...
        raise BrokenImageError from None


def _check_end(data: bytes, image: Image.Image) -> None:
    """Raises BrokenImageError for damage at the end, which TensorFlow detects and PIL does not."""
    if image.format == "PNG":
        with Image.open(io.BytesIO(data), formats=("PNG",)) as again:
            again.verify()  # checks the checksums; the image cannot be loaded afterwards
        is_whole = _PNG_END in data
    elif image.format == "JPEG" and image.mode == "L":
        # libjpeg does not require the last byte of the marker
        is_whole = data.find(_JPEG_END, data.rfind(_JPEG_SCAN)) >= 0 or data.endswith(_JPEG_END[:1])
    else:
        return
    if not is_whole:
        raise BrokenImageError("its end is missing")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """The image in a mode that PIL converts to 8-bit grey or RGB without clipping."""
    # otherwise convert() changes pixels or warns; alpha is dropped in any case
    image.info.pop("transparency", None)
    is_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if is_16_bits:  # convert() would clip to 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit or signed integers"
        raise BrokenImageError(f"its pixels are {kind}, whose range is not known")
    return image
