"""The models of each run in the order of their steps. No JAX."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from vit_registers.analysis.report.finding import number
from vit_registers.analysis.report.result import Gap, Rows
from vit_registers.analysis.subject import Subject


class RunStep(NamedTuple):
    """Rows.values of a model that is one step of a run."""

    run: str
    step: int
    shown: Any  # what the figure shows of it


def step_of(subject: Subject) -> tuple[str, int] | Gap:
    """(run, step) of the model; a gap where it is no run."""
    if subject.run is None or subject.step is None:
        return Gap(f"{subject.name}: not a run, so that it has no steps")
    return str(subject.run), subject.step


def by_run(found: Sequence[Rows]) -> dict[str, list[Rows]]:
    """The models of each run, the oldest step first."""
    runs: dict[str, list[Rows]] = {}
    for one in found:
        runs.setdefault(one.values.run, []).append(one)
    return {run: sorted(steps, key=lambda one: one.values.step) for run, steps in runs.items()}


def in_steps(found: Sequence[Rows]) -> list[Rows]:
    """The models, run by run and in the order of steps."""
    return [one for steps in by_run(found).values() for one in steps]


def one_step_gaps(found: Sequence[Rows]) -> list[str]:
    """A gap for each run of which only one step was given."""
    single = [run for run, steps in by_run(found).items() if len(steps) < 2]
    return [f"{run}: one step only; RUN@all shows all that are kept" for run in single]


def change_over_steps(found: Sequence[Rows], what: str, unit: str) -> str:
    """The finding over training: Rows.compared at the first and the last step of each run."""
    parts = []
    for steps in by_run(found).values():
        first, last = steps[0], steps[-1]
        count = f" (n = {last.count})"
        if first is last:
            parts.append(f"{last.name}: at step {last.values.step:,}, {last.text}{count}")
            continue
        parts.append(
            f"{last.name}: {what} changes from {number(first.compared, unit)} at step {first.values.step:,} "
            f"to {number(last.compared, unit)} at step {last.values.step:,}, over {len(steps)} steps{count}"
        )
    return f"{'; '.join(parts)}." if parts else "No run has several steps."
