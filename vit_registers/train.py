"""Trains a model, or goes on with the run that is in the work directory.

    python -m vit_registers.train --config=configs/digits.py:registers=4 --workdir=runs/digits

Every setting can be given: --config.model.num_registers=8. The work directory gets config.json,
parameters.txt, metrics.jsonl, TensorBoard files and checkpoints. SIGTERM or ctrl-C finishes the step,
saves and exits; the same command goes on from there.
"""

import contextlib
import json
import time
from collections.abc import Callable

import jax
from absl import flags
from ml_collections import config_flags

from vit_registers import checkpointed, cli
from vit_registers import config as config_lib
from vit_registers.config import Config
from vit_registers.data.loaders import Loader, check_classes, open_data
from vit_registers.evaluation.classify import make_evaluate
from vit_registers.interop.convert import leaves_of
from vit_registers.interop.entries import path_text
from vit_registers.training import sharding
from vit_registers.training.checkpoints import Checkpoints
from vit_registers.training.durations import durations as make_durations
from vit_registers.training.loop import Loop
from vit_registers.training.setup import Setup, set_up
from vit_registers.training.state import TrainState, put_parameters
from vit_registers.training.writers import MetricWriter, Progress, write_parameter_overview


def train(config: Config, workdir: str) -> None:
    """Runs `config` in `workdir` to its end, or to a stop that was asked for."""
    run = cli.writable_folder(workdir, "--workdir")
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_divisible(config, mesh)
    loader = open_data(config)
    check_classes(config, loader)
    durations = make_durations(config, loader.num_examples(config.data.train_split))
    setup = set_up(config, durations, mesh)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        checkpoints = stack.enter_context(Checkpoints(workdir, config))
        start_step = checkpoints.restorable_step or 0
        writer = None
        if jax.process_index() == 0:
            (run / "config.json").write_text(json.dumps(config_lib.to_dict(config), indent=1) + "\n")
            write_parameter_overview(setup.abstract.params, run / "parameters.txt")
            writer = MetricWriter(run, start_step=start_step, use_tensorboard=config.run.use_tensorboard)
            stack.callback(writer.close)
        progress = Progress(
            start_step=start_step,
            total_steps=durations.total_steps,
            batch_size=config.data.batch_size,
            is_quiet=jax.process_index() != 0,
        )
        if start_step:
            progress.say(f"going on from step {start_step} of {durations.total_steps} in {workdir}")
        state = checkpoints.restore(setup.abstract) if start_step else first_state(config, setup, progress)
        loop = Loop(
            config=config,
            durations=durations,
            train_step=setup.train_step,
            evaluators=make_evaluators(config, setup, loader, mesh),
            checkpoints=checkpoints,
            writer=writer,
            progress=progress,
        )
        started = time.monotonic()
        state = loop.run(state, loader.train_batches(start_step, sharding.batch_sharding(mesh)))
        if loader.num_broken:
            progress.say(f"images left out because they cannot be decoded: {loader.num_broken}")
        steps = int(state.step) - start_step
        progress.say(f"{steps} steps in {time.monotonic() - started:.1f} s; run folder {workdir}")


def first_state(config: Config, setup: Setup, progress: Progress) -> TrainState:
    """The state that a new run starts from: of the initializers, or of the weights that are given."""
    if config.init_from.path is None:
        return setup.make_state()
    taken = checkpointed.start_leaves(config.init_from, config.model)
    fresh = [path for path in leaves_of(setup.abstract.params) if path not in taken]
    names = ", ".join(sorted({path_text(path) for path in fresh})) or "nothing"
    progress.say(f"starts from {config.init_from.path}: {len(taken)} tensors; anew: {names}")
    return put_parameters(setup.make_state(), taken)


def make_evaluators(
    config: Config, setup: Setup, loader: Loader, mesh: jax.sharding.Mesh
) -> dict[str, Callable[[TrainState], dict[str, float]]]:
    """What is evaluated on data.eval_split: the parameters, and their average where there is one."""
    evaluate = make_evaluate(config, setup.graphdef, mesh)
    split, layout = config.data.eval_split, sharding.batch_sharding(mesh)
    evaluators = {split: lambda state: evaluate(state.params, loader.eval_batches(split, layout))}
    if config.optimizer.ema_decay is not None:
        evaluators[f"{split}_ema"] = lambda state: evaluate(state.ema, loader.eval_batches(split, layout))
    return evaluators


def main() -> None:
    """The command line."""
    if flags.FLAGS.distributed:
        jax.distributed.initialize()
    train(cli.read_config(), flags.FLAGS.workdir)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Config file, with its argument after a colon.")
    flags.DEFINE_string("workdir", None, "Run folder: made, or gone on with.")
    flags.DEFINE_bool("distributed", False, "Join the processes of a TPU pod or SLURM job.")
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
