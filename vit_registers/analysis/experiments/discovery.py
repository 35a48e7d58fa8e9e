"""Objects found by LOST, and how often they are right."""

import dataclasses
import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from vit_registers.analysis.lost import Cell, Discovery, corloc, summarize, sweep
from vit_registers.analysis.section import Picture, Section, Table
from vit_registers.analysis.subject import Options, Subject
from vit_registers.data.boxes import BoxImage, read_image

_MAX_PATCHES = 4096
_BIASES = (0.0, 0.05, -0.05, -0.1, -0.2, -0.4)


def discovery(subjects: list[Subject], options: Options) -> Section:
    """CorLoc of LOST for queries, keys and values of the last block, with all that can be varied."""
    section = Section(
        definition="LOST on images of their own size, padded to whole patches: queries, keys and values of "
        "the last block, as they are or centred over patches and normalised, with a bias on all "
        "similarities. CorLoc is the share of images whose box has an IoU of 0.5 or more with a true one. "
        "The best cell was chosen on the images that it is judged by; the row without sweep is LOST as "
        "published, on keys."
    )
    if not options.boxes:
        section.gaps.append(
            "no images with boxes were given: --boxes=DIR of PASCAL VOC, or NAME:SPLIT of TFDS"
        )
        return section
    rows, every = [], []
    for subject in subjects:
        found, examples, is_shrunk = _sweep(subject, options)
        if is_shrunk:
            section.gaps.append(f"{subject.name}: images were shrunk to {_MAX_PATCHES} patches")
        truths = [record.box_xyxy_px for record in options.boxes]
        table = {cell: corloc(boxes, truths) for cell, boxes in found.items()}
        best = summarize(table, feature="k")
        for name, cell in (("best of the sweep", best.best), ("no sweep", best.no_sweep)):
            rows.append((subject.name, name, *_row(cell, table)))
        every += [(subject.name, *_row(cell, table)) for cell in table]
        section.pictures.append(_picture(subject, options, examples[best.no_sweep]))
    columns = ("of", "centred", "normalised", "bias", "CorLoc, %", "images", "without boxes")
    section.tables += [
        Table(title="CorLoc", columns=("model", "cell", *columns), rows=rows),
        Table(title="All cells", columns=("model", *columns), rows=every),
    ]
    return section


def _row(cell: Cell, table: dict) -> tuple:
    one = table[cell]
    switches = ("yes" if on else "no" for on in (cell.use_center, cell.use_norm))
    return (cell.feature, *switches, cell.bias, float(one.percent), one.num_images, one.num_skipped)


def _sweep(
    subject: Subject, options: Options
) -> tuple[dict[Cell, list[np.ndarray]], dict[Cell, list[Discovery]], bool]:
    """(boxes of each cell for all images, discoveries for the first ones, whether any was shrunk)."""
    boxes: dict[Cell, list[np.ndarray]] = {}
    examples: dict[Cell, list[Discovery]] = {}
    is_shrunk = False
    for i, record in enumerate(options.boxes):
        native = read_image(record)
        image = _shrunk(native, subject.model.patch_size)
        is_shrunk |= image.shape != native.shape
        scale = np.tile(np.array(native.shape[1::-1]) / image.shape[1::-1], 2)
        features, grid = subject.native(image)
        cells = sweep(
            features,
            grid,
            patch_size_px=subject.model.patch_size,
            image_size_px=image.shape[:2],
            biases=_BIASES,
        )
        for cell, found in cells:
            boxes.setdefault(cell, []).append(found.box_xyxy_px * scale)
            if i < options.num_examples:
                box = found.box_xyxy_px * scale
                examples.setdefault(cell, []).append(dataclasses.replace(found, box_xyxy_px=box))
    return boxes, examples, is_shrunk


def _shrunk(image_HxWx3: np.ndarray, patch_size: int) -> np.ndarray:
    """The image, made smaller where it would have more than _MAX_PATCHES, whose squares have to be held."""
    height, width = image_HxWx3.shape[:2]
    factor = math.sqrt(_MAX_PATCHES * patch_size**2 / (height * width))
    if factor >= 1:
        return image_HxWx3
    size = max(int(width * factor), patch_size), max(int(height * factor), patch_size)
    return np.asarray(Image.fromarray(image_HxWx3).resize(size, Image.Resampling.BILINEAR))


def _picture(subject: Subject, options: Options, found: list[Discovery]) -> Picture:
    figure = Figure(figsize=(7.4, 1.9 * len(found) + 0.3), layout="constrained")
    titles = ("image", "degree", "seed's similarity", "expansion")
    grid = figure.subplots(len(found), 4, squeeze=False)
    for axes, record, one in zip(grid, options.boxes, found, strict=False):
        _draw(axes, read_image(record), record, one)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    return Picture(
        name=f"lost-{subject.name}",
        caption=f"{subject.name}, keys, no sweep: the box found (solid) and the true ones (dashed); the "
        "degree, lowest at the seed; the similarity to the seed; the sum over the expansion.",
        figure=figure,
    )


def _draw(grid: np.ndarray, image: np.ndarray, record: BoxImage, found: Discovery) -> None:
    grid[0].imshow(image)
    for box, style in ((found.box_xyxy_px, "-"), *((box, "--") for box in record.box_xyxy_px)):
        x0, y0, x1, y1 = box
        grid[0].add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ls=style, color="#f6e05e"))
    for axes, values in zip(grid[1:], (found.degree, found.seed_similarity, found.expansion), strict=True):
        axes.imshow(values, cmap="viridis")
        axes.plot(found.seed[1], found.seed[0], "r+")
    for axes in grid:
        axes.set(xticks=[], yticks=[])
