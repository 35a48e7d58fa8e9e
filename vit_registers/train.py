"""Trains a model, or resumes the run in the run folder --workdir.

    vit-registers train --config=digits:registers=4 --workdir=runs/digits
    vit-registers train --config=digits --workdir=runs/deep --config.model.depth=6

--config takes a run card (vit-registers configs) or a config file. --config.SECTION.NAME=VALUE sets a
setting of those below. --print_config prints the config, --dry_run what a step needs. The run folder
receives config.json, parameters.txt, metrics.jsonl, checkpoints and, unless run.use_tensorboard is False,
TensorBoard files. result.json is written at the end. docs/running.md describes what is printed. On SIGTERM
or ctrl-C the program finishes the step, saves and exits (--stop_code). The same command resumes the run.

Several processes train one run if each is started with --distributed (TPU pods, SLURM, Open MPI), or with
--coordinator, --num_processes and --process_id. All other flags but data.data_dir must be equal. The
processes stop at the same step, and all of them end if one fails.

`python -m vit_registers.train` is the same command.
"""

from vit_registers import startup

if __name__ == "__main__":
    startup.end_on_interrupt()

from absl import flags

from vit_registers import processes


def define_flags() -> None:
    """Defines the flags of the program."""
    from vit_registers import cli

    cli.define_config()
    flags.DEFINE_string("workdir", None, "Run folder; created if it does not exist, else resumed.")
    processes.define_flags()
    flags.DEFINE_integer("stop_code", 0, "Exit code of all processes after a signal, if steps are left.")
    flags.DEFINE_bool("print_config", False, "Print the config as a config file in Python, and exit.")
    flags.DEFINE_bool("dry_run", False, "Check all, print what a step needs, and exit; writes nothing.")
    flags.mark_flags_as_required(["config"])


def check_flags() -> None:
    """Prints the config if --print_config asks for it, and exits. Raises ConfigError without --workdir."""
    from vit_registers import cli

    if flags.FLAGS.print_config:
        cli.print_config()
    if not flags.FLAGS.dry_run:
        cli.require("workdir")


def settings_help() -> str:
    """The settings, for --help."""
    from vit_registers.config import reference

    return reference.plain_text()


startup.begin(__name__, define_flags, check_flags, settings_help, processes.tell_others)

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
from etils import epath

from vit_registers import cli, fine_tuning
from vit_registers import config as config_lib
from vit_registers.config import Config, Run
from vit_registers.data.batch import LABEL
from vit_registers.data.loaders import EvalSplit, Loader, check_classes
from vit_registers.data.prefetch import ahead
from vit_registers.errors import UserError
from vit_registers.evaluation.catalog import make_evaluators
from vit_registers.evaluation.text_vectors import TextReader
from vit_registers.models.masks import resolve
from vit_registers.objectives.base import Objective
from vit_registers.runs import results
from vit_registers.runs.checkpoints import Checkpoints
from vit_registers.runs.dry_run import describe_run
from vit_registers.runs.loop import Loop
from vit_registers.runs.output_folder import check_path, check_workdir
from vit_registers.runs.prepared import Prepared, prepare
from vit_registers.runs.progress import Progress
from vit_registers.runs.run_files import open_writer, write_about, write_finished
from vit_registers.runs.trackers import open_trackers, tracker_names
from vit_registers.runs.writers import MetricWriter
from vit_registers.runtime import distributed
from vit_registers.runtime.compile_cache import use_compile_cache
from vit_registers.runtime.profiling import Profile, parse_steps
from vit_registers.runtime.stopping import Agreement
from vit_registers.runtime.watchdog import Watchdog
from vit_registers.status import say
from vit_registers.storage import files, paths
from vit_registers.storage.run_lock import Lock, lock_run
from vit_registers.training import averages, sharding
from vit_registers.training.setup import Setup
from vit_registers.training.state import TrainState


def train(config: Config, workdir: str) -> bool:
    """Trains `config` in `workdir` until the last step, or until a signal; whether it is finished."""
    config = dataclasses.replace(config, model=resolve(config.model))
    if jax.process_index() != 0:
        return _train(config, workdir, None)
    check_path(paths.folder(workdir))
    tracker_names(config.run.writers)  # raises
    with lock_run(cli.writable_folder(workdir, "--workdir")) as lock:
        check_workdir(paths.folder(workdir))
        return _train(config, workdir, lock)


def _train(config: Config, workdir: str, lock: Lock | None) -> bool:
    run = paths.folder(workdir)
    watchdog = Watchdog(
        config.run.hang_timeout_s, functools.partial(distributed.end_all, code=distributed.LOST)
    )
    fine_tuning.check_choices(config.init_from)
    prepared = prepare(config)
    mesh, loader, durations, setup = prepared.mesh, prepared.loader, prepared.durations, prepared.setup
    traced = parse_steps(config.run.profile_steps, durations.total_steps)
    if traced is not None:
        cli.check_local(workdir, "run.profile_steps: a trace is written to --workdir, and --workdir")
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        attention = prepared.computed.model.attention
        checkpoints = Checkpoints(workdir, config, lock, data=prepared.data, attention=attention)
        stack.enter_context(checkpoints)
        if LABEL in setup.objective.targets:
            # For a resumed run, Checkpoints has compared the class names.
            check_classes(loader, config.model.num_classes)
        evaluators = state_evaluators(
            prepared.computed, setup.objective, prepared.splits, mesh, own_text_reader(prepared)
        )
        start_step = checkpoints.restorable_step or 0
        writer, earlier_s, made = None, 0.0, {}
        if jax.process_index() == 0:
            writer = stack.enter_context(open_files(config, prepared, run, checkpoints, [*evaluators]))
            earlier_s, made = results.trained_s(run), results.made_with(attention)
        progress = Progress(
            start_step=start_step,
            total_steps=durations.total_steps,
            batch_size=config.data.batch_size,
            log_every_s=config.run.log_every_s,
            earlier_s=earlier_s,
            is_quiet=jax.process_index() != 0,
        )
        if start_step:
            say_resumed(progress, config.run, workdir, start_step, durations.total_steps)
        elif config.model.num_classes:
            fine_tuning.check_kept_head(config.init_from, prepared.data.class_names)
        state = start_state(config, setup, checkpoints, progress)
        loop = Loop(
            settings=config.run,
            checkpoint=config.checkpoint,
            durations=durations,
            train_step=setup.train_step,
            evaluators=evaluators,
            checkpoints=checkpoints,
            writer=writer,
            progress=progress,
            agreement=Agreement(mesh, config.run.stop_every_steps),
            watchdog=watchdog,
            profile=Profile(str(run / "profile"), traced),
        )
        batches = loader.train_batches(start_step, sharding.batch_sharding(mesh))
        state = loop.run(state, ahead(batches, durations.total_steps - start_step))
        total, is_finished = durations.total_steps, int(state.step) == durations.total_steps
        is_new = int(state.step) > start_step or not files.exists(run / results.FILE)
        if writer is not None:
            writer.settle()
        if writer is not None and is_finished and is_new:
            write_finished(run, loop, setup, state, made)
        say_left_out(progress, loader)
        if is_finished:
            progress.say(f"{total} steps in {progress.time_s:.1f} s of training; run folder {workdir}")
        return is_finished


def open_files(
    config: Config, prepared: Prepared, run: epath.Path, checkpoints: Checkpoints, evaluators: list[str]
) -> MetricWriter:
    """The writer of the metrics of a run, after the files that describe the run are written."""
    settings, durations = config_lib.to_dict(config), prepared.durations
    step, texts = checkpoints.restorable_step or 0, prepared.loader.texts
    write_about(
        settings,
        config.model,
        prepared.setup,
        run,
        tokenizer=None if texts is None else texts.tokenizer,
        is_resumed=step > 0,
        is_finished=step >= durations.total_steps,
    )
    return open_writer(
        run,
        checkpoints,
        durations,
        evaluators,
        use_tensorboard=config.run.use_tensorboard,
        trackers=open_trackers(config.run.writers, settings, run),
    )


def dry_run(config: Config) -> None:
    """Prints what training of `config` requires, after all checks of a new run. Writes nothing."""
    config = dataclasses.replace(config, model=resolve(config.model))
    fine_tuning.check_choices(config.init_from)
    prepared = prepare(config)
    parse_steps(config.run.profile_steps, prepared.durations.total_steps)
    with jax.set_mesh(prepared.mesh):
        objective = prepared.setup.objective
        if LABEL in objective.targets:
            check_classes(prepared.loader, config.model.num_classes)
        state_evaluators(
            prepared.computed, objective, prepared.splits, prepared.mesh, own_text_reader(prepared)
        )
        if config.init_from.path is not None:
            if config.model.num_classes:
                fine_tuning.check_kept_head(config.init_from, prepared.data.class_names)
            fine_tuning.start_leaves(config.init_from, config.model)
            fine_tuning.start_heads(config.init_from, fine_tuning.heads_of(prepared.setup), config.text)
        for line in describe_run(prepared):
            say(line)
    say("dry run: nothing was written")


def say_resumed(progress: Progress, settings: Run, workdir: str, start_step: int, total_steps: int) -> None:
    """Prints the step from which a run resumes, and whether run.profile_steps begins before it."""
    progress.say(f"resumes at step {start_step} of {total_steps} in {workdir}")
    traced = parse_steps(settings.profile_steps, total_steps)
    if traced is not None and start_step >= traced[0]:
        progress.say(f"no trace: run.profile_steps={settings.profile_steps} begins before this step")


def start_state(config: Config, setup: Setup, checkpoints: Checkpoints, progress: Progress) -> TrainState:
    """The state of the checkpoint that the run resumes from, or the initial state."""
    if checkpoints.restorable_step:
        with progress.waiting("restoring the checkpoint"):
            return checkpoints.restore(setup.abstract)
    with progress.waiting("initializing the parameters"):
        return fine_tuning.first_state(
            config.init_from, config.model, setup, text=config.text, say=progress.say
        )


def say_left_out(progress: Progress, loader: Loader) -> None:
    """Prints how many images and captions were left out or cut."""
    if broken := loader.broken_names:
        without = "" if loader.texts is None else ", or have no caption (a damaged tar file counts as one)"
        progress.say(f"images left out because they cannot be decoded{without}: {len(broken)}")
    if loader.texts is not None:
        progress.say(loader.texts.summary())


def own_text_reader(prepared: Prepared) -> TextReader | None:
    """What reads texts for the evaluators of a run with captions; None for other runs."""
    texts = prepared.loader.texts
    return None if texts is None else TextReader(prepared.computed.text, texts.tokenizer)


def state_evaluators(
    config: Config,
    objective: Objective,
    splits: Mapping[str, EvalSplit],
    mesh: jax.sharding.Mesh,
    reader: TextReader | None = None,
) -> dict[str, Callable[[TrainState], dict[str, float]]]:
    """The evaluators of `config` by name, as functions of the state.

    They are applied to the parameters that the objective evaluates. If the run has an exponential average,
    the first evaluator is also applied to it, as <name>_ema.
    """
    field = averages.eval_field(config.optimizer)
    evaluators = make_evaluators(
        config.objective, config.model, config.data, splits, mesh, config.tasks, reader
    )
    named: dict[str, Callable[[TrainState], dict[str, float]]] = {}
    for name, evaluator in evaluators.items():
        is_first = not named
        named[name] = lambda state, evaluator=evaluator: evaluator(
            objective.eval_params(getattr(state, field), state.extra)
        )
        if is_first and config.optimizer.ema_decay is not None:
            named[f"{name}_ema"] = lambda state, evaluator=evaluator: evaluator(state.ema)
    return named


def main() -> None:
    """The command line."""
    given, config, refused = flags.FLAGS, None, None
    try:
        config = cli.config_of_flags()
    except UserError as error:
        if not processes.are_asked_for():
            raise
        refused = error  # the other processes, whose config may be another, would wait for this one
    with processes.job((Run() if config is None else config.run).lost_timeout_s):
        if config is None:
            assert refused is not None
            raise refused
        processes.require_same_command(["workdir"], config_lib.flatten(config_lib.to_dict(config)))
        use_compile_cache(config.run.compile_cache, is_quiet=jax.process_index() != 0)
        if given.dry_run:
            dry_run(config)
            return
        is_finished = train(config, given.workdir)
    if not is_finished:
        raise SystemExit(given.stop_code)


if __name__ == "__main__":
    cli.run(main)
