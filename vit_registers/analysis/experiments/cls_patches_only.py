"""cls-patches-only: whether the part of cls from patches points where all of it does. No JAX."""

import numpy as np
from matplotlib.axes import Axes

from vit_registers.analysis.experiments.experiment import DECOUPLING, Experiment
from vit_registers.analysis.measures.severity import cosine_similarity, summarize_values
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import BLUE, GREEN, ORANGE, new_grid, panels, show_image
from vit_registers.analysis.report.result import Found, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import FULL, Subject, cls_parts, in_parts, mean_maps

_COLORS = {"patches": BLUE, "registers": ORANGE, "summaries": GREEN}


def _measure(subject: Subject, options: Options) -> Rows:
    found: dict[str, list[np.ndarray]] = {}
    for images in in_parts(subject.store.num_read()):
        parts = cls_parts(subject, images)
        for name in parts.keys() - {FULL, "cls"}:
            found.setdefault(name, []).append(cosine_similarity(parts[name], parts[FULL]))
    cosines = {name: np.concatenate(found[name]) for name in _COLORS if name in found}  # NaN: a part is zero
    rows, gaps = [], []
    for part, cosine_B in cosines.items():
        summary = summarize_values(cosine_B)
        kept = cosine_B[~np.isnan(cosine_B)]
        if summary.num_undefined:
            gaps.append(f"{subject.name}: nothing comes from {part} in {summary.num_undefined} images")
        low, high = map(float, np.quantile(kept, [0.05, 0.95])) if len(kept) else (None, None)
        rows.append((part, summary.mean, summary.std, low, summary.median, high))
    means = ", ".join(f"{number(mean)} for {part}" for part, mean, *_ in rows)
    return Rows(
        tables={"Cosine with the attention's output": rows},
        text=f"the mean cosine with all that attention brings to cls is {means}",
        compared=rows[0][1],
        count=counted(len(cosines["patches"]), "image"),
        values=(cosines, _lowest(subject, cosines["patches"], options.num_examples)),
        gaps=gaps,
    )


def _lowest(subject: Subject, cosine_B: np.ndarray, most: int) -> tuple[np.ndarray, ...] | None:
    """(images, maps of the attention of cls, cosines) of the images of lowest cosine; None: no cosine."""
    stored = subject.store.read("image_HxWxC")
    cosine_B = cosine_B[: len(stored)]
    count = min(most, int(np.count_nonzero(~np.isnan(cosine_B))))
    images = np.argsort(cosine_B, kind="stable")[:count]  # NaN comes last
    if not count:
        return None
    return np.asarray(stored[images]), mean_maps(subject, images)[:, 0], cosine_B[images]


def _panel(axes: Axes, values: tuple) -> None:
    for part, cosine_B in values[0].items():
        kept, bins = cosine_B[~np.isnan(cosine_B)], np.linspace(-1, 1, 81).tolist()
        axes.hist(kept, bins, histtype="stepfilled", alpha=0.6, color=_COLORS[part], label=part)
    axes.set(xlim=(-1, 1), xticks=(-1, -0.5, 0, 0.5, 1), xlabel="cosine with all of it", ylabel="images")
    axes.legend(frameon=False, fontsize=8)


def _draw(found: Found) -> Pictures:
    figure = panels(found, _panel, width=4.0)
    yield Picture(name="cosines", caption="The cosine over images.", figure=figure)
    for one in found:
        if one.values[1] is None:
            continue
        images, *_ = one.values[1]
        figure, grid = new_grid(2, len(images), (1.6 * len(images) + 0.3, 3.7))
        for (top, below), image, values, cosine in zip(grid.T, *one.values[1], strict=True):
            show_image(top, image)
            top.set_title(f"cosine {cosine:.3f}", fontsize=9)
            below.imshow(values, cmap="inferno", vmin=0)
            below.set_xlabel(f"max {values.max():.3f}", fontsize=7, labelpad=2)
        caption = (
            f"{one.name}: the images where the cosine of patches is lowest, and the attention of cls to "
            "their patches."
        )
        yield Picture(name=f"lowest-{one.name}", caption=caption, figure=figure)


EXPERIMENT = Experiment(
    question="Does what cls takes from the patches point where all that it takes does?",
    answers=f"{DECOUPLING}, figure 4",
    definition="Cosine between what the attention of cls brings in the last block from one token group, and "
    "from all of them (cls itself among them; without the bias of the projection and the skip connection). "
    "Where the cosine of patches is low, a map of attention over patches does not show what cls is made of.",
    tables={"Cosine with the attention's output": "model | part | mean | std | 5 % | median | 95 %"},
    measure=_measure,
    features=("terms_ExD", "attention_NxExT", "image_HxWxC"),
    draw=_draw,
    compares="mean cosine of the part from patches",
)
