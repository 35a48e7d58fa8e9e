"""What a classifier of the output of cls makes of its parts. No JAX."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.experiments.cls_sources import FULL, cls_parts
from vit_registers.analysis.measures.one_shot import OneShot, draw_pairs
from vit_registers.analysis.measures.one_shot import one_shot as fit_one_shot
from vit_registers.analysis.measures.severity import summarize
from vit_registers.analysis.report.figures import BLUE, GREY, ORANGE, wrapped
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject

_SEEDS = (0, 1, 2)
_CLASSIFIERS = {"logistic": BLUE, "nearest": ORANGE}


def one_shot(subjects: list[Subject], options: Options) -> Result:
    """Accuracies of classifiers of one full output per class, on the full output and on its parts."""
    result = Result(
        definition="A classifier is trained on what attention adds to cls in the last block (after the "
        "output projection and LayerScale, without its bias and the skip connection), of one image per "
        "class, and tested on another image of each: on the same, and on what comes from one token group "
        "only (the weights of the others set to zero, not divided again). Images are drawn anew for each of "
        f"{len(_SEEDS)} seeds; standard deviations are over these. The paper does not name its classifier: "
        "'logistic' is multinomial logistic regression, 'nearest' the highest cosine."
    )
    found = {}
    for subject in subjects:
        label = np.asarray(subject.store.read("label"))
        if label.ndim > 1:
            result.gaps.append(f"{subject.name}: the images have several labels each, one-shot wants one")
        elif len(draw_pairs(label, seed=0)[0]) < 2:
            result.gaps.append(f"{subject.name}: fewer than two classes have two images or more")
        else:
            found[subject.name] = _accuracies(subject, label)
    if found:
        rows = [
            (name, classifier, part, *_over_seeds(scores, part), scores[0].num_classes)
            for name, by_classifier in found.items()
            for classifier, scores in by_classifier.items()
            for part in scores[0].top1
        ]
        columns = ("model", "classifier", "part", "top-1, %", "std", "top-5, %", "std of top-5", "classes")
        result.tables.append(Table(title="One-shot", columns=columns, rows=rows))
        result.pictures.append(_draw_accuracies(found))
    return result


def _accuracies(subject: Subject, label: np.ndarray) -> dict[str, list[OneShot]]:
    """For each classifier the scores of all seeds. Only the images that are drawn are read."""
    found: dict[str, list[OneShot]] = {classifier: [] for classifier in _CLASSIFIERS}
    for seed in _SEEDS:
        train, test = draw_pairs(label, seed=seed)
        full, tests = cls_parts(subject, train)[FULL], cls_parts(subject, test)
        for classifier, scores in found.items():
            scores.append(
                fit_one_shot(full, label[train], tests, label[test], seed=seed, classifier=classifier)
            )
    return found


def _over_seeds(scores: Sequence[OneShot], part: str) -> list[float | None]:
    """Mean and standard deviation of top-1, then of top-5, in %."""
    columns = []
    for values in ([one.top1 for one in scores], [one.top5 for one in scores]):
        summary = summarize([100 * one[part] for one in values if one is not None])
        columns += [summary.mean, summary.std]
    return columns


def _draw_accuracies(found: dict[str, dict[str, list[OneShot]]]) -> Picture:
    figure = Figure(figsize=(3.6 * len(found) + 0.5, 3.0), layout="constrained")
    for axes, (name, by_classifier) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        for i, (classifier, scores) in enumerate(by_classifier.items()):
            parts = list(scores[0].top1)
            k, place = (5, slice(2, 4)) if scores[0].top5 is not None else (1, slice(0, 2))
            mean, std = np.array([_over_seeds(scores, part)[place] for part in parts]).T
            at = np.arange(len(parts)) + 0.4 * (i - 0.5)
            axes.bar(at, mean, 0.36, yerr=std, capsize=2, color=_CLASSIFIERS[classifier], label=classifier)
        chance = 100 * k / scores[0].num_classes
        axes.axhline(chance, color=GREY, lw=1, ls=":", label="chance")
        axes.set_xticks(range(len(parts)), parts, fontsize=8)
        axes.set(ylim=(0, 105), ylabel=f"top-{k}, %")
        axes.set_title(wrapped(name), fontsize=9)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    return Picture(name="one-shot", caption="Accuracies, mean and deviation over seeds.", figure=figure)
