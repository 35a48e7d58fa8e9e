"""An experiment: its question, what it reads, and how it measures the models that can be measured."""

import dataclasses
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from vit_registers.analysis.features.finite import NotFiniteError, not_finite
from vit_registers.analysis.features.table import FEATURES
from vit_registers.analysis.report.result import Result, Table, is_not_finite
from vit_registers.analysis.subject import Options, Subject

_ALWAYS = ("norms_LxT",)  # says of a model whether it gives finite values, where an experiment reads nothing


class Experiment(NamedTuple):
    """One question. `needs_any` are parts (Subject.parts) of which a model has to have one."""

    question: str
    answers: str
    features: tuple[str, ...]
    compute: Callable[[list[Subject], Options], Result]
    needs_any: tuple[str, ...] = ()

    def lacking(self, parts: Collection[str]) -> str | None:
        """What a model of these parts would have to have and has not, in words."""
        for name in self.features:
            needed = FEATURES[name].needs
            if needed is not None and needed not in parts:
                return needed
        if self.needs_any and not set(parts) & set(self.needs_any):
            return " and no ".join(self.needs_any)
        return None

    def measure(self, subjects: list[Subject], options: Options) -> Result:
        """What `compute` finds for the models whose features are finite, with a gap for each other model.

        A model is left out as well where the experiment edits it and the edited model's features are not
        finite. Experiments that read no features keep every model, and state the gap.
        """
        gaps, able = [], []
        for subject in subjects:
            flaw = _flaw(subject, self.features)
            if flaw is not None:
                gaps.append(f"{subject.name}: {flaw}")
            if flaw is None or not self.features:
                able.append(subject)
        result = Result(definition="Not measured.")
        while able:
            try:
                with np.errstate(all="ignore"):  # what is not finite is counted below
                    result = self.compute(able, options)
                break
            except NotFiniteError as error:
                gaps.append(str(error))
                able = [subject for subject in able if subject.name != error.model]
        result.tables = [_without_not_finite(table, gaps) for table in result.tables]
        result.gaps[:0] = gaps
        return result


def _flaw(subject: Subject, features: tuple[str, ...]) -> str | None:
    """Why a model cannot be measured by these features, or where there are none, why it is not sound."""
    if features:
        return not_finite(subject.store, features)
    if not subject.store.missing(_ALWAYS) and (flaw := not_finite(subject.store, _ALWAYS)):
        return flaw
    number, total = subject.num_not_finite, subject.num_parameters
    return f"its parameters hold values that are not finite ({number:,} of {total:,})" if number else None


def _without_not_finite(table: Table, gaps: list[str]) -> Table:
    """The table with empty cells for numbers that are not finite, which are counted in a gap."""
    number = sum(is_not_finite(cell) for row in table.rows for cell in row)
    if not number:
        return table
    gaps.append(f"{table.title}: {number} numbers are not finite and are left out")
    rows = [[None if is_not_finite(cell) else cell for cell in row] for row in table.rows]
    return dataclasses.replace(table, rows=rows)
