"""An experiment: its question, what it reads, how it measures one model, draws and sums up several."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from vit_registers.analysis.features.finite import NotFiniteError, not_finite
from vit_registers.analysis.features.table import FEATURES
from vit_registers.analysis.report.finding import labels, sentence
from vit_registers.analysis.report.result import Gap, Picture, Result, Rows, Table, is_not_finite
from vit_registers.analysis.subject import Options, Subject

_ALWAYS = ("norms_LxT",)  # shows whether a model gives finite values, where an experiment reads nothing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One question to several models.

    `measure` gives the rows of one model, or a gap. `tables` are the columns by title, divided by " | ";
    "{rule}" in them is replaced by the rule for outliers. `draw` makes the pictures from the rows of all
    models. `compares` says what Rows.compared is, and after a comma its unit. A model needs all parts that
    the features need (Subject.parts), and one of `needs_any`.

    `arrange` gives the order of the models in tables and pictures, and leaves out what does not belong
    there; `across` gives gaps that concern several models; `sums_up` replaces the usual finding.
    """

    question: str
    answers: str  # which figures and tables of which papers
    definition: str | Callable[[Options], str]
    tables: Mapping[str, str]
    measure: Callable[[Subject, Options], Rows | Gap]
    features: tuple[str, ...] = ()
    needs_any: tuple[str, ...] = ()
    compares: str = ""
    draw: Callable[[Sequence[Rows]], list[Picture]] = lambda found: []
    arrange: Callable[[Sequence[Rows]], Sequence[Rows]] = lambda found: found
    across: Callable[[Sequence[Rows]], list[str]] = lambda found: []
    sums_up: Callable[[Sequence[Rows]], str] | None = None

    def lacking(self, parts: Collection[str]) -> str | None:
        """The part that a model of these parts lacks, in words; None where it lacks nothing."""
        for name in self.features:
            needed = FEATURES[name].needs
            if needed is not None and needed not in parts:
                return needed
        if self.needs_any and not set(parts) & set(self.needs_any):
            return " and no ".join(self.needs_any)
        return None

    def run(self, subjects: Sequence[Subject], options: Options) -> Result:
        """The result for the models whose features are finite, with a gap for each other model.

        Experiments that read no features keep every model, and state the gap.
        """
        flaws = {subject.name: _flaw(subject, self.features) for subject in subjects}
        able = [one for one in subjects if flaws[one.name] is None or not self.features]
        result = self.result(able, options)
        result.gaps[:0] = [f"{name}: {flaw}" for name, flaw in flaws.items() if flaw is not None]
        if not able:
            result.finding = not_measured(result.gaps)
        return result

    def result(self, subjects: Sequence[Subject], options: Options) -> Result:
        """The result for all models, with a gap for each model whose features become not finite when the
        experiment edits it."""
        define = self.definition
        result = Result(definition=define if isinstance(define, str) else define(options))
        found: list[Rows] = []
        with np.errstate(all="ignore"):  # values that are not finite are counted below
            for subject in subjects:
                try:
                    one = self.measure(subject, options)
                except NotFiniteError as error:
                    one = Gap(str(error))
                if isinstance(one, Gap):
                    result.gaps.append(one.reason)
                    continue
                found.append(dataclasses.replace(one, name=subject.name))
                result.gaps += one.gaps
            result.gaps += self.across(found)
            found = list(self.arrange(found))
            result.pictures = self.draw(found) if found else []
        result.gaps = list(dict.fromkeys(result.gaps))
        for title, columns in self.tables.items():
            # A row that is the same for every model is given once.
            rows = list(dict.fromkeys(tuple(row) for one in found for row in one.tables.get(title, ())))
            if rows:
                names = tuple(columns.format(rule=options.rule).split(" | "))
                table = Table(title=title, columns=names, rows=rows)
                result.tables.append(_without_not_finite(table, result.gaps))
        result.files = {name: text for one in found for name, text in one.files.items()}
        result.finding = self._finding(found, subjects) if found else not_measured(result.gaps)
        return result

    def _finding(self, found: Sequence[Rows], subjects: Sequence[Subject]) -> str:
        if self.sums_up is not None:
            return self.sums_up(found)
        measured = {one.name for one in found}
        counts = {one.name: one.layout.num_registers for one in subjects if one.name in measured}
        return sentence(found, labels(counts), self.compares)


def not_measured(gaps: Sequence[str]) -> str:
    """The finding of an experiment that no model can answer, with the first gap as the reason."""
    return f"Not measured: {gaps[0]}." if gaps else "Not measured."


def _flaw(subject: Subject, features: tuple[str, ...]) -> str | None:
    """Why a model cannot be measured by these features; where there are none, what is wrong with it."""
    if features:
        return not_finite(subject.store, features)
    if not subject.store.missing(_ALWAYS) and (flaw := not_finite(subject.store, _ALWAYS)):
        return flaw
    number, total = subject.num_not_finite, subject.num_parameters
    return f"its parameters hold values that are not finite ({number:,} of {total:,})" if number else None


def _without_not_finite(table: Table, gaps: list[str]) -> Table:
    """The table with empty cells for numbers that are not finite, which are counted in a gap."""
    count = sum(is_not_finite(cell) for row in table.rows for cell in row)
    if not count:
        return table
    gaps.append(f"{table.title}: {count} numbers are not finite and are left out")
    return dataclasses.replace(table, rows=table.without_not_finite())
