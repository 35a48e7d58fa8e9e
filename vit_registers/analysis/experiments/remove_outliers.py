"""Are outliers needed? They are taken away between blocks, and as many random patches for comparison."""

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.experiments import edited_models
from vit_registers.analysis.features.interventions import Intervention, remove
from vit_registers.analysis.measures.neurons import random_patches
from vit_registers.analysis.report.figures import BLUE, ORANGE
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject

_CUTS = 6  # places between blocks, at most
_SEED = 0
COLUMNS = (
    "model",
    "before block",
    "taken away",
    "replaced by",
    "cosine of cls",
    "of registers",
    "same choice, %",
    "accuracy, %",
)


def removal(subjects: list[Subject], options: Options) -> Result:
    """What becomes of cls, registers and accuracy without the outliers."""
    result = Result(
        definition="The patches that the rule flags after the last block are replaced, before one block, by "
        "zero or by the mean of the image's other patches at that place; or as many random patches that are "
        "not flagged. Cosines are with what the unchanged model gives after its last block; the choice and "
        f"the accuracy are of its own head. On the images with flagged patches among the first "
        f"{options.num_edited}."
    )
    rows, curves = [], {}
    for subject in subjects:
        is_outlier_BxP, _ = edited_models.flagged(subject, options)
        images = np.flatnonzero(is_outlier_BxP.any(1))
        if not len(images):
            result.gaps.append(f"{subject.name}: no outliers by {options.rule}")
            continue
        if subject.head_labels() is None:
            result.gaps.append(f"{subject.name}: no accuracy, as the images' classes are not its head's")
        found, points = _measure(subject, options, is_outlier_BxP, images)
        rows += found
        curves[subject.name] = points
    if rows:
        result.tables.append(Table(title="Patches taken away", columns=COLUMNS, rows=rows))
        result.pictures.append(
            Picture(
                name="removal",
                caption="How alike the output stays: cosine of cls, or where there is no cls the share of "
                "images whose class stays, by the block before which patches are taken away.",
                figure=_draw(curves),
            )
        )
    return result


def _measure(
    subject: Subject, options: Options, is_outlier_BxP: np.ndarray, images: np.ndarray
) -> tuple[list[tuple], dict[tuple[str, str], list[tuple[int, float]]]]:
    names = edited_models.outputs_of(subject)
    before = edited_models.as_it_is(subject, options, names)
    same = edited_models.change(subject, before, before, images)
    rows = [(subject.name, None, "nothing", None, *_cells(same))]
    depth = subject.store.read("norms_LxT").shape[1] - 1
    chosen = {"outliers": is_outlier_BxP, "random patches": random_patches(is_outlier_BxP, seed=_SEED)}
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for block in np.unique(np.linspace(0, depth - 1, _CUTS).round().astype(int)):
        for instead in ("zero", "mean patch"):
            for what, is_chosen_BxP in chosen.items():
                intervention = Intervention(
                    name="remove",
                    edits=remove,
                    values={"block": np.int32(block), "use_mean": np.bool_(instead != "zero")},
                    rows={"is_chosen_BxP": is_chosen_BxP},
                )
                after = edited_models.run(subject, options, intervention, names)
                found = edited_models.change(subject, before, after, images)
                rows.append((subject.name, int(block) + 1, what, instead, *_cells(found)))
                height = found.agreement if found.cls_cosine is None else found.cls_cosine
                if height is not None:
                    points.setdefault((what, instead), []).append((int(block) + 1, height))
    return rows, points


def _cells(found: edited_models.Change) -> tuple[float | None, ...]:
    shares = (edited_models.percent(found.agreement), edited_models.percent(found.accuracy))
    return (found.cls_cosine, found.registers_cosine, *shares)


def _draw(curves: dict[str, dict[tuple[str, str], list[tuple[int, float]]]]) -> Figure:
    figure = Figure(figsize=(4.2 * len(curves) + 0.5, 3.2), layout="constrained")
    grid = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, lines) in zip(grid, curves.items(), strict=True):
        for (what, instead), points in lines.items():
            color, style = ORANGE if what == "outliers" else BLUE, "-" if instead == "zero" else "--"
            axes.plot(
                *zip(*points, strict=True), style, marker="o", ms=3, color=color, label=f"{what}: {instead}"
            )
        axes.set(xlabel="before block", ylabel="cosine of cls", title=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if lines:
            axes.legend(frameon=False, fontsize=7)
    return figure
