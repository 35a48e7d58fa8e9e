"""frozen-heads: tasks that train heads, on features of the unedited and of edited models."""

from collections.abc import Sequence

from vit_registers.analysis.experiments import edited_models
from vit_registers.analysis.experiments.experiment import REGISTERS, Experiment
from vit_registers.analysis.experiments.frozen_features import EDITS, find_variants
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.result import Gap, Rows, counted, number
from vit_registers.analysis.subject import Subject
from vit_registers.errors import UserError
from vit_registers.evaluation.task import Splits
from vit_registers.evaluation.tasks import TASKS, import_task
from vit_registers.runs.task_results import TASK_NUMBERS, task_baselines, task_number

_TABLE = "Heads of edited models"


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    if not options.tasks or options.task_settings is None or subject.frozen is None:
        return Gap(
            "no heads were trained, as this takes minutes: name tasks, as in --tasks=segmentation,depth "
            "--task_data=digit_scenes:train,digit_scenes:test"
        )
    variants = find_variants(subject, options)
    rows, gaps = [], list(variants.gaps)
    for task in options.tasks:
        splits = options.dense_images if TASKS[task].is_dense else options.task_images
        assert splits is not None  # the command line requires them
        for name, intervention in variants.interventions.items():
            frozen, settings = subject.frozen(intervention), options.task_settings

            def show(line: str, what: str = f"{task}, {name}") -> None:
                subject.progress(f"{what}: {line}", 0, 0)

            try:
                result = import_task(task)(frozen, settings, splits, folder=None, say=show)
            except UserError as error:
                gaps.append(f"{subject.name}: {task}, {name}: {error}")
                break
            found = task_number(task, result.values)
            if found is None:
                gaps.append(f"{subject.name}: {task}, {name}: no number")
                continue
            rows.append((TASK_NUMBERS[task].what, name, *found))
            if name == edited_models.UNEDITED:
                baselines = task_baselines(task, result.values).items()
                own = [(TASK_NUMBERS[task].what, key, value, None, found[-1]) for key, value in baselines]
                rows += [row for row in own if row[2] is not None]
    if not rows:
        return Gap("; ".join(gaps))
    return Rows(
        tables={_TABLE: rows},
        text="; ".join(_clause(what, rows) for what in dict.fromkeys(row[0] for row in rows)),
        compared=rows[0][2],
        count=counted(max(row[-1] for row in rows), "test image"),
        gaps=gaps,
        images="; ".join(_images(options)),
    )


def _clause(what: str, rows: Sequence[tuple[str, str, float | None, float | None, int]]) -> str:
    name, _, unit = what.partition(", ")
    given = (f"{number(value, unit)} {edit}" for task, edit, value, *_ in rows if task == what)
    return f"{name} {', '.join(given)}"


def _images(options: Options) -> list[str]:
    named = {"classifiers": options.task_images, "dense tasks": options.dense_images}
    is_dense = {"classifiers": False, "dense tasks": True}
    return [
        f"{_text(splits)} ({name})"
        for name, splits in named.items()
        if splits is not None and any(TASKS[task].is_dense == is_dense[name] for task in options.tasks)
    ]


def _text(splits: Splits) -> str:
    train, test = (":".join(one) for one in splits)
    return f"Tested on {test}" if train == test else f"Trained on {train}, tested on {test}"


EXPERIMENT = Experiment(
    question="Do registers at test time, or the removal of outliers, change what heads make of features?",
    answers=f"{REGISTERS}, table 2a; arXiv:2506.08010, test-time registers",
    definition=f"The tasks of evaluate --task=NAME that --tasks names, with their settings, and the "
    f"baselines of those that have them. {EDITS}",
    tables={_TABLE: "model | task | edit | value | standard error | test images"},
    measure=_measure,
    features=edited_models.BASE,
    runs_model=True,
    compares="first number of the unedited model",
)
