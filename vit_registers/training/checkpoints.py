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
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from vit_registers import config as config_lib
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.training.manifest import find_damage, write_manifest
from vit_registers.training.same_config import check_same_config
from vit_registers.training.state import TrainState
from vit_registers.training.storage import FIRST_PAUSE_S, LONGEST_PAUSE_S, Barrier, FailedSaves, Keep, is_any

FORMAT_VERSION = 1

# Orbax holds a data file in memory until it is full; its own size, 2 GB, doubles what a save needs.
DATA_FILE_BYTES = 1 << 24


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


def _items(state: TrainState) -> dict[str, Any]:
    """The parts of a state that it has."""
    return {name: value for name, value in vars(state).items() if value is not None}


class Checkpoints:
    """Saves and restores the states of one run. A context manager: leaving it waits for a save under way.

    A save that fails is reported, and the run may go on; checkpoint.max_failed_saves in a row raise. What
    is said of a save holds on all processes: it has failed where one of them could not write its part.
    """

    def __init__(self, run: str, config: config_lib.Config):
        if config.checkpoint.keep_last < 2:
            raise ConfigError(
                f"checkpoint.keep_last={config.checkpoint.keep_last}: want >= 2, "
                "or a damaged checkpoint has none before it"
            )
        self._run, self._config = run, config
        self._root = checkpoint_root(run)
        self._failed = FailedSaves(self._root, config.checkpoint.max_failed_saves)
        self._barrier = Barrier() if jax.process_count() > 1 else None
        self._saving_step: int | None = None  # that was started and not yet waited for
        self._error: Exception | None = None  # what starting it raised
        self.restorable_step, self.skipped = self._prepare_folder()
        self.last_saved_step = self.restorable_step
        self._keep = Keep(config.checkpoint)
        for step in list_steps(run):
            with contextlib.suppress(Exception):  # a damaged checkpoint has no say
                self._keep.note(step, read_meta(run, step)["metrics"])
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self._root,
            item_names=("state", "meta"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._keep,
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._before_commit, barrier_sync_fn=self._barrier
                ),
            ),
        )

    def _prepare_folder(self) -> tuple[int | None, tuple[int, int]]:
        """The step to go on from, after what cannot be used has been moved out of the way; and its skips."""
        if jax.process_index() == 0:
            self._root.mkdir(parents=True, exist_ok=True)
            for unfinished in self._root.glob("*.orbax-checkpoint-tmp*"):
                unfinished.rmtree()
        step = newest_intact_step(self._run, set_aside=True)
        if not (self._root if step is None else self._root / str(step)).is_dir():
            raise CheckpointError(
                f"{self._root} is not what process 0 has there: want one --workdir for all processes"
            )
        if step is None:
            return None, (0, 0)
        meta = read_meta(self._run, step)
        if meta["origin"] is not None:
            raise ConfigError(
                f"{self._run} holds converted weights ({meta['origin']}), not a run to go on with: "
                f"start one in another --workdir, with --config.init_from.path={self._run}"
            )
        check_same_config(meta["config"], self._config, self._run)
        skipped = meta.get("skipped", {"total": 0, "in_a_row": 0})  # which early checkpoints do not have
        return step, (skipped["total"], skipped["in_a_row"])

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # An error that is under way is the one to show, not what it did to a save.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.wait()
        with contextlib.suppress(Exception):  # it waits once more, and raises what has been dealt with
            self._manager.close()

    def restore(self, abstract: TrainState) -> TrainState:
        """The state of `restorable_step`, laid out as the shardings of `abstract` say."""
        args = ocp.args.Composite(state=_restore_args(_items(abstract), is_part=False))
        items = self._manager.restore(self.restorable_step, args=args).state
        return TrainState(**{"ema": None, **items})

    def save(
        self,
        state: TrainState,
        metrics: dict[str, float] | None,
        *,
        origin: str | None = None,
        skipped: tuple[int, int] = (0, 0),
    ) -> None:
        """Starts to save the state; the write goes on behind the steps that follow.

        `metrics` are the evaluation's, where this step had one; `origin` says where parameters come from
        that no run has trained; `skipped` are the steps that were not finite, in all and the last in a row.
        That the save before this one could not be written is printed. Raises CheckpointError where it was
        one too many.
        """
        step = int(state.step)
        meta = {
            "format": FORMAT_VERSION,
            "config": config_lib.to_dict(self._config),
            "data_position": {"seed": self._config.run.seed, "next_step": step},
            "metrics": metrics,
            "origin": origin,
            "skipped": {"total": skipped[0], "in_a_row": skipped[1]},
        }
        self._finish()
        if self._barrier is not None:
            self._barrier.begin()
        self._keep.note(step, metrics)
        self._saving_step = step
        items = ocp.args.PyTreeSave(_items(state), ocdbt_target_data_file_size=DATA_FILE_BYTES)
        try:
            self._manager.save(step, args=ocp.args.Composite(state=items, meta=ocp.args.JsonSave(meta)))
        except Exception as error:
            self._error = error

    def save_surely(
        self, state: TrainState, metrics: dict[str, float] | None, *, skipped: tuple[int, int] = (0, 0)
    ) -> None:
        """Returns when the state is saved, if need be after further tries with growing pauses.

        Raises CheckpointError where too many in a row could not be written.
        """
        step, pause_s = int(state.step), FIRST_PAUSE_S
        self._finish()
        while self.last_saved_step != step:
            if self._failed:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            self.save(state, metrics, skipped=skipped)
            self._finish()

    def wait(self) -> None:
        """Returns when no save is under way. Raises CheckpointError where the last could not be written."""
        self._finish()
        if self._failed:
            raise self._failed.error(self.last_saved_step)

    def _finish(self) -> None:
        """Waits for the save under way, and takes down what became of it."""
        if self._saving_step is None:
            return
        error, self._error = self._error, None
        try:
            self._manager.wait_until_finished()
        except Exception as late:
            error = error or late
        step = self._saving_step
        if is_any(error is not None) and not is_any(self._is_written(step)):
            self._start_over(step)
            self._saving_step = None
            self._failed.note(step, error, self.last_saved_step)
        else:
            self._saving_step, self.last_saved_step = None, step
            self._failed.clear()

    def _is_written(self, step: int) -> bool:
        """Whether process 0 finds the checkpoint whole: what failed came after it, as deleting another."""
        return jax.process_index() == 0 and find_damage(self._root / str(step)) is None

    def _start_over(self, step: int) -> None:
        """A manager that knows nothing of a save that failed, nor has its files."""
        with contextlib.suppress(Exception):
            self._manager.close()
        if jax.process_index() == 0:
            for unfinished in [*self._root.glob(f"{step}.orbax-checkpoint-tmp*"), self._root / str(step)]:
                with contextlib.suppress(OSError):
                    unfinished.rmtree()
        self._manager = self._open()

    def _before_commit(self) -> None:
        """Runs in Orbax's thread, when all files are written and the folder still has its temporary name."""
        if jax.process_index() != 0:
            return
        unfinished = list(self._root.glob(f"{self._saving_step}.orbax-checkpoint-tmp*"))
        write_manifest(unfinished[0] if unfinished else self._root / str(self._saving_step))
