"""The papers' experiments on any checkpoint and any images: a finding, tables, a figure and a JSON file each.

    vit-registers analyze --list                              # all experiments
    vit-registers analyze norms --checkpoint=runs/digits      # on the run's own evaluation split
    vit-registers analyze all --checkpoint=a --checkpoint=b --data=photos --out=report

A checkpoint is a run folder, runs/digits@STEP for one of its steps, runs/digits@all for all of them, weights
in another format, or hf://ORG/NAME for those on the Hugging Face Hub. --data is a folder of images
(subfolders are classes), NAME:SPLIT of TFDS, or digits:test. Several checkpoints are compared with each
other. Features are stored in OUT/features and read again while nothing has changed; a command that was
stopped resumes.

Probes (probe-global, probe-position, probe-reconstruction, one-shot) are trained on a part of the images of
--data and tested on the rest. With --train_data=NAME:train --data=NAME:test they are trained on the first and
tested on the second. Both flags take a folder of images, FOLDER:SPLIT (FOLDER/SPLIT/CLASS/*), or NAME:SPLIT.

`python -m vit_registers.analyze` is the same command.
"""

from vit_registers import startup

if __name__ == "__main__":
    startup.end_on_interrupt()

from absl import flags


def define_flags() -> None:
    """Defines the flags of the program."""
    from vit_registers import cli
    from vit_registers.analysis.options import Options

    flags.DEFINE_multi_string(
        "checkpoint",
        None,
        "Run folder, RUN@STEP, RUN@all, weights in another format, or hf://ORG/NAME; may be repeated.",
    )
    flags.DEFINE_string(
        "data",
        None,
        "Folder of images, FOLDER:SPLIT, or NAME:SPLIT of TFDS; by default the run's evaluation split.",
    )
    flags.DEFINE_string(
        "train_data", None, "The images to train probes on, as --data; by default a part of those of --data."
    )
    flags.DEFINE_string(
        "boxes", None, "For lost: images with boxes, a folder of PASCAL VOC or NAME:SPLIT of TFDS."
    )
    flags.DEFINE_string("out", None, "Folder for results; RUN/analysis by default.")
    flags.DEFINE_enum(
        "params",
        None,
        ["params", "ema", "teacher", "student"],
        "Trained (params, student) or averaged (ema, teacher) parameters; those to evaluate if not given.",
    )
    flags.DEFINE_string(
        "rule", Options.rule, "Rule for outliers: absolute:150, quantile:0.98, std:3 or valley."
    )
    for name, default, text in (
        ("num_images", None, "The number of images, the first ones; all by default."),
        ("examples", Options.num_examples, "The number of images that pictures show."),
        ("lost_blocks", Options.num_blocks, "For lost: the number of last blocks whose features are used."),
        ("edited_images", Options.num_edited, "The number of images that edited models are shown, at most."),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=1)
    flags.DEFINE_list("tasks", [], "For frozen-heads: tasks, such as linear, segmentation and depth.")
    flags.DEFINE_list(
        "task_data", None, "For frozen-heads: TRAIN,TEST of segmentation and depth, each as NAME:SPLIT."
    )
    flags.DEFINE_list("energy", None, "For cost: HOURS,WATTS,PUE,INTENSITY (kg of CO2 for each kWh).")
    flags.DEFINE_bool("list", False, "Print all experiments and exit.")
    cli.define_settings()


# The name of the experiment; the other arguments are flags.
NAME = startup.take_name() if __name__ == "__main__" else ""
startup.begin(__name__, define_flags)

import contextlib
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from ml_collections import config_flags

from vit_registers import cli
from vit_registers.analysis import given_images, opening
from vit_registers.analysis.experiments.catalog import EXPERIMENTS, group_of
from vit_registers.analysis.experiments.experiment import Experiment, not_measured
from vit_registers.analysis.experiments.train_test import TO_COMPARE, num_shared
from vit_registers.analysis.features.extract import Images, extract
from vit_registers.analysis.measures.outliers import find
from vit_registers.analysis.options import Options, parse_energy
from vit_registers.analysis.progress import AnalysisProgress, Findings
from vit_registers.analysis.report import drawing, write
from vit_registers.analysis.report.entry import ReportEntry
from vit_registers.analysis.report.result import Result, counted
from vit_registers.analysis.subject import Subject
from vit_registers.config import Run, lookup
from vit_registers.errors import ConfigError, DataError, UserError
from vit_registers.runtime.compile_cache import use_compile_cache
from vit_registers.status import waiting

ALL = "all"


def analyze(
    names: list[str],
    opened: list[opening.OpenedModel],
    options: Options,
    out: Path,
    log_every_s: float = Run().log_every_s,
) -> list[ReportEntry]:
    """The results of the experiments, on all models that have what they need; each is written to out/<name>.

    Where there are several experiments, a DataError of one becomes a gap of its result, and the finding of
    each is printed once it is measured.
    """
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
            is_comparable=opening.are_comparable(opened),
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
            asked = [EXPERIMENTS[name] for name in names if not EXPERIMENTS[name].lacking(one.parts)]
            found[one.name] = _extracted(one, asked, out, options, progress.images)
        if is_single:
            with progress.measuring(names[0]):
                return [answer(names[0])]
        return _in_two_threads(names, shown)


def _extracted(
    one: opening.OpenedModel, asked: list[Experiment], out: Path, options: Options, show: Images
) -> Subject:
    """The subject with all features that the experiments read.

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
    if count := num_shared(subject):
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


def show_list() -> None:
    """Prints all experiments, with the figures and tables of the papers that they correspond to."""
    width = max(map(len, EXPERIMENTS))
    for name, experiment in EXPERIMENTS.items():
        print(f"{name:<{width}}  {experiment.question}\n{'':<{width}}  {experiment.answers}")


def _check(name: str, values: flags.FlagValues) -> None:
    """Raises ConfigError for flags that are wrong before anything is opened."""
    if not name:
        raise ConfigError(
            "name an experiment, such as norms, or all; vit-registers analyze --list shows them"
        )
    if "/" in name or Path(name).is_dir():
        raise ConfigError(
            f"'{name}' is not an experiment: did you mean vit-registers analyze all --checkpoint={name}?"
        )
    if name != ALL and not lookup(EXPERIMENTS, name, "experiment").trains and values.train_data:
        able = ", ".join(key for key, one in EXPERIMENTS.items() if one.trains)
        raise ConfigError(f"--train_data: {name} trains nothing: leave it out; these do: {able}")
    if values.tasks and name not in (ALL, "frozen-heads"):
        raise ConfigError(f"--tasks is for frozen-heads, not {name}: leave it out")
    if not values.checkpoint:
        raise ConfigError(
            "--checkpoint is missing: give a run folder, or weights in another format; it may be repeated"
        )
    if jax.process_count() > 1:
        raise ConfigError("analyze runs on one machine, on all of its devices")
    find(np.array([[0.0, 1.0]]), values.rule)


def main(name: str) -> None:
    """The command line, after the name of the experiment."""
    values = flags.FLAGS
    if values.list:
        show_list()
        return
    _check(name, values)
    boxes = given_images.open_boxes(values.boxes) if values.boxes else ()
    options = Options(
        rule=values.rule,
        num_examples=values.examples,
        boxes=boxes,
        num_blocks=values.lost_blocks,
        num_edited=values.edited_images,
        energy=parse_energy(values.energy),
    )
    out = cli.local_folder(values.out or opening.default_out(values.checkpoint[0]), "--out")
    overrides = config_flags.get_override_values(values["config"])
    use_compile_cache(values.config.run.compile_cache)
    log_every_s = values.config.run.log_every_s
    with waiting("opening the checkpoints", said_after_s=log_every_s, out=sys.stderr):
        opened = opening.open_all(
            values.checkpoint,
            values.data,
            overrides,
            num_images=values.num_images,
            params=values.params,
            train_data=values.train_data,
        )
    for one in opened:
        print(f"{one.name}: {one.describe_images()}", file=sys.stderr)
    if unlike := opening.differences(opened):
        print(f"warning: {unlike}", file=sys.stderr)
    options = given_images.with_tasks(options, values.tasks, values.task_data, opened[0])
    names = list(EXPERIMENTS) if name == ALL else [name]
    entries = analyze(names, opened, options, out, log_every_s)
    about = {one.name: f"{one.describe()}; {one.describe_images()}" for one in opened}
    about |= {"Warning": unlike} if unlike else {}
    if name == ALL:
        path = write.write_report(entries, out, title="Registers, dissected", about=about)
        print(f"{path}\n{out / 'report.md'}")
        return
    write.write_single(entries[0], out, title=name, about=about)
    _print_entry(entries[0], out / name)


def _print_entry(entry: ReportEntry, folder: Path) -> None:
    """Prints the finding, and what it is limited by. Raises UserError if nothing was measured."""
    for line in entry.result.images:
        print(f"images: {line}")
    for gap in entry.result.gaps:
        print(f"gap: {gap}")
    for line in entry.result.cautions:
        print(f"small sample: {line}")
    print(f"finding: {entry.result.finding}")
    print(folder)
    if entry.result.gaps and not entry.result.tables:
        raise UserError(f"{entry.name} could not be measured on any of the checkpoints")


if __name__ == "__main__":
    cli.run(lambda: main(NAME))
