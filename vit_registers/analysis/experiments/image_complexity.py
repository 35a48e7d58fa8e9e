"""image-complexity: whether images with more detail have more outliers, and use registers more. No JAX."""

import io
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image
from scipy import ndimage, stats

from vit_registers.analysis.experiments.experiment import CAUSES, Experiment
from vit_registers.analysis.measures.correlation import FEWEST_VALUES, Correlation, pearson, spearman
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.colors import GREY, color_of
from vit_registers.analysis.report.figures import (
    legend_above,
    legend_name,
    new_axes,
    overlay,
)
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject, in_parts

MEASURES = ("JPEG bytes", "entropy", "edges")
_OUTLIERS, _LARGEST = "outliers", "largest patch norm"
_TO_REGISTERS = {group: f"attention of {group} to registers" for group in ("cls", "patches")}
_PAIRS = [
    (trait, measure) for trait in (_OUTLIERS, _LARGEST, *_TO_REGISTERS.values()) for measure in MEASURES
]  # in the order of the picture
_TABLE = "Correlation with image complexity"
_QUALITY = 90
_ROW_INCHES = 0.21  # of a line of the picture of correlations, at least


class _Drawn(NamedTuple):
    """What the pictures show of a model."""

    bytes_B: np.ndarray
    outliers_B: np.ndarray
    ranks: dict[tuple[str, str], Correlation]  # by what correlates with what


def complexity(image_HxWxC: np.ndarray) -> tuple[float, float, float]:
    """MEASURES of a uint8 image of one channel or three.

    The bytes of a JPEG of quality 90; the entropy of the histogram of its grey levels, in bits; the mean
    magnitude of the Sobel gradient of the grey levels, per pixel.
    """
    image = Image.fromarray(image_HxWxC.squeeze(axis=-1) if image_HxWxC.shape[-1] == 1 else image_HxWxC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    grey_HxW = np.asarray(image.convert("L"), np.float64)
    counts = np.bincount(grey_HxW.astype(np.uint8).ravel(), minlength=256)
    entropy = float(stats.entropy(counts, base=2))
    edges = float(np.hypot(ndimage.sobel(grey_HxW, 0), ndimage.sobel(grey_HxW, 1)).mean())
    return float(file.tell()), entropy, edges


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    images = subject.store.read("image_HxWxC")
    if len(images) < FEWEST_VALUES:
        return Gap(f"{subject.name}: a correlation needs {FEWEST_VALUES} images or more, not {len(images)}")
    parts = [complexity(image) for part in in_parts(len(images)) for image in np.asarray(images[part])]
    complexity_BxM = np.array(parts)
    details = dict(zip(MEASURES, complexity_BxM.T, strict=True))
    traits = {name: value_B[: len(images)] for name, value_B in _traits(subject, options.rule).items()}
    gaps = [
        f"{subject.name}: '{name}' is the same for all images, so nothing correlates with it"
        for name, value_B in (traits | details).items()
        if np.ptp(value_B) == 0
    ]
    ranks, rows = {}, []
    for trait, value_B in traits.items():
        for measure, detail_B in details.items():
            if np.ptp(value_B) == 0 or np.ptp(detail_B) == 0:
                continue
            rank, linear = spearman(detail_B, value_B), pearson(detail_B, value_B)
            ranks[trait, measure] = rank
            rows.append((trait, measure, *rank, *linear, len(images)))
    if not ranks:
        return Gap(gaps[0])
    (trait, measure), strongest = max(ranks.items(), key=lambda item: abs(item[1].value))
    first = ranks.get((_OUTLIERS, MEASURES[0]))
    return Rows(
        tables={_TABLE: rows},
        text=f"{trait} and {measure} correlate most (rank correlation {_with_interval(strongest)})",
        compared=None if first is None else first.value,
        count=counted(len(images), "image"),
        values=_Drawn(complexity_BxM[:, 0], traits[_OUTLIERS], ranks),
        gaps=gaps,
    )


def _traits(subject: Subject, rule: str) -> dict[str, np.ndarray]:
    """What may depend on the detail of an image: a value for each image, by its name."""
    traits = {
        _OUTLIERS: subject.outliers(rule).is_outlier_BxP.sum(axis=1),
        _LARGEST: subject.patch_norms().max(axis=1),
    }
    groups = list(subject.layout.groups)
    if "registers" in groups:
        mass_BxGxG = np.asarray(subject.store.read("mass_LxGxG")[:, -1])
        for group, trait in _TO_REGISTERS.items():
            if group in groups:
                traits[trait] = mass_BxGxG[:, groups.index(group), groups.index("registers")]
    return traits


def _with_interval(one: Correlation) -> str:
    return f"{number(one.value)}, 95 % interval {number(one.low)} to {number(one.high)}"


def _draw(found: Found) -> Pictures:
    yield Picture(
        name="complexity",
        caption="Outliers in an image by its bytes as JPEG, a point for each image.",
        figure=overlay(found, _points),
    )
    pairs = [pair for pair in _PAIRS if any(pair in one.values.ranks for one in found)]
    lines = len(pairs) + len({trait for trait, _ in pairs})
    row_inches = max(_ROW_INCHES, 0.06 + 0.07 * len(found))
    figure, axes = new_axes(0.9 + row_inches * lines)
    axes.set_position((0.27, 0.45 / figure.get_figheight(), 0.7, 1 - 0.6 / figure.get_figheight()))
    heights = _draw_names(axes, pairs)
    slot = 0.6 / len(found)
    for place, one in enumerate(found):
        given = [pair for pair in pairs if pair in one.values.ranks]
        ranks = [one.values.ranks[pair] for pair in given]
        at = [heights[pair] + slot * (place - (len(found) - 1) / 2) for pair in given]
        errors = np.array([[r.value - r.low, r.high - r.value] for r in ranks]).reshape(-1, 2).T
        axes.errorbar(
            [rank.value for rank in ranks],
            at,
            xerr=np.maximum(errors, 0.0),
            fmt="o",
            ms=3.5,
            capsize=2,
            lw=1.0,
            color=color_of(one.place),
            label=legend_name(one.name),
        )
    legend_above(axes)
    caption = (
        "Rank correlation of each trait (in bold) with the measures of detail below it; bars are 95 % "
        "intervals. Right of 0: more in images with more detail."
    )
    yield Picture(name="complexity-correlations", caption=caption, figure=figure)


def _draw_names(axes: Axes, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Writes a line for each trait and, below it, one for each measure; returns their heights."""
    heights: dict[tuple[str, str], float] = {}
    y, shown = 0.0, None
    for trait, measure in pairs:
        if trait != shown:
            axes.text(
                -0.36, y, trait, transform=axes.get_yaxis_transform(), fontsize=8, weight="bold", va="center"
            )
            shown, y = trait, y + 1
        heights[trait, measure] = y
        y += 1
    axes.spines["left"].set_visible(False)  # it would cross the names of traits
    axes.tick_params(axis="y", length=0)
    axes.axvline(0.0, color=GREY, lw=0.8)
    axes.set_yticks(list(heights.values()), [measure for _, measure in heights], fontsize=8)
    axes.set(xlim=(-1.02, 1.02), ylim=(y - 0.4, -0.6), xlabel="Spearman's rank correlation")
    axes.grid(alpha=0.3, axis="x")
    return heights


def _points(axes: Axes, values: _Drawn, color: str, name: str) -> None:
    axes.plot(values.bytes_B, values.outliers_B, "o", ms=3, alpha=0.4, color=color, label=legend_name(name))
    axes.set(xlabel="bytes as JPEG", ylabel="outliers in the image")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


EXPERIMENT = Experiment(
    question="Do images with more detail have more outliers, and is more attention given to registers?",
    answers=CAUSES,
    definition=lambda options: (
        "Correlation over images, by ranks (Spearman) and linear (Pearson), with 95 % intervals by Fisher's "
        "transformation and p values for no correlation (several are tested, so some are small by chance). "
        "Detail is measured on the pixels that the model is shown, not on the file, whose size depends on "
        f"its quality and on what is cropped: the bytes as a JPEG of quality {_QUALITY}, the entropy of the "
        "grey levels in bits, the mean magnitude of the Sobel gradient of the grey levels. Outliers are "
        f"patches after the last block by {options.rule}; attention is that of the last block to all "
        "registers together, mean over heads, of cls and as the mean over patches. Nothing is run again: all "
        "values are from stored features."
    ),
    tables={
        _TABLE: "model | of | with | Spearman | low | high | p | Pearson | Pearson low | Pearson high"
        " | Pearson p | images"
    },
    measure=_measure,
    features=("norms_LxT", "image_HxWxC", "mass_LxGxG"),
    draw=_draw,
    compares="rank correlation of outliers and JPEG bytes",
)
