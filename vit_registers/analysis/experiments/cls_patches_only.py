"""Whether what cls gets from patches points where all of it does. No JAX."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit_registers.analysis.experiments.attention_grids import mean_maps
from vit_registers.analysis.experiments.cls_sources import FULL, cls_parts
from vit_registers.analysis.measures.severity import cosine, summarize
from vit_registers.analysis.report.figures import BLUE, GREEN, ORANGE, wrapped
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject, in_parts

_COLORS = {"patches": BLUE, "registers": ORANGE, "summaries": GREEN}


def patches_only(subjects: list[Subject], options: Options) -> Result:
    """Whether what attention brings from patches, or from registers, points where all of it does."""
    result = Result(
        definition="Cosine between what the attention of cls brings in the last block from one token group, "
        "and from all of them (cls itself among them; without the bias of the projection and the skip "
        "connection). Where the cosine of patches is low, a map of attention over patches does not show what "
        "cls is made of."
    )
    rows = []
    figure = Figure(figsize=(4.0 * len(subjects) + 0.5, 3.0), layout="constrained")
    for axes, subject in zip(figure.subplots(1, len(subjects), squeeze=False)[0], subjects, strict=True):
        cosines = _cosines(subject)
        for part, cosine_B in cosines.items():
            summary = summarize(cosine_B)
            kept = cosine_B[~np.isnan(cosine_B)]
            if summary.num_undefined:
                result.gaps.append(
                    f"{subject.name}: nothing comes from {part} in {summary.num_undefined} images"
                )
            low, high = map(float, np.quantile(kept, [0.05, 0.95])) if len(kept) else (None, None)
            rows.append((subject.name, part, summary.mean, summary.std, low, summary.median, high))
        _draw_cosines(axes, cosines, subject.name)
        stored = len(subject.store.read("image_HxWxC"))
        if not np.isnan(cosines["patches"][:stored]).all():
            result.pictures.append(_lowest(subject, cosines["patches"], options.num_examples))
    columns = ("model", "part", "mean", "std", "5 %", "median", "95 %")
    result.tables.append(Table(title="Cosine with the attention's output", columns=columns, rows=rows))
    result.pictures.insert(0, Picture(name="cosines", caption="The cosine over images.", figure=figure))
    return result


def _cosines(subject: Subject) -> dict[str, np.ndarray]:
    """cosine_B with the full output of each token group but cls; NaN where a part is zero."""
    found: dict[str, list[np.ndarray]] = {}
    for images in in_parts(subject.store.num_read()):
        parts = cls_parts(subject, images)
        for name in parts.keys() - {FULL, "cls"}:
            found.setdefault(name, []).append(cosine(parts[name], parts[FULL]))
    return {name: np.concatenate(found[name]) for name in _COLORS if name in found}


def _draw_cosines(axes: Axes, cosines: dict[str, np.ndarray], title: str) -> None:
    for part, cosine_B in cosines.items():
        kept = cosine_B[~np.isnan(cosine_B)]
        axes.hist(
            kept, np.linspace(-1, 1, 81), histtype="stepfilled", alpha=0.6, color=_COLORS[part], label=part
        )
    axes.set(xlim=(-1, 1), xticks=(-1, -0.5, 0, 0.5, 1), xlabel="cosine with all of it", ylabel="images")
    axes.set_title(wrapped(title), fontsize=9)
    axes.legend(frameon=False, fontsize=8)


def _lowest(subject: Subject, cosine_B: np.ndarray, number: int) -> Picture:
    """The images of lowest cosine, with the attention of cls over them."""
    stored = subject.store.read("image_HxWxC")
    cosine_B = cosine_B[: len(stored)]
    number = min(number, int(np.count_nonzero(~np.isnan(cosine_B))))
    images = np.argsort(cosine_B, kind="stable")[:number]  # NaN comes last
    shown = np.asarray(stored[images])
    maps_BxHxW = mean_maps(subject, images)[:, 0]
    figure = Figure(figsize=(1.6 * len(images) + 0.3, 3.7), layout="constrained")
    grid = figure.subplots(2, len(images), squeeze=False)
    for (top, below), image, values, value in zip(grid.T, shown, maps_BxHxW, cosine_B[images], strict=True):
        top.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        top.set_title(f"cosine {value:.3f}", fontsize=9)
        below.imshow(values, cmap="inferno", vmin=0)
        below.set_xlabel(f"max {values.max():.3f}", fontsize=7, labelpad=2)
        for axes in (top, below):
            axes.set(xticks=[], yticks=[])
    return Picture(
        name=f"lowest-{subject.name}",
        caption=f"{subject.name}: the images where the cosine of patches is lowest, and the attention of cls "
        "to their patches.",
        figure=figure,
    )
