"""How much of the output of cls its parts hold: classifiers of one image per class, cosines. No JAX."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit_registers.analysis.experiments.attention_grids import mean_maps
from vit_registers.analysis.measures.one_shot import OneShot, draw_pairs
from vit_registers.analysis.measures.one_shot import one_shot as fit_one_shot
from vit_registers.analysis.measures.severity import cosine, summarize
from vit_registers.analysis.report.figures import BLUE, GREEN, GREY, ORANGE, wrapped
from vit_registers.analysis.report.section import Picture, Section, Table
from vit_registers.analysis.subject import Options, Subject, in_parts

_SEEDS = (0, 1, 2)
_CLASSIFIERS = {"logistic": BLUE, "nearest": ORANGE}
_COLORS = {"patches": BLUE, "registers": ORANGE, "summaries": GREEN}
FULL = "full"


def _parts(subject: Subject, images: slice | np.ndarray) -> dict[str, np.ndarray]:
    """What cls gets from each token group by the attention of the last block, and the sum of it: BxD each."""
    names = tuple(subject.layout.groups)
    terms_BxExD = subject.store.read("terms_ExD")[images][:, : len(names)].astype(np.float64)
    return {FULL: terms_BxExD.sum(axis=1)} | {name: terms_BxExD[:, i] for i, name in enumerate(names)}


def one_shot(subjects: list[Subject], options: Options) -> Section:
    """Accuracies of classifiers of one full output per class, on the full output and on its parts."""
    section = Section(
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
            section.gaps.append(f"{subject.name}: the images have several labels each, one-shot wants one")
        elif len(draw_pairs(label, seed=0)[0]) < 2:
            section.gaps.append(f"{subject.name}: fewer than two classes have two images or more")
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
        section.tables.append(Table(title="One-shot", columns=columns, rows=rows))
        section.pictures.append(_draw_accuracies(found))
    return section


def _accuracies(subject: Subject, label: np.ndarray) -> dict[str, list[OneShot]]:
    """For each classifier the scores of all seeds. Only the images that are drawn are read."""
    found: dict[str, list[OneShot]] = {classifier: [] for classifier in _CLASSIFIERS}
    for seed in _SEEDS:
        train, test = draw_pairs(label, seed=seed)
        full, tests = _parts(subject, train)[FULL], _parts(subject, test)
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


def patches_only(subjects: list[Subject], options: Options) -> Section:
    """Whether what attention brings from patches, or from registers, points where all of it does."""
    section = Section(
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
                section.gaps.append(
                    f"{subject.name}: nothing comes from {part} in {summary.num_undefined} images"
                )
            low, high = map(float, np.quantile(kept, [0.05, 0.95])) if len(kept) else (None, None)
            rows.append((subject.name, part, summary.mean, summary.std, low, summary.median, high))
        _draw_cosines(axes, cosines, subject.name)
        stored = len(subject.store.read("image_HxWxC"))
        if not np.isnan(cosines["patches"][:stored]).all():
            section.pictures.append(_lowest(subject, cosines["patches"], options.num_examples))
    columns = ("model", "part", "mean", "std", "5 %", "median", "95 %")
    section.tables.append(Table(title="Cosine with the attention's output", columns=columns, rows=rows))
    section.pictures.insert(0, Picture(name="cosines", caption="The cosine over images.", figure=figure))
    return section


def _cosines(subject: Subject) -> dict[str, np.ndarray]:
    """cosine_B with the full output of each token group but cls; NaN where a part is zero."""
    found: dict[str, list[np.ndarray]] = {}
    for images in in_parts(subject.store.num_read()):
        parts = _parts(subject, images)
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
