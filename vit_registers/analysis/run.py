"""Runs experiments: computes the features that they read, measures, and writes their results."""

import contextlib
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from vit_registers.analysis.experiments.catalog import EXPERIMENTS, group_of
from vit_registers.analysis.experiments.experiment import Experiment, not_measured
from vit_registers.analysis.experiments.train_test import TO_COMPARE, num_shared
from vit_registers.analysis.features.extract import Images, extract
from vit_registers.analysis.opening import OpenedModel, are_comparable
from vit_registers.analysis.options import Options
from vit_registers.analysis.progress import AnalysisProgress, Findings
from vit_registers.analysis.report import drawing, write
from vit_registers.analysis.report.entry import ReportEntry
from vit_registers.analysis.report.result import Result, counted
from vit_registers.analysis.subject import Subject
from vit_registers.config import Run
from vit_registers.errors import DataError


def analyze(
    names: list[str],
    opened: list[OpenedModel],
    options: Options,
    out: Path,
    log_every_s: float = Run().log_every_s,
) -> list[ReportEntry]:
    """The results of the experiments, on all models that have what they need; each is written to out/<name>.

    Where there are several experiments, a DataError of one becomes a gap of its result, and the finding of
    each is printed once it is measured. Of several processes, all of which have to call this, all compute
    features, and process 0 does everything else; the others have no results.
    """
    asked = {
        one.name: [EXPERIMENTS[name] for name in names if not EXPERIMENTS[name].lacking(one.parts)]
        for one in opened
    }
    if jax.process_index() != 0:
        for one in opened:
            _extracted(one, asked[one.name], out, options, lambda what, done, total: None)
        return []
    found: dict[str, Subject] = {}

    def answer(name: str) -> ReportEntry:
        experiment = EXPERIMENTS[name]
        lacking = {one.name: experiment.lacking(one.parts) for one in opened}
        able = [found[key] for key, missing in lacking.items() if not missing]
        gaps = [f"{key}: the model has no {missing}" for key, missing in lacking.items() if missing]
        try:
            result = experiment.run(able, options, [one.name for one in opened])
        except DataError as error:
            if is_single:
                raise
            result = Result(definition="Not measured.", gaps=[str(error)])
        result.gaps[:0] = gaps
        if not (result.tables or result.pictures):
            result.finding = not_measured(result.gaps)
        entry = ReportEntry(
            name,
            experiment.question,
            experiment.answers,
            result,
            group=group_of(name),
            is_comparable=are_comparable(opened),
        )
        write.write_entry(entry, out, draw)
        return entry

    def shown(name: str) -> ReportEntry:
        with progress.measuring(name):
            entry = answer(name)
        findings.add(name, entry.result.finding)
        return entry

    findings = Findings(names)
    is_single = len(names) == 1
    # Another process draws the pictures of several experiments; it starts while features are computed.
    drawer = contextlib.nullcontext(drawing.save_png) if is_single else drawing.in_background()
    with AnalysisProgress(len(names), log_every_s) as progress, drawer as draw:
        for one in opened:
            subject = _extracted(one, asked[one.name], out, options, progress.images)
            assert subject is not None  # this is process 0
            found[one.name] = subject
        if is_single:
            with progress.measuring(names[0]):
                return [answer(names[0])]
        return _in_two_threads(names, shown)


def _extracted(
    one: OpenedModel, asked: list[Experiment], out: Path, options: Options, show: Images
) -> Subject | None:
    """The subject with all features that the experiments read; see `extract` for several processes.

    Prints a line if images to test on are among those to train on.
    """
    names, train_names = (
        dict.fromkeys(feature for experiment in chosen for feature in experiment.features)
        for chosen in (asked, [experiment for experiment in asked if experiment.trains])
    )
    if one.train is None or not train_names:
        return extract(one, tuple(names), out, options, show)
    names[TO_COMPARE] = train_names[TO_COMPARE] = None
    subject = extract(one, tuple(names), out, options, show, train_names=tuple(train_names))
    if subject is not None and (count := num_shared(subject)):
        text = (
            f"{counted(count, 'image')} of --data are among those of --train_data, so that probes know them"
        )
        print(f"warning: {one.name}: {text}", file=sys.stderr)
    return subject


def _in_two_threads(names: list[str], answer: Callable[[str], ReportEntry]) -> list[ReportEntry]:
    """The entries of several experiments.

    One thread runs models, whose programs compile while this thread does the other experiments.
    """
    runner = ThreadPoolExecutor(1)
    try:
        running = {name: runner.submit(answer, name) for name in names if EXPERIMENTS[name].runs_model}
        done = {name: answer(name) for name in names if name not in running}
        return [running[name].result() if name in running else done[name] for name in names]
    finally:
        runner.shutdown(wait=False, cancel_futures=True)
