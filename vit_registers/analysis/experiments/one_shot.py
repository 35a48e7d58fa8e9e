"""one-shot: classifiers of one image per class, on the output of cls and on its parts. No JAX."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.experiments.experiment import DECOUPLING, Experiment
from vit_registers.analysis.experiments.train_test import ProbeImages, ProbeSets, labelled_parts
from vit_registers.analysis.measures.one_shot import OneShot, draw_one, draw_pairs, one_shot
from vit_registers.analysis.measures.severity import summarize_values
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.colors import GREY
from vit_registers.analysis.report.figures import grouped_bars, legend_above, new_axes
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, number
from vit_registers.analysis.subject import FULL, Subject, cls_parts

_SEEDS = (0, 1, 2)
_CLASSIFIERS = ("logistic", "nearest")


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    parts = labelled_parts(subject, "terms_ExD", what="one-shot")
    if isinstance(parts, Gap):
        return parts
    if parts.is_split and len(_draw_parts(parts, 0)[0].row_N) < 2:
        return Gap(f"{subject.name}: fewer than two classes have two images or more")
    if len(np.intersect1d(parts.train.label_N, parts.test.label_N)) < 2:
        return Gap(f"{subject.name}: fewer than two classes have an image to train on and one to test on")
    found: dict[str, list[OneShot]] = {classifier: [] for classifier in _CLASSIFIERS}
    for seed in _SEEDS:
        train, test = _draw_parts(parts, seed)  # only these images are read
        full, tests = cls_parts(train.subject, train.row_N)[FULL], cls_parts(subject, test.row_N)
        for classifier, scores in found.items():
            scores.append(
                one_shot(full, train.label_N, tests, test.label_N, seed=seed, classifier=classifier)
            )
    rows = [
        (classifier, part, *_over_seeds(scores, part), scores[0].num_classes)
        for classifier, scores in found.items()
        for part in scores[0].top1
    ]
    first, scores = next(iter(found.items()))
    means = {part: mean for classifier, part, mean, *_ in rows if classifier == first}
    clauses = ", ".join(f"{number(mean, '%')} on {part}" for part, mean in means.items())
    return Rows(
        tables={"One-shot": rows},
        text=f"the top-1 of the {first} classifier is {clauses}",
        compared=means[FULL],
        count=f"{scores[0].num_classes} classes and {len(_SEEDS)} seeds",
        values=found,
        images=parts.describe(),
    )


def _draw_parts(parts: ProbeSets, seed: int) -> ProbeSets:
    """An image to train on and another one to test on of each class, of both where --data was split."""
    if not parts.is_split:
        return ProbeSets(*(part.take(draw_one(part.label_N, seed=seed)) for part in parts))
    row_N, label_N = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("row_N", "label_N")
    )
    order_N = np.argsort(row_N)
    whole = ProbeImages(parts.test.subject, row_N[order_N], label_N[order_N])
    return ProbeSets(*map(whole.take, draw_pairs(whole.label_N, seed=seed)))


def _over_seeds(scores: Sequence[OneShot], part: str) -> list[float | None]:
    columns = []
    for values in ([one.top1 for one in scores], [one.top5 for one in scores]):
        summary = summarize_values([100 * one[part] for one in values if one is not None])
        columns += [summary.mean, summary.std]
    return columns


def _draw(found: Found) -> Pictures:
    has_top5 = all(scores[0].top5 is not None for one in found for scores in one.values.values())
    k, place = (5, slice(2, 4)) if has_top5 else (1, slice(0, 2))
    for classifier in _CLASSIFIERS:
        caption = (
            f"Top-{k} of the {classifier} classifier on all that cls gets and on parts of it: mean and "
            "deviation over seeds."
        )
        figure = _bars(found, classifier, k, place)
        yield Picture(name=f"one-shot-{classifier}", caption=caption, figure=figure)


def _bars(found: Found, classifier: str, k: int, place: slice) -> Figure:
    def scores(one: Rows) -> dict[str, list[float | None]]:
        """Mean and deviation by part."""
        parts = one.values[classifier][0].top1
        return {part: _over_seeds(one.values[classifier], part)[place] for part in parts}

    figure, axes = new_axes()
    grouped_bars(
        axes,
        found,
        lambda one: {part: mean for part, (mean, _) in scores(one).items()},
        lambda one: {part: std or 0.0 for part, (_, std) in scores(one).items()},
    )
    chance = 100 * k / found[0].values[classifier][0].num_classes
    axes.axhline(chance, color=GREY, lw=1, ls=":", label="chance")
    axes.set_ylabel(f"top-{k}, %")
    axes.set_ylim(bottom=0)
    legend_above(axes)
    return figure


EXPERIMENT = Experiment(
    question="What does a classifier of the output of cls make of its parts?",
    answers=f"{DECOUPLING}, figure 3b",
    definition="A classifier is trained on what attention adds to cls in the last block (after the "
    "output projection and LayerScale, without its bias and the skip connection), of one image per "
    "class, and tested on another image of each: on the same, and on what comes from one token group "
    "only (the weights of the others set to zero, not divided again). With --train_data the first is one of "
    "its images. Images are drawn separately for each "
    f"of {len(_SEEDS)} seeds; standard deviations are over these. The paper does not name its classifier: "
    "'logistic' is multinomial logistic regression, 'nearest' the highest cosine.",
    tables={"One-shot": "model | classifier | part | top-1, % | std | top-5, % | std of top-5 | classes"},
    measure=_measure,
    features=("terms_ExD",),
    trains=True,
    draw=_draw,
    compares="top-1 on the full output, %",
)
