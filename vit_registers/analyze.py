"""The papers' experiments on any checkpoint and any images: a finding, tables, a figure and a JSON file each.

    vit-registers analyze --list                              # all experiments
    vit-registers analyze norms --checkpoint=runs/digits      # on the run's own evaluation split
    vit-registers analyze all --checkpoint=a --checkpoint=b --data=photos --out=report
    vit-registers analyze over-training,attention-over-training,focus-over-training --checkpoint=runs/digits

A checkpoint is a run folder, runs/digits@STEP for one of its steps, runs/digits@all for all of them,
'sweep/*' for the runs of a sweep, weights in another format, or hf://ORG/NAME for those on the Hugging Face
Hub. The experiments over training read a run folder at all steps that were kept
(checkpoint.keep_every_steps). --data is a folder of images (subfolders are classes), NAME:SPLIT of TFDS, or
digits:test. Several checkpoints are compared with each other. Features are stored in OUT/features and read
again while nothing has changed; a command that was stopped resumes.

Probes (probe-global, probe-position, probe-reconstruction, one-shot) are trained on a part of the images of
--data and tested on the rest. With --train_data=NAME:train --data=NAME:test they are trained on the first and
tested on the second. Both flags take a folder of images, FOLDER:SPLIT (FOLDER/SPLIT/CLASS/*), or NAME:SPLIT.

Several processes share the images if each is started with --distributed or --coordinator, as for train.
Process 0 alone measures, and writes the results.

`python -m vit_registers.analyze` is the same command.
"""

from vit_registers import startup

if __name__ == "__main__":
    startup.end_on_interrupt()

from absl import flags

from vit_registers import processes


def define_flags() -> None:
    """Defines the flags of the program."""
    from vit_registers import cli
    from vit_registers.analysis.options import Options

    flags.DEFINE_multi_string(
        "checkpoint",
        None,
        "Run folder, RUN@STEP, RUN@all, 'SWEEP/*' for all runs of a sweep, weights in another format, or "
        "hf://ORG/NAME; may be repeated.",
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
        "boxes",
        None,
        "For lost and background-variance: images with boxes, a folder of PASCAL VOC or NAME:SPLIT of TFDS.",
    )
    flags.DEFINE_string("out", None, "Folder for results; RUN/analysis by default.")
    flags.DEFINE_enum(
        "params",
        None,
        ["params", "ema", "teacher", "student"],
        "Trained (params, student) or averaged (ema, teacher) parameters; those to evaluate if not given.",
    )
    flags.DEFINE_string(
        "rule",
        Options.rule,
        "Rule for outliers: absolute:150, quantile:0.98, batch:0.98/64 (of each 64 images), std:3 or valley.",
    )
    for name, default, text in (
        ("num_images", None, "The number of images, the first ones; all by default."),
        ("examples", Options.num_examples, "The number of images that pictures show."),
        ("lost_blocks", Options.num_blocks, "For lost: the number of last blocks whose features are used."),
        ("lost_size", None, "For lost: side of a centre crop, resized; by default images keep their size."),
        ("edited_images", Options.num_edited, "The number of images that edited models are shown, at most."),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=1)
    flags.DEFINE_list(
        "lost_biases", list(map(str, Options.lost_biases)), "For lost: biases of all similarities, beside 0."
    )
    flags.DEFINE_list("tasks", [], "For frozen-heads: tasks, such as linear, segmentation and depth.")
    flags.DEFINE_list(
        "task_data",
        None,
        "For frozen-heads: TRAIN,TEST of segmentation and depth, each as NAME:SPLIT; for "
        "zero-shot-segmentation: TEST.",
    )
    flags.DEFINE_list("energy", None, "For cost: HOURS,WATTS,PUE,INTENSITY (kg of CO2 for each kWh).")
    flags.DEFINE_bool(
        "before_projection",
        Options.is_before_projection,
        "For cls-terms: the terms before the output projection of attention, with the heads joined.",
    )
    flags.DEFINE_bool("list", False, "Print all experiments and exit.")
    processes.define_flags()
    cli.define_settings()


# The name of the experiment; the other arguments are flags.
NAME = startup.take_name() if __name__ == "__main__" else ""
startup.begin(__name__, define_flags, on_refusal=processes.tell_others)

import sys
from pathlib import Path

import jax
import numpy as np
from ml_collections import config_flags

from vit_registers import cli
from vit_registers.analysis import given_images, opening
from vit_registers.analysis.experiments.catalog import EXPERIMENTS, reads_texts
from vit_registers.analysis.measures.outliers import find
from vit_registers.analysis.options import Options, parse_biases, parse_energy
from vit_registers.analysis.report import write
from vit_registers.analysis.report.entry import ReportEntry
from vit_registers.analysis.run import analyze
from vit_registers.config import lookup
from vit_registers.errors import ConfigError, UserError
from vit_registers.evaluation.tasks import TASKS
from vit_registers.runtime import rendezvous
from vit_registers.runtime.compile_cache import use_compile_cache
from vit_registers.status import waiting

ALL = "all"
# That all processes must have alike.
_FLAGS = ("checkpoint", "data", "train_data", "boxes", "out", "params", "rule", "num_images", "examples")
_FLAGS += ("lost_blocks", "lost_biases", "lost_size", "edited_images", "tasks", "task_data", "energy")
_FLAGS += ("before_projection",)


def show_list() -> None:
    """Prints all experiments, with the figures and tables of the papers that they correspond to."""
    width = max(map(len, EXPERIMENTS))
    for name, experiment in EXPERIMENTS.items():
        print(f"{name:<{width}}  {experiment.question}\n{'':<{width}}  {experiment.answers}")


def _names(name: str) -> list[str]:
    """The experiments that the first argument names: all, one, or several with commas; each once."""
    return list(EXPERIMENTS) if name == ALL else list(dict.fromkeys(name.split(",")))


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
    asked = [lookup(EXPERIMENTS, one, "experiment") for one in _names(name)]
    if values.train_data and not any(one.trains for one in asked):
        able = ", ".join(key for key, one in EXPERIMENTS.items() if one.trains)
        raise ConfigError(f"--train_data: {name} trains nothing: leave it out; these do: {able}")
    if values.tasks and "frozen-heads" not in _names(name):
        raise ConfigError(f"--tasks is for frozen-heads, not {name}: leave it out")
    if not values.checkpoint:
        raise ConfigError(
            "--checkpoint is missing: give a run folder, or weights in another format; it may be repeated"
        )
    find(np.array([[0.0, 1.0]]), values.rule)


def main(name: str) -> None:
    """The command line, after the name of the experiment."""
    values = flags.FLAGS
    if values.list:
        show_list()
        return
    with processes.job(values.config.run.lost_timeout_s):
        _main(name, values)


def _main(name: str, values: flags.FlagValues) -> None:
    _check(name, values)
    overrides = config_flags.get_override_values(values["config"])
    processes.require_same_command(_FLAGS, overrides | {"the experiment": name})
    is_first = jax.process_index() == 0
    boxes = given_images.open_boxes(values.boxes) if values.boxes and is_first else ()
    options = Options(
        rule=values.rule,
        num_examples=values.examples,
        boxes=boxes,
        num_blocks=values.lost_blocks,
        lost_biases=parse_biases(values.lost_biases),
        lost_size_px=values.lost_size,
        num_edited=values.edited_images,
        is_before_projection=values.before_projection,
        energy=parse_energy(values.energy),
    )
    names = _names(name)
    if all(EXPERIMENTS[one].takes_steps for one in names):
        values.checkpoint = [opening.with_all_steps(one) for one in values.checkpoint]
    place = values.out or opening.default_out(values.checkpoint[0])
    out = cli.local_folder(place, "--out") if is_first else Path(place)
    use_compile_cache(values.config.run.compile_cache, is_quiet=not is_first)
    log_every_s = values.config.run.log_every_s
    with waiting("opening the checkpoints", said_after_s=log_every_s, is_quiet=not is_first, out=sys.stderr):
        opened = opening.open_all(
            values.checkpoint,
            values.data,
            overrides,
            num_images=values.num_images,
            params=values.params,
            train_data=values.train_data,
            has_texts=reads_texts(names)
            or any(TASKS[task].has_texts for task in values.tasks if task in TASKS),
        )
    rendezvous.require_same({one.name: (one.step, one.sha256, one.num_images) for one in opened})
    unlike = opening.differences(opened)
    if is_first:
        for one in opened:
            print(f"{one.name}: {one.describe_images()}", file=sys.stderr)
        if unlike:
            print(f"warning: {unlike}", file=sys.stderr)
    options = given_images.with_tasks(options, values.tasks, values.task_data, opened[0])
    entries = analyze(names, opened, options, out, log_every_s)
    if is_first:
        about = {one.name: f"{one.describe()}; {one.describe_images()}" for one in opened}
        _finish(name, entries, out, about | ({"Warning": unlike} if unlike else {}))


def _finish(name: str, entries: list[ReportEntry], out: Path, about: dict[str, str]) -> None:
    """Writes the report, or the one result, and prints where it is."""
    if len(entries) > 1:
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
