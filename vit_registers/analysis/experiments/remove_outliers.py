"""remove-outliers: what is lost when outliers are replaced between blocks, against random patches."""

import itertools

import numpy as np
from matplotlib.axes import Axes

from vit_registers.analysis.experiments.edited_models import BASE, change, outputs_of, run_unedited
from vit_registers.analysis.experiments.experiment import CAUSES, Experiment
from vit_registers.analysis.features.interventions import Intervention, replace_tokens
from vit_registers.analysis.measures.neurons import random_patches
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.colors import BLUE, ORANGE
from vit_registers.analysis.report.figures import integer_ticks, pictures_by_model
from vit_registers.analysis.report.result import Gap, Rows, Value, counted, number
from vit_registers.analysis.subject import Subject

_CUTS = 6  # places between blocks, at most
Points = dict[tuple[str, str], list[tuple[int, float]]]  # (block, likeness), by (what, replaced by)


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    is_outlier_BxP = subject.outliers(options.rule).is_outlier_BxP[: options.num_edited]
    images = np.flatnonzero(is_outlier_BxP.any(1))
    if not len(images):
        return Gap(f"{subject.name}: no outliers by {options.rule}")
    names, num_blocks = outputs_of(subject), subject.store.read("norms_LxT").shape[1] - 1
    before = run_unedited(subject, names, options)
    unedited = change(subject, before, before, images)
    rows: list[tuple[Value, ...]] = [(None, "nothing", None, *unedited.cells())]
    chosen = {"outliers": is_outlier_BxP, "random patches": random_patches(is_outlier_BxP, seed=0)}
    blocks = np.unique(np.linspace(0, num_blocks - 1, _CUTS).round().astype(int))
    points: Points = {}
    for block, instead, what in itertools.product(blocks.tolist(), ("zero", "mean patch"), chosen):
        values = {"block": np.int32(block), "use_mean": np.bool_(instead != "zero")}
        is_chosen = {"is_chosen_BxP": chosen[what]}
        intervention = Intervention(name="remove", edits=replace_tokens, values=values, rows=is_chosen)
        found = change(subject, before, subject.rerun(intervention, names, options.num_edited), images)
        rows.append((block + 1, what, instead, *found.cells()))
        height = found.agreement if found.cls_cosine is None else found.cls_cosine
        if height is not None:
            points.setdefault((what, instead), []).append((block + 1, height))
    text, lowest = "the model has neither cls nor a head to compare", None
    if points:
        block, lowest = min(points["outliers", "zero"], key=lambda point: point[1])
        other = dict(points["random patches", "zero"])[block]
        output = "cosine of cls" if subject.layout.has_cls else "share of images whose class stays"
        text = (
            f"zeroing outliers before block {block} lowers the {output} to {number(lowest)}, zeroing as many "
            f"random patches to {number(other)}"
        )
    why = "the images' classes are not its head's" if subject.class_names else "the images have no classes"
    no_head = f"{subject.name}: no accuracy, as {why}"
    return Rows(
        tables={"Patches taken away": rows},
        text=text,
        compared=lowest,
        count=counted(len(images), "image"),
        values=points,
        gaps=[no_head] if subject.head_labels() is None else [],
    )


def _panel(axes: Axes, points: Points) -> None:
    for (what, instead), line in points.items():
        color, style = ORANGE if what == "outliers" else BLUE, "-" if instead == "zero" else "--"
        label = f"{what}: {instead}"
        axes.plot(*zip(*line, strict=True), style, marker="o", ms=3, color=color, label=label)
    axes.set(xlabel="before block", ylabel="cosine of cls")
    integer_ticks(axes)


EXPERIMENT = Experiment(
    question="What is lost without the outliers: accuracy, cls, registers?",
    answers=CAUSES,
    definition=lambda options: (
        "The patches that the rule flags after the last block are replaced, before "
        "one block, by zero or by the mean of the image's other patches at that place; or as many random "
        "patches that are not flagged. Cosines are with what the unedited model gives after its last "
        "block; the choice and the accuracy are of its own head. On the images with flagged patches among "
        f"the first {options.num_edited}."
    ),
    tables={
        "Patches taken away": "model | before block | taken away | replaced by | cosine of cls"
        " | of registers | same choice, % | accuracy, %"
    },
    measure=_measure,
    runs_model=True,
    features=BASE,
    draw=pictures_by_model(
        "removal",
        "how alike the output stays: cosine of cls, or where there is no cls the share of images whose class "
        "stays, by the block before which patches are taken away.",
        _panel,
    ),
    compares="likeness of the output without outliers",
)
