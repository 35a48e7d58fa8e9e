"""background-variance: how much patches vary inside and outside of objects' boxes, and what outliers add."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from vit_registers.analysis.experiments.experiment import SEVERITY, Experiment
from vit_registers.analysis.experiments.lost import MAX_PATCHES, few_patches
from vit_registers.analysis.measures.background import REGIONS, Cells, RegionSums, cells_of_boxes
from vit_registers.analysis.measures.outliers import find
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import grouped_bars, legend_above, new_axes
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number, percent
from vit_registers.analysis.subject import Subject
from vit_registers.data.sources.boxes import BoxImage, read_image
from vit_registers.errors import ConfigError

_ALL, _WITHOUT = "all patches", "without outliers"
_VARIANCE, _OUTLIERS = "Variance inside and outside of boxes", "Outliers inside and outside of boxes"


class _Seen(NamedTuple):
    """The patches of an image whose centres are in it."""

    feature_PxD: np.ndarray
    is_inside_P: np.ndarray
    is_shrunk: bool


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    if not options.boxes:
        return Gap("no images with boxes were given: --boxes=DIR of PASCAL VOC, or NAME:SPLIT of TFDS")
    records = [record for record in options.boxes if len(record.box_xyxy_px)]
    if not records:
        return Gap(f"none of the {len(options.boxes)} images has a box: nothing can be judged")
    try:
        # Twice over the images: the features of all of them need not fit into memory, and which patches are
        # outliers depends on the norms of all.
        norms = [np.linalg.norm(seen.feature_PxD, axis=1) for seen in _look(subject, records, "norms")]
        found = find(np.concatenate(norms), options.rule).is_outlier_BxP
        is_outlier = np.split(found, np.cumsum([len(norm_P) for norm_P in norms])[:-1])
        sums = {(where, which): RegionSums() for where in REGIONS for which in (_ALL, _WITHOUT)}
        counts: dict[str, int] = dict.fromkeys(REGIONS, 0)
        num_shrunk = 0
        for seen, is_outlier_P in zip(_look(subject, records, "variances"), is_outlier, strict=True):
            num_shrunk += seen.is_shrunk
            for where, is_here_P in zip(REGIONS, (seen.is_inside_P, ~seen.is_inside_P), strict=True):
                sums[where, _ALL].add(seen.feature_PxD[is_here_P])
                sums[where, _WITHOUT].add(seen.feature_PxD[is_here_P & ~is_outlier_P])
                counts[where] += int((is_here_P & is_outlier_P).sum())
    except ConfigError as error:  # such as a table of positions that cannot be resampled
        return Gap(f"{subject.name}: cannot be shown images of their own size: {error}")
    return _rows(subject, options, sums, counts, len(records), num_shrunk)


def _look(subject: Subject, records: list[BoxImage], what: str) -> Iterator[_Seen]:
    """The patches that the last block leaves of each image, in order."""
    for i, record in enumerate(records):
        image = read_image(record)
        shown, native_px = few_patches(image, subject.model.patch_size), image.shape[:2]
        features, grid = subject.native(shown, 0)
        (feature_PxD,) = features.values()
        cell_px = [
            subject.model.patch_size * whole / used
            for whole, used in zip(native_px, shown.shape[:2], strict=True)
        ]
        cells: Cells = cells_of_boxes(record.box_xyxy_px, grid, (cell_px[0], cell_px[1]), native_px)
        is_image_P = cells.is_image_P
        yield _Seen(feature_PxD[is_image_P], cells.is_inside_P[is_image_P], shown.shape != image.shape)
        subject.progress(f"background-variance, {what}", i + 1, len(records))


def _rows(
    subject: Subject,
    options: Options,
    sums: Mapping[tuple[str, str], RegionSums],
    counts: Mapping[str, int],
    num_images: int,
    num_shrunk: int,
) -> Rows | Gap:
    results = {key: one.result() for key, one in sums.items()}
    empty = [where for where in REGIONS if not results[where, _ALL].num_patches]
    if empty:
        return Gap(f"{subject.name}: no patch has its centre {empty[0]} of the boxes")
    shares = {where: 100 * counts[where] / results[where, _ALL].num_patches for where in REGIONS}
    ratios = {
        which: _ratio(*(results[where, which].total for where in REGIONS)) for which in (_ALL, _WITHOUT)
    }
    num_without = len(options.boxes) - num_images
    gaps = []
    if num_without:
        gaps.append(f"{num_without} of {len(options.boxes)} images have no box and are left out")
    if num_shrunk:
        gaps.append(
            f"{subject.name}: {num_shrunk} of {num_images} images had to be shrunk to {MAX_PATCHES} patches"
        )
    if not sum(counts.values()):
        gaps.append(f"{subject.name}: no outliers by {options.rule}")
    images = num_images, num_without
    return Rows(
        tables={
            _VARIANCE: [
                (where, which, one.num_patches, one.total, one.within, percent(one.share))
                for (where, which), one in results.items()
            ],
            _OUTLIERS: [
                (where, results[where, _ALL].num_patches, counts[where], shares[where], *images)
                for where in REGIONS
            ],
        },
        text=f"the variance outside of boxes is {number(ratios[_ALL])} times that inside, and "
        f"{number(ratios[_WITHOUT])} without outliers, which are {number(shares['outside'], '%')} of the "
        f"patches outside and {number(shares['inside'], '%')} of those inside",
        compared=ratios[_ALL],
        count=f"{counted(num_images, 'image')} with boxes",
        values={f"{where}\n{which}": percent(one.share) for (where, which), one in results.items()},
        gaps=gaps,
    )


def _ratio(inside: float | None, outside: float | None) -> float | None:
    return outside / inside if inside and outside is not None else None


def _draw(found: Found) -> Pictures:
    figure, axes = new_axes(2.7)
    grouped_bars(axes, found, lambda one: one.values)
    axes.tick_params(axis="x", labelsize=7)
    axes.set(ylabel="variance / mean squared norm, %", ylim=(0, None))
    legend_above(axes)
    caption = (
        "Variance of the patches inside and outside of the boxes of objects, with and without outliers, as a "
        "share of their mean squared norm."
    )
    yield Picture(name="background-variance", caption=caption, figure=figure)


EXPERIMENT = Experiment(
    question="Do patches of the background vary more than those of objects, and is it the outliers?",
    answers=SEVERITY,
    definition=lambda options: (
        "Images with boxes (--boxes) in their own size, padded to whole patches as for lost. A patch is "
        "inside if its centre is in a box, of whatever class, and outside if it is in the image but in no "
        "box. Patches after the last block, before the final norm; outliers are those that "
        f"{options.rule} flags among all of these patches. Variance is the trace of the covariance, divided "
        "by the number of patches: around the mean of all patches of that kind (variance), which includes "
        "differences between images, and around their mean in each image (within images). Features of "
        "models differ in scale; variance / mean squared norm, from 0 to 100 %, does not. Images without a "
        "box are left out and counted."
    ),
    tables={
        _VARIANCE: "model | region | of | patches | variance | within images"
        " | variance / mean squared norm, %",
        _OUTLIERS: "model | region | patches | outliers | {rule}, % | images | images without boxes",
    },
    measure=_measure,
    runs_model=True,
    draw=_draw,
    compares="variance outside of boxes / inside",
)
