"""cls-patches-only: whether the part of cls from patches points where all of it does. No JAX."""

import numpy as np
from matplotlib.axes import Axes

from vit_registers.analysis.experiments.experiment import DECOUPLING, Experiment
from vit_registers.analysis.measures.severity import cosine_similarity, summarize_values
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import STYLES, legend_name, overlay
from vit_registers.analysis.report.headline import over_images
from vit_registers.analysis.report.result import Found, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.report.tiles import tiles
from vit_registers.analysis.subject import FULL, Subject, cls_parts, in_parts, mean_maps

_PARTS = ("patches", "registers", "summaries")


def _measure(subject: Subject, options: Options) -> Rows:
    found: dict[str, list[np.ndarray]] = {}
    for images in in_parts(subject.store.num_read()):
        parts = cls_parts(subject, images)
        for name in parts.keys() - {FULL, "cls"}:
            found.setdefault(name, []).append(cosine_similarity(parts[name], parts[FULL]))
    cosines = {name: np.concatenate(found[name]) for name in _PARTS if name in found}  # NaN: a part is zero
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
        headlines=[over_images("cosine of what cls gets from patches with all of it", cosines["patches"])],
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


def _histogram(axes: Axes, values: tuple, color: str, name: str) -> None:
    for (part, cosine_B), style in zip(values[0].items(), STYLES, strict=False):
        kept, bins = cosine_B[~np.isnan(cosine_B)], np.linspace(-1, 1, 81).tolist()
        label = legend_name(f"{name}: {part}")
        axes.hist(kept, bins, histtype="step", color=color, ls=style, label=label)
    axes.set(xlim=(-1, 1), xticks=(-1, -0.5, 0, 0.5, 1), xlabel="cosine with all of it", ylabel="images")


def _draw(found: Found) -> Pictures:
    caption = "The cosine over images, of what cls gets from each token group with all that it gets."
    yield Picture(name="cosines", caption=caption, figure=overlay(found, _histogram))
    shown = [one for one in found if one.values[1] is not None]
    top = max((float(one.values[1][1].max()) for one in shown), default=1.0)
    for one in shown:
        images, maps, cosines = one.values[1]
        caption = (
            f"{one.name}: the images where the cosine of patches is lowest, and the attention of cls to "
            "their patches."
        )
        figure = tiles(
            [list(images), [None] * len(images)],
            [[None] * len(images), list(100 * maps)],
            rows=("image", "attention"),
            columns=[f"{cosine:.2f}" for cosine in cosines],
            limits=(0, 100 * top),
            label="attention of cls to a patch, %",
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
