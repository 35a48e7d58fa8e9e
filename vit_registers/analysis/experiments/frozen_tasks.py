"""frozen-tasks: what frozen features are good for, one row for each model."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from vit_registers.analysis.experiments.edited_models import FROZEN
from vit_registers.analysis.experiments.experiment import REGISTERS, SMALL, Experiment
from vit_registers.analysis.experiments.frozen_features import stored_arrays
from vit_registers.analysis.experiments.frozen_knn import NEIGHBORS, knn_share
from vit_registers.analysis.experiments.frozen_logistic import logistic_share
from vit_registers.analysis.experiments.train_test import ProbeSets, labelled_parts
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.headline import Headline, share_of_images
from vit_registers.analysis.report.result import Found, Gap, Rows, counted
from vit_registers.analysis.subject import Subject
from vit_registers.evaluation.tasks import TASKS
from vit_registers.runs.task_results import BASELINES, TASK_NUMBERS, StoredTask, read_task_results

_HERE = {"knn": knn_share, "logistic": logistic_share}  # measured from the features of the report
OF_FEATURES = tuple(task for task in TASK_NUMBERS if not TASKS[task].has_texts)
HOW_TO_MEASURE = "vit-registers evaluate --task=NAME measures them"
_TABLE, _SOURCES = "Frozen features", "Where the numbers are from"


class Number(NamedTuple):
    """The number of a task, and where it is from."""

    headline: Headline
    data: str
    train_data: str
    source: str
    baselines: Mapping[str, float | None] = MappingProxyType({})
    is_here: bool = False  # measured from the features of the report


class Numbers(NamedTuple):
    """The numbers of a model by task, in the order of TASK_NUMBERS."""

    found: dict[str, Number]
    gaps: list[str]
    images: str  # which images trained and tested, where something was measured from --train_data

    def origins(self) -> dict[str, tuple[str, str, bool]]:
        """What must be the same for all models whose numbers are compared, by task."""
        return {task: (one.train_data, one.data, one.is_here) for task, one in self.found.items()}


def find_numbers(subject: Subject, here: Collection[str] = tuple(_HERE)) -> Numbers:
    """The newest stored number of each task; those of `here` are measured where none is stored."""
    stored, gaps = _stored(subject)
    found = {task: _as_number(one) for task, one in stored.items()}
    parts, images = labelled_parts(subject, FROZEN, what="k-NN"), ""
    if isinstance(parts, ProbeSets):
        found |= {task: _measured_here(task, parts) for task in here if task not in found}
        images = parts.describe() if any(one.is_here for one in found.values()) else ""
    elif set(here) - set(found):
        gaps.append(parts.reason)
    found = {task: found[task] for task in TASK_NUMBERS if task in found and _has_value(found[task])}
    return Numbers(found, gaps, images)


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    numbers = find_numbers(subject)
    found, gaps = numbers.found, numbers.gaps
    if lacking := [task for task in OF_FEATURES if task not in found]:
        gaps.append(f"{subject.name}: not measured: {', '.join(lacking)}; {HOW_TO_MEASURE}")
    if not found:
        return Gap("; ".join(gaps))
    heads = [one.headline for one in found.values()]
    named = {task: TASK_NUMBERS[task].what.partition(",")[0] for task in found}
    cells = [_cell(found[task].headline) if task in found else None for task in OF_FEATURES]
    return Rows(
        tables={_TABLE: [cells], _SOURCES: [_row(task, one) for task, one in found.items()]},
        text=", ".join(
            f"{named[task]} {one.headline.text()} {one.headline.unit}" for task, one in found.items()
        ),
        compared=found["knn"].headline.value if "knn" in found else None,
        count=counted(max(one.count for one in heads), "test image"),
        gaps=gaps,
        values=numbers.origins(),
        headlines=heads,
        images=numbers.images,
    )


def _has_value(one: Number) -> bool:
    return one.headline.value is not None


def _cell(one: Headline) -> str:
    return f"{one.text()} (n = {one.count:,})"


def _row(task: str, one: Number) -> tuple[str | float | int | None, ...]:
    head = one.headline
    baselines = [one.baselines.get(name) for name in BASELINES]
    return task, head.value, head.error, head.count, *baselines, one.train_data, one.data, one.source


def _stored(subject: Subject) -> tuple[dict[str, StoredTask], list[str]]:
    """The newest result of each task that `evaluate --task` has written for the checkpoint, and gaps."""
    if subject.run is None or subject.step is None:
        return {}, []
    results, left_out = read_task_results(subject.run, step=subject.step, params=subject.params_name)
    return {one.task: one for one in results}, [f"{subject.name}: {line}" for line in left_out]


def _as_number(one: StoredTask) -> Number:
    what = TASK_NUMBERS[one.task].headline
    headline = Headline(what=what, value=one.value, error=one.error, count=one.count)
    return Number(headline, one.data, one.train_data, f"evaluation/{one.file}", one.baselines)


def _measured_here(task: str, parts: ProbeSets) -> Number:
    arrays, value = stored_arrays(parts), None
    if len(set(arrays.train_label_N.tolist())) > 1 and len(arrays.test_label_M):
        value = _HERE[task](
            arrays.train_Nx2xD[:, 0], arrays.train_label_N, arrays.test_Mx2xD[:, 0], arrays.test_label_M
        )
    headline = share_of_images(TASK_NUMBERS[task].headline, value, len(arrays.test_label_M))
    half = " (half of each class)" if parts.is_split else ""
    trained, tested = (f"{len(part.row_N)} of the {part.subject.images}{half}" for part in parts)
    return Number(headline, tested, trained, "this report", is_here=True)


def unlike_tasks(origins: Sequence[Mapping[str, tuple[str, str, bool]]]) -> list[str]:
    """The tasks whose numbers are not of the same images, or not by the same means, for all models."""
    given = {task: {one[task] for one in origins if task in one} for task in TASK_NUMBERS}
    return [task for task, kinds in given.items() if len(kinds) > 1]


def not_compared(tasks: Sequence[str]) -> list[str]:
    """A gap for each of these tasks, whose numbers cannot be compared."""
    why = "the models were measured on other images or by other means, so they are not compared"
    return [f"{task}: {why}" for task in tasks]


def _unlike(found: Found) -> list[str]:
    return unlike_tasks([one.values for one in found])


def _comparable(found: Found) -> Found:
    """The rows, without the numbers for the head of the report that must not be compared."""
    unlike = [TASK_NUMBERS[task].headline for task in _unlike(found)]
    kept = [
        dataclasses.replace(one, headlines=[head for head in one.headlines if head.what not in unlike])
        for one in found
    ]
    if TASK_NUMBERS["knn"].headline in unlike:
        kept = [dataclasses.replace(one, compared=None) for one in kept]
    return kept


def _across(found: Found) -> list[str]:
    return not_compared(_unlike(found))


EXPERIMENT = Experiment(
    question="What are the features of each model good for, without training it further?",
    answers=f"{REGISTERS}, table 2a; {SMALL}, the dense tasks that it names as missing",
    definition="The results that evaluate --task=NAME has written for the same step and parameters of the "
    "run, the newest of each task. Where there is none, k-NN and logistic regression from the features of "
    f"this report: {NEIGHBORS} neighbours, and a C chosen on a fifth of the training images, from cls after "
    "the final norm (the mean patch without cls). The error of a share is that of a proportion; the mean IoU "
    "is over classes and has none; that of depth is over images. Numbers from other data or by other means "
    "cannot be compared.",
    tables={
        _TABLE: "model | " + " | ".join(TASK_NUMBERS[task].what for task in OF_FEATURES),
        _SOURCES: f"model | task | value | standard error | test images | {' | '.join(BASELINES)}"
        " | trained on | tested on | source",
    },
    measure=_measure,
    features=(FROZEN,),
    trains=True,
    arrange=_comparable,
    across=_across,
    opens=_TABLE,
    compares="k-NN top-1, %",
)
