"""Pictures of predictions beside the truth, with a legend."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vit_registers.data.sources.dense import IGNORED, MAX_CLASSES

_LEAST_SIDE, _GAP, _TITLE, _LINE = 144, 6, 18, 16  # px
_MAX_LEGEND = 24
_NUM_SHOWN = 6  # images in a picture
_INK, _PAPER = (20, 20, 20), (255, 255, 255)


def shown_examples(number: int) -> list[int]:
    """The examples in the picture, spread over a split of `number`."""
    return sorted({i * number // _NUM_SHOWN for i in range(_NUM_SHOWN)} & {*range(number)})


def palette() -> np.ndarray:
    """The color of each class, uint8 [256, 3]: hues by the golden ratio at three lightnesses.

    Class 0 is dark grey and IGNORED is white, which no other class is.
    """
    colors = np.full((MAX_CLASSES + 1, 3), 255, np.uint8)
    for i in range(1, MAX_CLASSES):
        hue, lightness = (i * 0.61803398875) % 1, (0.5, 0.68, 0.34)[i % 3]
        colors[i] = np.round(255 * np.array(colorsys.hls_to_rgb(hue, lightness, 0.85)))
    colors[0] = (52, 52, 58)
    assert (colors[IGNORED] == 255).all()
    return colors


def side_by_side(
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], legend: Sequence[tuple[str, np.ndarray]] = ()
) -> np.ndarray:
    """uint8 HxWx3: images, uint8 HxWx3 of one size in a row, under their titles; then names with colors.

    Images with a short side below 144 px are enlarged by a whole factor, pixel by pixel.
    """
    enlarged = [[_enlarged(image) for image in row] for row in rows]
    width = max(sum(x.shape[1] + _GAP for x in row) + _GAP for row in enlarged)
    heights = [row[0].shape[0] + _GAP for row in enlarged]
    names = [*legend[:_MAX_LEGEND]]
    font = ImageFont.load_default()
    columns = max(width // 120, 1)
    legend_height = -(-len(names) // columns) * _LINE
    sheet = Image.new("RGB", (width, _TITLE + sum(heights) + legend_height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    y = _TITLE
    for number, (row, height) in enumerate(zip(enlarged, heights, strict=True)):
        x = _GAP
        for title, image in zip(titles, row, strict=True):
            if number == 0:
                draw.text((x, 2), title, fill=_INK, font=font)
            sheet.paste(Image.fromarray(image), (x, y))
            x += image.shape[1] + _GAP
        y += height
    for number, (name, color) in enumerate(names):
        x, top = _GAP + (number % columns) * 120, y + number // columns * _LINE
        draw.rectangle((x, top + 2, x + 11, top + 13), fill=tuple(map(int, color)), outline=_INK)
        shown = name.encode("latin-1", "replace").decode("latin-1")
        draw.text((x + 16, top + 1), shown[:16], fill=_INK, font=font)
    return np.asarray(sheet)


def _enlarged(image_HxWx3: np.ndarray) -> np.ndarray:
    factor = max(-(-_LEAST_SIDE // min(image_HxWx3.shape[:2])), 1)
    return image_HxWx3.repeat(factor, axis=0).repeat(factor, axis=1)
