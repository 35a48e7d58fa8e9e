"""lost: objects found by LOST, and how often their boxes are right."""

import csv
import dataclasses
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image

from vit_registers.analysis.experiments.experiment import REGISTERS, SMALL, Experiment
from vit_registers.analysis.measures import lost
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.colors import GREY, ORANGE, RED, SIMILARITIES, color_of
from vit_registers.analysis.report.figures import STYLES, WIDTH, legend_above, new_axes, new_grid, set_titles
from vit_registers.analysis.report.headline import share_of_images
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, Value, counted, number
from vit_registers.analysis.subject import Subject
from vit_registers.data.sources.boxes import center_crop, read_image
from vit_registers.errors import ConfigError
from vit_registers.models.tokens import Grid

MAX_PATCHES = 4096
_FIXED_BIAS = 0.05  # of features that are centred and normalised, in "Registers in Small ViTs"
_MAX_SHOWN_PX = 480  # longer side of an image in the picture
_MAX_ASPECT = 2.5  # of a row of the picture, and 1 / it
_WHOLE = "whole image"  # as the box of every image, which needs no model
_FEATURES = {"q": "queries", "k": "keys", "v": "values"}
_COLUMNS = "of | block | centred | normalised | bias"
_SCORES = "CorLoc, % | seed in background | images | without boxes"
Cell = lost.SweepCell


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    if not options.boxes:
        return Gap("no images with boxes were given: --boxes=DIR of PASCAL VOC, or NAME:SPLIT of TFDS")
    if not any(len(record.box_xyxy_px) for record in options.boxes):
        return Gap(f"none of the {len(options.boxes)} images has a box: nothing can be judged")
    try:
        found = _sweep(subject, options)
    except ConfigError as error:  # such as a table of positions that cannot be resampled
        return Gap(f"{subject.name}: cannot be shown images of their own size: {error}")
    if not any(map(len, found.truths)):
        return Gap(f"no true box is left in the centre crops of {options.lost_size_px} px (--lost_size)")
    hits = {cell: lost.find_hits(boxes, found.truths) for cell, boxes in found.box_xyxy_px.items()}
    table = {cell: lost.count_hits(one, num_images=len(found.truths)) for cell, one in hits.items()}
    best, no_sweep = lost.summarize_sweep(table, feature="k", block=max(cell.block for cell in table))
    fixed = no_sweep._replace(use_center=True, use_norm=True, bias=_FIXED_BIAS)
    chosen = {"best of the sweep": best, "no sweep": no_sweep, "fixed bias": fixed}
    chosen |= {f"{name}, values": chosen[name]._replace(feature="v") for name in ("no sweep", "fixed bias")}
    chosen = {name: cell for name, cell in chosen.items() if cell in table}
    by_halves = lost.choose_by_halves(hits, first=no_sweep)
    halves = [
        (f"best of half {2 - i}, on half {1 + i}", *_settings(cell), one.percent, None, one.num_images, None)
        for i, (cell, one) in enumerate(by_halves)
    ]
    whole = lost.corloc(found.whole_xyxy_px, found.truths)
    trivial = (_WHOLE, *[None] * 5, whole.percent, None, whole.num_images, whole.num_skipped)
    apart = sum(one.num_hits for _, one in by_halves), sum(one.num_images for _, one in by_halves)
    return Rows(
        tables={
            "CorLoc": [
                *((name, *_row(cell, table, found)) for name, cell in chosen.items()),
                *halves,
                trivial,
            ],
            "All cells": [_row(cell, table, found) for cell in table],
        },
        text=f"LOST without a sweep has a CorLoc of {number(table[no_sweep].percent, '%')}, and "
        f"{number(table[best].percent, '%')} at the best of {len(table)} settings"
        + (f" ({number(100 * apart[0] / apart[1], '%')} if chosen on other images)" if by_halves else ""),
        compared=float(table[no_sweep].percent),
        count=f"{counted(table[no_sweep].num_images, 'image')} with boxes",
        values=(found.examples, _by_bias(table, no_sweep.block), whole.percent),
        headlines=[
            share_of_images("CorLoc of LOST, %", float(table[no_sweep].percent), table[no_sweep].num_images)
        ],
        gaps=_gaps(subject, options, found),
        files={
            f"boxes-{subject.name}.csv": _boxes_csv(found, chosen, [record.name for record in options.boxes])
        },
    )


class _Example(NamedTuple):
    """An image of the picture, with the object found in it."""

    image_HxWx3: np.ndarray  # may be made smaller
    size_px: Grid  # of the original image; all that follows is in its pixels
    cell_px: tuple[float, float]  # of a patch
    found: lost.Discovery
    box_xyxy_px: np.ndarray
    true_xyxy_px: np.ndarray


@dataclasses.dataclass(kw_only=True)
class _Found:
    """What LOST found in all images with one model, by cell."""

    box_xyxy_px: dict[Cell, np.ndarray] = dataclasses.field(default_factory=dict)  # int [images, 4]
    num_fallbacks: Counter[Cell] = dataclasses.field(default_factory=Counter)
    examples: list[_Example] = dataclasses.field(default_factory=list)  # the first images, without a sweep
    truths: list[np.ndarray] = dataclasses.field(default_factory=list)  # of each image, float [n, 4]
    whole_xyxy_px: list[np.ndarray] = dataclasses.field(default_factory=list)  # each image as a box [4]
    num_outside: int = 0  # true boxes that are not in the centre crop
    num_shrunk: int = 0
    num_over_edge: int = 0  # images with a true box that is not all inside


def _sweep(subject: Subject, options: Options) -> _Found:
    found, total, patch_size = _Found(), len(options.boxes), subject.model.patch_size
    for i, record in enumerate(options.boxes):
        native, boxes = read_image(record), record.box_xyxy_px
        if options.lost_size_px is not None:
            native, boxes = center_crop(native, boxes, options.lost_size_px)
            found.num_outside += len(record.box_xyxy_px) - len(boxes)
        image = few_patches(native, patch_size)
        native_px, size_px = native.shape[:2], image.shape[:2]
        found.num_shrunk += size_px != native_px
        found.truths.append(boxes)
        height, width = native_px
        found.whole_xyxy_px.append(np.array([0, 0, width, height]))
        found.num_over_edge += bool((boxes[:, :2] < 0).any() or (boxes[:, 2:] > (width, height)).any())
        features, grid = subject.native(image, options.num_blocks)
        shown = Cell("k", max(block for _, block in features), use_center=False, use_norm=False, bias=0.0)
        cells = lost.sweep_cells(
            features, grid, patch_size_px=patch_size, image_size_px=size_px, biases=options.lost_biases
        )
        for cell, one in cells:
            if cell not in found.box_xyxy_px:
                found.box_xyxy_px[cell] = np.zeros((total, 4), np.int32)
            box = found.box_xyxy_px[cell][i] = _scaled(one.box_xyxy_px, size_px, native_px)
            found.num_fallbacks[cell] += one.is_fallback
            if i < options.num_examples and cell == shown:
                small = Image.fromarray(native)
                small.thumbnail((_MAX_SHOWN_PX, _MAX_SHOWN_PX))
                cell_px = patch_size * native_px[0] / size_px[0], patch_size * native_px[1] / size_px[1]
                example = _Example(np.asarray(small), native_px, cell_px, one, box, boxes)
                found.examples.append(example)
        subject.progress("lost", i + 1, total)
    return found


def few_patches(image_HxWx3: np.ndarray, patch_size: int) -> np.ndarray:
    """The image, made smaller where it has more than MAX_PATCHES: memory grows with their square."""
    sides = image_HxWx3.shape[:2]
    rows, columns = (-(-side // patch_size) for side in sides)
    if rows * columns <= MAX_PATCHES:
        return image_HxWx3
    factor = math.sqrt(MAX_PATCHES / (rows * columns))
    rows = min(max(int(rows * factor), 1), MAX_PATCHES)
    columns = min(max(int(columns * factor), 1), MAX_PATCHES // rows)
    height, width = (min(side, n * patch_size) for side, n in zip(sides, (rows, columns), strict=True))
    return np.asarray(Image.fromarray(image_HxWx3).resize((width, height), Image.Resampling.BILINEAR))


def _scaled(box_xyxy_px: np.ndarray, size_px: Grid, native_px: Grid) -> np.ndarray:
    """The box of an image of `size_px` in whole pixels of one of `native_px`, rounded outward."""
    size_2, native_2 = np.array(size_px[::-1]), np.array(native_px[::-1])
    low = box_xyxy_px[:2] * native_2 // size_2
    high = -(-box_xyxy_px[2:] * native_2 // size_2)
    return np.concatenate([low, high])


def _gaps(subject: Subject, options: Options, found: _Found) -> list[str]:
    total, num_blocks = len(options.boxes), len({cell.block for cell in found.box_xyxy_px})
    blocks = f"the model has {num_blocks} of the {options.num_blocks} blocks asked for"
    shrunk = f"{found.num_shrunk} of {total} images had to be shrunk to {MAX_PATCHES} patches"
    over_edge = (
        f"{found.num_over_edge} of {total} images: a true box goes over the edge of the image; it is not "
        "changed (VOC counts pixels from 1)"
    )
    gaps = [f"{subject.name}: {blocks}"] if num_blocks < options.num_blocks else []
    gaps += [f"{subject.name}: {shrunk}"] if found.num_shrunk else []
    outside = f"{found.num_outside} true boxes lie outside of the centre crop"
    gaps += [f"{outside} of {options.lost_size_px} px, and are left out"] if found.num_outside else []
    return gaps + ([over_edge] if found.num_over_edge else [])


def _row(cell: Cell, table: Mapping[Cell, lost.CorLoc], found: _Found) -> tuple[Value, ...]:
    one = table[cell]
    counts = found.num_fallbacks[cell], one.num_images, one.num_skipped
    return (*_settings(cell), float(one.percent), *counts)


def _settings(cell: Cell) -> tuple[Value, ...]:
    switches = ("yes" if on else "no" for on in (cell.use_center, cell.use_norm))
    return (cell.feature, cell.block, *switches, cell.bias)


def _by_bias(table: Mapping[Cell, lost.CorLoc], block: int) -> dict[str, list[tuple[float, float]]]:
    """(bias, CorLoc) in ascending order by the name of a line, of the features of one block."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for cell, one in sorted(table.items(), key=lambda item: item[0].bias):
        if cell.block == block and cell.use_center == cell.use_norm:
            name = f"{_FEATURES[cell.feature]}, {'normalised' if cell.use_norm else 'raw'}"
            lines.setdefault(name, []).append((cell.bias, one.percent))
    return lines


def _boxes_csv(found: _Found, chosen: Mapping[str, Cell], names: Sequence[str]) -> str:
    """A line per image and cell; the last two columns are empty for images without a true box."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("image", "cell", "xmin", "ymin", "xmax", "ymax", "iou", "hit"))
    for i, (name, truths) in enumerate(zip(names, found.truths, strict=True)):
        for title, cell in chosen.items():
            box = found.box_xyxy_px[cell][i]
            best = float(lost.iou(box, truths).max()) if len(truths) else None
            hit = None if best is None else int(best >= lost.HIT_IOU)
            lines.writerow((name, title, *box.tolist(), best, hit))
    return text.getvalue()


def _draw(found: Found) -> Pictures:
    for one in found:
        examples, by_bias, whole = one.values
        aspects = [example.size_px[0] / example.size_px[1] for example in examples]
        heights = [min(max(aspect, 1 / _MAX_ASPECT), _MAX_ASPECT) for aspect in aspects]
        figure, grid = new_grid(len(heights), 4, (WIDTH, WIDTH / 4 * sum(heights) + 0.3), heights=heights)
        for row, example in zip(grid, examples, strict=True):
            _draw_example(row, example)
        set_titles(grid[0], ("image", "degree", "seed's similarity", "expansion"))
        caption = (
            f"{one.name}, keys, no sweep: the box found (solid) and the true ones (dashed); the degree, "
            "lowest at the seed (cross); the similarity to the seed; the sum over the expansion."
        )
        yield Picture(name=f"lost-{one.name}", caption=caption, figure=figure)
        if any(len(points) > 1 for points in by_bias.values()):
            yield _bias_picture(one.name, by_bias, whole)


def _bias_picture(model: str, by_bias: Mapping[str, Sequence[tuple[float, float]]], whole: float) -> Picture:
    figure, axes = new_axes()
    axes.axhline(whole, color=GREY, ls=":", lw=1, label=_WHOLE)
    for i, (name, points) in enumerate(sorted(by_bias.items())):
        axes.plot(
            *zip(*points, strict=True), STYLES[i % 2], marker="o", ms=3, color=color_of(i // 2), label=name
        )
    axes.set(xlabel="bias", ylabel="CorLoc, %", ylim=(0, None))
    legend_above(axes)
    caption = (
        f"{model}: CorLoc by the bias of all similarities, last block. Normalised: centred over the patches "
        "and divided by their norms; raw: products of the features. Dotted: the whole image as the box."
    )
    return Picture(name=f"biases-{model}", caption=caption, figure=figure)


def _draw_example(row: np.ndarray, example: _Example) -> None:
    (height, width), (cell_y, cell_x), found = example.size_px, example.cell_px, example.found
    rows, columns = found.mask.shape
    row[0].imshow(example.image_HxWx3, extent=(0, width, height, 0))
    boxes = [(example.box_xyxy_px, "-"), *((box, "--") for box in example.true_xyxy_px)]
    for (x0, y0, x1, y1), style in boxes:
        for color, lw in (("white", 2.4), (ORANGE, 1.2)):
            outline = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ls=style, lw=lw, color=color)
            row[0].add_patch(outline)
    for axes, values in zip(row[1:], (found.degree, found.seed_similarity, found.expansion), strict=True):
        axes.imshow(values, cmap=SIMILARITIES, extent=(0, columns * cell_x, rows * cell_y, 0))
        axes.plot((found.seed[1] + 0.5) * cell_x, (found.seed[0] + 0.5) * cell_y, "+", color=RED)
    for axes in row:
        axes.set(xlim=(0, width), ylim=(height, 0))


def _define(options: Options) -> str:
    side = options.lost_size_px
    images = "images of their own size, padded to whole patches"
    if side is not None:
        images = (
            f"a square of {side} px, as in {SMALL}: the short side is resized to {side} px and the centre "
            "cropped; boxes are in its pixels, and true boxes end at its edge"
        )
    return (
        f"LOST on {images}: queries, keys and values of the last blocks (--lost_blocks), unchanged or "
        "centred over patches and normalised, with a bias on all similarities (--lost_biases). CorLoc is "
        "the share of images whose box has an IoU of 0.5 or more with a true one. The best cell of the "
        "sweep was chosen on the images that it is judged by. The rows of halves were chosen on one half of "
        "the images with boxes, drawn at random with a fixed seed, and judged on the other. The rows without "
        "sweep are LOST as published, on the raw products of keys or values of the last block, without a "
        f"bias; those of a fixed bias are centred and normalised with a bias of {_FIXED_BIAS}, the only "
        f"setting of {SMALL}. The whole image as the box is what LOST has to exceed. Where the seed itself "
        "is background, as a negative bias can have it, its patch is the box. The boxes of all rows but "
        "those of halves are in boxes-MODEL.csv."
    )


EXPERIMENT = Experiment(
    question="Can objects be found without labels?",
    answers=f"{REGISTERS}, table 3, figures 13 and 14; {SMALL}, table 1; arXiv:2506.08010, table 5",
    definition=_define,
    tables={
        "CorLoc": f"model | cell | {_COLUMNS} | {_SCORES}",
        "All cells": f"model | {_COLUMNS} | {_SCORES}",
    },
    measure=_measure,
    runs_model=True,
    draw=_draw,
    compares="CorLoc without a sweep, %",
)
