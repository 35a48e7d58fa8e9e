"""Checkpoints of a run: Orbax underneath, a SHA-256 manifest on top.

    RUN/checkpoints/<step>/state/...      the TrainState
    RUN/checkpoints/<step>/meta/...       format version, resolved config, data position
    RUN/checkpoints/<step>/manifest.json  size and SHA-256 of every file, written before the commit

Orbax does not notice damage to the data it reads back, so nothing is restored that does not match its
manifest; a step without one was never finished.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from vit_registers import config as config_lib
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.training.manifest import find_damage, write_manifest
from vit_registers.training.state import TrainState

FORMAT_VERSION = 1

# Orbax holds a data file in memory until it is full; its own size, 2 GB, doubles what a save needs.
DATA_FILE_BYTES = 1 << 24

# Settings that may change between two starts of one run: they leave its results as they are.
FREE_SETTINGS = (
    "mesh.",
    "checkpoint.",
    "data.data_dir",
    "data.eval_batch_size",
    "data.also_eval",
    "run.log_every_steps",
    "run.use_tensorboard",
    "model.attention",
    "model.remat",
    "model.use_scan",
)


def run_folder(run: str) -> epath.Path:
    """The run folder as an absolute path, which Orbax insists on."""
    return epath.Path(os.path.abspath(os.path.expanduser(run)))


def checkpoint_root(run: str) -> epath.Path:
    """Where the checkpoints of a run folder are."""
    return run_folder(run) / "checkpoints"


# --- which checkpoints there are -----------------------------------------------------------


def list_steps(run: str) -> list[int]:
    """The steps that a run folder has checkpoint folders of, newest first, finished or not."""
    root = checkpoint_root(run)
    if not root.is_dir():
        return []
    return sorted((int(p.name) for p in root.iterdir() if p.name.isdigit()), reverse=True)


def newest_intact_step(run: str, *, set_aside: bool = False) -> int | None:
    """The newest step whose checkpoint matches its manifest; a line is printed for each that does not.

    With `set_aside`, damaged ones are moved to RUN/damaged, so that the run can write those steps again.
    Process 0 looks; all processes get its answer. None: there is no checkpoint. Raises CheckpointError
    where there are some and none is intact.
    """
    step = -1
    if jax.process_index() == 0:
        step = _newest_intact_step(run, set_aside)
    if jax.process_count() > 1:
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    if step == -2:
        raise CheckpointError(f"{checkpoint_root(run)}: no checkpoint is intact, so nothing was restored")
    return None if step == -1 else step


def _newest_intact_step(run: str, set_aside: bool) -> int:
    steps = list_steps(run)
    for step in steps:
        folder = checkpoint_root(run) / str(step)
        damage = find_damage(folder)
        if damage is None:
            return step
        print(f"checkpoint {folder} is damaged: {damage}; using the one before", flush=True)
        if set_aside and step != steps[-1]:
            target = run_folder(run) / "damaged" / f"{step}-{int(time.time())}"
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)
    return -2 if steps else -1


# --- reading ---------------------------------------------------------------------------------


def read_meta(run: str, step: int) -> dict[str, Any]:
    """The meta item of a checkpoint. Raises CheckpointError for a format that this version cannot read."""
    folder = checkpoint_root(run) / str(step) / "meta"
    meta = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder)
    if meta["format"] != FORMAT_VERSION:
        raise CheckpointError(f"{folder} has format {meta['format']}: this version reads {FORMAT_VERSION}")
    return meta


def find_step(run: str, step: int | None) -> int:
    """The step to read from a run folder: the given one if it is intact, else the newest that is.

    Raises CheckpointError where the folder is no run, or what was asked for is missing or damaged.
    """
    steps = list_steps(run)
    if not steps:
        raise CheckpointError(f"{run} is not a run folder: there is no checkpoint in {checkpoint_root(run)}")
    if step is None:
        return newest_intact_step(run)
    if step not in steps:
        known = ", ".join(map(str, sorted(steps)))
        raise CheckpointError(f"{run} has no checkpoint of step {step}; it has {known}")
    damage = find_damage(checkpoint_root(run) / str(step))
    if damage is not None:
        raise CheckpointError(f"checkpoint {checkpoint_root(run) / str(step)} is damaged: {damage}")
    return step


def _restore_args(target: Any, *, is_part: bool) -> ocp.args.PyTreeRestore:
    """To restore `target` with its shardings, all that a checkpoint has or a part of it."""
    return ocp.args.PyTreeRestore(
        target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=is_part
    )


def read_params(run: str, step: int, abstract_params: Any, *, name: str = "params") -> Any:
    """The parameters of a checkpoint, laid out as the shardings of `abstract_params` say.

    `name` is "params", or "ema" for the averaged ones. Raises CheckpointError where there are none.
    """
    target = {name: abstract_params}
    path = checkpoint_root(run) / str(step) / "state"
    args = _restore_args(target, is_part=True)
    try:
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(path, args=args)[name]
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path} holds no {name} of this model: {error}".splitlines()[0]) from error


# --- a run's own checkpoints -----------------------------------------------------------------


def check_same_config(saved: dict[str, Any], now: config_lib.Config, run: str) -> None:
    """Raises ConfigError with the differing settings where a run folder belongs to another config."""
    # Read back first, so that settings which are newer than the run have their defaults on both sides.
    there, here = (config_lib.flatten(config_lib.to_dict(c)) for c in (config_lib.from_mapping(saved), now))
    differing = [
        f"{key} ({there.get(key)!r} there, {here.get(key)!r} now)"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key) and not key.startswith(FREE_SETTINGS)
    ]
    if differing:
        raise ConfigError(
            f"{run} holds a run of another config: {'; '.join(differing)}. "
            "Use another --workdir, or that config"
        )


def _items(state: TrainState) -> dict[str, Any]:
    """The parts of a state that it has."""
    return {name: value for name, value in vars(state).items() if value is not None}


class _Keep:
    """Orbax's preservation policy: the last checkpoints, and the best of those that have been evaluated.

    Orbax's own policy for the best knows no metrics after a restart unless it may also delete the newest.
    """

    def __init__(self, root: epath.Path, settings: config_lib.Checkpoint):
        self._settings = settings
        self._top1: dict[int, float] = {}
        for step in (int(p.name) for p in root.iterdir() if p.name.isdigit()):
            with contextlib.suppress(Exception):  # a damaged checkpoint has no say
                self.note(step, read_meta(str(root.parent), step)["metrics"])

    def note(self, step: int, metrics: dict[str, float] | None) -> None:
        """Takes down what the evaluation at `step` gave."""
        if metrics is not None:
            self._top1[step] = metrics["top1"]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
        """Whether to keep each of `checkpoints`, which come oldest first."""
        del context
        steps = [info.step for info in checkpoints]
        ranked = sorted((s for s in steps if s in self._top1), key=lambda s: (self._top1[s], s), reverse=True)
        kept = {*steps[-self._settings.keep_last :], *ranked[: self._settings.keep_best]}
        return [step in kept for step in steps]


class Checkpoints:
    """Saves and restores the states of one run. A context manager: leaving it waits for a save under way."""

    def __init__(self, run: str, config: config_lib.Config):
        if config.checkpoint.keep_last < 2:
            raise ConfigError(
                f"checkpoint.keep_last={config.checkpoint.keep_last}: want >= 2, "
                "or a damaged checkpoint has none before it"
            )
        self._run, self._config = run, config
        self._root = checkpoint_root(run)
        self._saving_step: int | None = None
        self.restorable_step = self._prepare_folder()
        self.last_saved_step = self.restorable_step
        self._keep = _Keep(self._root, config.checkpoint)
        self._manager = ocp.CheckpointManager(
            self._root,
            item_names=("state", "meta"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._keep,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._before_commit),
            ),
        )

    def _prepare_folder(self) -> int | None:
        """The step to go on from, after what cannot be used has been moved out of the way."""
        if jax.process_index() == 0:
            self._root.mkdir(parents=True, exist_ok=True)
            for unfinished in self._root.glob("*.orbax-checkpoint-tmp*"):
                unfinished.rmtree()
        step = newest_intact_step(self._run, set_aside=True)
        if step is not None:
            meta = read_meta(self._run, step)
            if meta["origin"] is not None:
                raise ConfigError(
                    f"{self._run} holds converted weights ({meta['origin']}), not a run to go on with: "
                    f"start one in another --workdir, with --config.init_from.path={self._run}"
                )
            check_same_config(meta["config"], self._config, self._run)
        return step

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # An error that is under way is the one to show, not what it did to a save.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.wait()
        self._manager.close()

    def restore(self, abstract: TrainState) -> TrainState:
        """The state of `restorable_step`, laid out as the shardings of `abstract` say."""
        args = ocp.args.Composite(state=_restore_args(_items(abstract), is_part=False))
        items = self._manager.restore(self.restorable_step, args=args).state
        return TrainState(**{"ema": None, **items})

    def save(self, state: TrainState, metrics: dict[str, float] | None, *, origin: str | None = None) -> None:
        """Starts to save the state; the write goes on behind the steps that follow.

        `metrics` are the evaluation's, where this step had one; `origin` says where parameters come from
        that no run has trained. Raises CheckpointError where this save, or the one before it, could not be
        written.
        """
        step = int(state.step)
        meta = {
            "format": FORMAT_VERSION,
            "config": config_lib.to_dict(self._config),
            "data_position": {"seed": self._config.run.seed, "next_step": step},
            "metrics": metrics,
            "origin": origin,
        }
        self.wait()
        self._keep.note(step, metrics)
        self._saving_step = step
        with self._named_errors(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(_items(state), ocdbt_target_data_file_size=DATA_FILE_BYTES),
                    meta=ocp.args.JsonSave(meta),
                ),
            )
        self.last_saved_step = step

    def wait(self) -> None:
        """Returns when no save is under way. Raises CheckpointError where it could not be written."""
        with self._named_errors(self._saving_step):
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _named_errors(self, step: int | None) -> Any:
        try:
            yield
        except Exception as error:
            line = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise CheckpointError(
                f"checkpoint {self._root / str(step)} could not be written: {line}"
            ) from error

    def _before_commit(self) -> None:
        """Runs in Orbax's thread, when all files are written and the folder still has its temporary name."""
        if jax.process_index() != 0:
            return
        unfinished = list(self._root.glob(f"{self._saving_step}.orbax-checkpoint-tmp*"))
        write_manifest(unfinished[0] if unfinished else self._root / str(self._saving_step))
