"""An experiment: its question, what it reads, how it measures one model, draws and sums up several."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from vit_registers.analysis.features.finite import NotFiniteError, not_finite
from vit_registers.analysis.features.table import FEATURES, TEXT_TOWER
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.finding import labels, sentence
from vit_registers.analysis.report.headline import FEWEST
from vit_registers.analysis.report.result import (
    Found,
    Gap,
    Pictures,
    Result,
    Rows,
    Table,
    counted,
    is_not_finite,
)
from vit_registers.analysis.subject import Subject

# What experiments answer.
REGISTERS, DECOUPLING = "arXiv:2309.16588", "arXiv:2505.05892"
SMALL = "Registers in Small Vision Transformers"
SEVERITY = f"what reviewers of {REGISTERS} asked: how severe artifacts are"
CAUSES = f"what reviewers of {REGISTERS} asked: what artifacts cause"
_ALWAYS = ("norms_LxT",)  # read by experiments without features, to see whether the model is finite


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One question to several models.

    `measure` gives the rows of one model, or a gap. `tables` are the columns by title, divided by " | ": a
    first column "model" is filled in, and "{rule}" is replaced by the rule for outliers. `draw` makes the
    pictures from the rows of all models. `compares` says what Rows.compared is, and after a comma its unit.
    A model needs all parts that the features need, and one of `needs_any`.

    `arrange` gives the order of the models in tables and pictures, and may omit models; `across` gives gaps
    that concern several models; `sums_up` replaces the usual finding.
    """

    question: str
    answers: str  # which figures and tables of which papers
    definition: str | Callable[[Options], str]
    tables: Mapping[str, str]
    measure: Callable[[Subject, Options], Rows | Gap]
    features: tuple[str, ...] = ()
    needs_any: tuple[str, ...] = ()
    runs_model: bool = False  # whether `measure` runs the model: Subject.rerun or Subject.native
    trains: bool = False  # whether `measure` trains something, on Subject.train if there are such images
    takes_steps: bool = False  # whether a run folder without a step means all steps that were kept
    compares: str = ""
    opens: str = ""  # the title of a table that the page shows without a click
    draw: Callable[[Found], Pictures] = lambda found: ()
    arrange: Callable[[Found], Found] = lambda found: found
    across: Callable[[Found], Sequence[str]] = lambda found: ()
    sums_up: Callable[[Found], str] | None = None

    @property
    def needs_text_tower(self) -> bool:
        """Whether it is for models of images and texts."""
        return TEXT_TOWER in (*self.needs_any, *(FEATURES[name].needs for name in self.features))

    def lacking(self, parts: Collection[str]) -> str | None:
        """The part that a model of these parts lacks, in words; None where it lacks nothing."""
        for name in self.features:
            needed = FEATURES[name].needs
            if needed is not None and needed not in parts:
                return needed
        if self.needs_any and not set(parts) & set(self.needs_any):
            return " and no ".join(self.needs_any)
        return None

    def run(self, subjects: Sequence[Subject], options: Options, order: Sequence[str] = ()) -> Result:
        """The result for the models whose features are finite, with a gap for each other model.

        Experiments that read no features keep every model, and state the gap. `order` are the names of all
        models of the report: the place in it gives a model its colour.
        """
        flaws = {subject.name: _flaw(subject, self.features) for subject in subjects}
        for subject in subjects if self.trains else ():
            if flaws[subject.name] is None and subject.train is not None:
                flaw = _flaw(subject.train, self.features)
                flaws[subject.name] = None if flaw is None else f"of the images to train on, {flaw}"
        able = [one for one in subjects if flaws[one.name] is None or not self.features]
        result = self.result(able, options, order)
        result.gaps[:0] = [f"{name}: {flaw}" for name, flaw in flaws.items() if flaw is not None]
        result.finding = result.finding if able else not_measured(result.gaps)
        return result

    def result(self, subjects: Sequence[Subject], options: Options, order: Sequence[str] = ()) -> Result:
        """The result for all models; a gap for each model that gives no finite values once it is edited."""
        define = self.definition
        result = Result(definition=define if isinstance(define, str) else define(options))
        found: list[Rows] = []
        names = [subject.name for subject in subjects]
        with np.errstate(all="ignore"):  # values that are not finite are counted below
            for subject in subjects:
                try:
                    one = self.measure(subject, options)
                except NotFiniteError as error:
                    one = Gap(str(error))
                if isinstance(one, Rows):
                    place = list(order or names).index(subject.name)
                    found.append(dataclasses.replace(one, name=subject.name, place=place))
                result.gaps += [one.reason] if isinstance(one, Gap) else one.gaps
            result.gaps += self.across(found)
            found = list(self.arrange(found))
            result.pictures = list(self.draw(found)) if found else []
        result.gaps = list(dict.fromkeys(result.gaps))
        for title, columns in self.tables.items():
            names = tuple(columns.format(rule=options.rule).split(" | "))
            rows = [
                (one.name, *row) if names[0] == "model" else tuple(row)
                for one in found
                for row in one.tables.get(title, ())
            ]
            rows = list(dict.fromkeys(rows))  # a row that is the same for every model is given once
            if count := sum(is_not_finite(cell) for row in rows for cell in row):
                result.gaps.append(f"{title}: {count} numbers are not finite and are left out")
            if rows:
                is_open = title == self.opens
                result.tables.append(Table(title=title, columns=names, rows=rows, is_open=is_open))
        result.files = {name: text for one in found for name, text in one.files.items()}
        result.images = list(dict.fromkeys(one.images for one in found if one.images))
        result.cautions = [line for one in found for line in (*_small(one), *one.cautions)]
        in_order = sorted(found, key=lambda one: one.place)
        result.headlines = {one.name: one.headlines for one in in_order if one.headlines}
        result.remarks = {one.name: one.remark for one in in_order if one.remark}
        if not found:
            result.finding = not_measured(result.gaps)
        elif self.sums_up is not None:
            result.finding = self.sums_up(found)
        else:
            layouts = {one.name: one.layout for one in subjects}
            counts = {name: (of.num_registers, of.num_summaries) for name, of in layouts.items()}
            named = labels({one.name: counts[one.name] for one in found})
            result.finding = sentence(found, named, self.compares)
        return result


def not_measured(gaps: Sequence[str]) -> str:
    """The finding of an experiment that measured no model, with the first gap as the reason."""
    return f"Not measured: {gaps[0]}." if gaps else "Not measured."


def few(name: str, count: int, noun: str) -> list[str]:
    """A caution for a model with fewer than FEWEST of something, else none."""
    return (
        [f"{name}: {counted(count, noun)}, too few for a claim (fewer than {FEWEST})"]
        if count < FEWEST
        else []
    )


def _small(one: Rows) -> list[str]:
    """A caution where Rows.count is of few images."""
    number, _, noun = one.count.partition(" ")
    is_of_images = re.match(r"(test )?images?\b", noun) is not None
    return few(one.name, int(number.replace(",", "")), noun.removesuffix("s")) if is_of_images else []


def _flaw(subject: Subject, features: tuple[str, ...]) -> str | None:
    """Which features of a model are not finite; without features, which of its other values are."""
    if features:
        return not_finite(subject.store, features)
    if not subject.store.missing(_ALWAYS) and (flaw := not_finite(subject.store, _ALWAYS)):
        return flaw
    number, total = subject.num_not_finite, subject.num_parameters
    return f"its parameters hold values that are not finite ({number:,} of {total:,})" if number else None
