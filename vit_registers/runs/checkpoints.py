"""Checkpoints of a run: Orbax underneath, a SHA-256 manifest on top.

RUN/checkpoints/<step>/state/...      the TrainState
RUN/checkpoints/<step>/meta/...       format version, resolved config, data position, what was trained on
RUN/checkpoints/<step>/manifest.json  size and SHA-256 of every file, written before the commit
"""

import contextlib
import dataclasses
import os
import time
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from vit_registers import config as config_lib
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.objectives.catalog import best_metric
from vit_registers.runs.checkpoint_folder import (
    TrainedOn,
    checkpoint_root,
    list_steps,
    newest_intact_step,
    read_meta,
    restore_args,
    trained_on,
)
from vit_registers.runs.compatibility import check_same_config, check_same_data
from vit_registers.runs.formats import FORMAT_VERSION, from_format, in_format
from vit_registers.runs.manifest import find_damage, write_manifest
from vit_registers.runs.retention import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    FailedSaves,
    Keep,
    is_any,
    reason,
)
from vit_registers.runs.run_lock import RunLock
from vit_registers.runs.writers import say
from vit_registers.runtime.barrier import Barrier
from vit_registers.strict_json import as_plain
from vit_registers.training.state import TrainState

# Orbax holds a data file in memory until it is full; its own size, 2 GB, doubles what a save needs.
DATA_FILE_BYTES = 1 << 24


def _items(state: TrainState) -> dict[str, Any]:
    """The parts of a state that it has: without an average or an `extra`, these are not saved."""
    return {
        name: value
        for name, value in vars(state).items()
        if value is not None and not (name == "extra" and not value)
    }


def _remove(path: epath.Path) -> None:
    """Removes a folder or a file; of a link only itself."""
    if os.path.isdir(path) and not os.path.islink(path):
        path.rmtree()
    else:
        os.unlink(path)


class Checkpoints:
    """Saves and restores the states of one run. A context manager: leaving it waits for a save under way.

    A save that fails is reported, and the run may go on; checkpoint.max_failed_saves in a row raise. What
    is said of a save holds on all processes: it has failed where one of them could not write its part. With
    the `lock` of the run folder, which process 0 has, a save raises CheckpointError where the folder is gone.
    """

    def __init__(
        self,
        run: str,
        config: config_lib.Config,
        lock: RunLock | None = None,
        *,
        data: TrainedOn | None = None,
    ):
        """`data` is what is trained on; None for converted weights; errors as in compatibility.py."""
        config_lib.check_section("checkpoint", config.checkpoint)
        every, keep_every = config.checkpoint.every_steps, config.checkpoint.keep_every_steps
        if keep_every is not None and keep_every % every:
            raise ConfigError(
                f"checkpoint.keep_every_steps={keep_every} is not a multiple of "
                f"checkpoint.every_steps={every}, so not all of these steps would be saved: set a multiple"
            )
        self._run, self._config, self._lock, self._data = run, config, lock, data
        self._root = checkpoint_root(run)
        self._failed = FailedSaves(self._root, config.checkpoint.max_failed_saves)
        self._barrier = Barrier(reason) if jax.process_count() > 1 else None
        self._saving_step: int | None = None  # that was started and not yet waited for
        self._error: Exception | None = None  # what starting it raised
        self.restorable_step, self.skipped = self._prepare_folder()
        self.last_saved_step = self.restorable_step
        self._keep = Keep(config.checkpoint, best_metric(config.objective.name))
        self.evaluations: dict[int, dict[str, float]] = {}  # of the first evaluator, of what was saved
        for step in list_steps(run):
            with contextlib.suppress(Exception):  # a damaged checkpoint has no say
                self._note(step, read_meta(run, step)["metrics"])
        self._manager = self._open()

    def _note(self, step: int, metrics: dict[str, float] | None) -> None:
        self._keep.note(step, metrics)
        if metrics is not None:
            self.evaluations[step] = metrics

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
            try:
                self._root.mkdir(parents=True, exist_ok=True)
                for unfinished in self._root.glob("*.orbax-checkpoint-tmp*"):
                    _remove(unfinished)
            except OSError as error:
                raise CheckpointError(
                    f"{error.filename or self._root} cannot be used: {error.strerror}"
                ) from error
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
        check_same_data(trained_on(meta), self._data, self._run)
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

    def check_folder(self) -> None:
        """Raises CheckpointError where the run folder is no longer the one that this run began in."""
        if self._lock is not None:
            self._lock.check()

    def _notice_loss(self) -> None:
        """Says where the last checkpoint is gone, and lets Orbax look at the folder anew."""
        self.check_folder()
        step = self.last_saved_step
        is_gone = jax.process_index() == 0 and step is not None and not (self._root / str(step)).is_dir()
        if not is_any(is_gone):
            return
        if jax.process_index() == 0:
            say(
                f"checkpoint {self._root / str(step)} was removed while the run was under way; "
                "the run goes on and saves again"
            )
        self.last_saved_step = None
        with contextlib.suppress(Exception):
            self._manager.close()
        self._manager = self._open()

    def restore(self, abstract: TrainState) -> TrainState:
        """The state of `restorable_step`, laid out as the shardings of `abstract` say.

        Raises CheckpointError where it cannot be read, or is that of another step.
        """
        step = self.restorable_step
        assert step is not None, "there is no checkpoint to restore"
        version = read_meta(self._run, step)["format"]
        target = _items(abstract)
        args = ocp.args.Composite(state=restore_args(in_format(target, version), is_part=False))
        where = self._root / str(step)
        try:
            restored: Any = self._manager.restore(step, args=args)
            items = from_format(restored.state, version, target)
        except Exception as error:
            raise CheckpointError(f"checkpoint {where} cannot be restored: {reason(error)}") from error
        state = TrainState(**{"ema": None, **items})
        if int(state.step) != step:
            raise CheckpointError(f"checkpoint {where} is damaged: its state is that of step {state.step}")
        return state

    def save(
        self,
        state: TrainState,
        metrics: dict[str, float] | None,
        *,
        origin: str | None = None,
        normalisation: str | None = None,
        skipped: tuple[int, int] = (0, 0),
    ) -> None:
        """Starts to save the state; the write goes on behind the steps that follow.

        `metrics` are the evaluation's, where this step had one; `origin` says where parameters come from
        that no run has trained, and `normalisation` where the mean and deviation of their images come from;
        `skipped` are the steps that were not finite, in all and the last in a row. That the save before this
        one could not be written is printed. Raises CheckpointError where it was one too many.
        """
        step = int(state.step)
        meta = {
            "format": FORMAT_VERSION,
            "config": config_lib.to_dict(self._config),
            "data_position": {"seed": self._config.run.seed, "next_step": step},
            "trained_on": None if self._data is None else dataclasses.asdict(self._data),
            "metrics": as_plain(metrics),
            "origin": origin,
            "normalisation": normalisation,
            "skipped": {"total": skipped[0], "in_a_row": skipped[1]},
        }
        self._finish()
        self._notice_loss()
        if self._barrier is not None:
            self._barrier.begin()
        self._note(step, metrics)
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
        self._notice_loss()
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
        self.check_folder()
        with contextlib.suppress(Exception):
            self._manager.close()
        if jax.process_index() == 0:
            for unfinished in [*self._root.glob(f"{step}.orbax-checkpoint-tmp*"), self._root / str(step)]:
                with contextlib.suppress(OSError):
                    _remove(unfinished)
        self._manager = self._open()

    def _before_commit(self) -> None:
        """Runs in Orbax's thread, when all files are written and the folder still has its temporary name."""
        if jax.process_index() != 0:
            return
        self.check_folder()  # TensorStore makes folders that are gone again, with what it still has to write
        unfinished = list(self._root.glob(f"{self._saving_step}.orbax-checkpoint-tmp*"))
        write_manifest(unfinished[0] if unfinished else self._root / str(self._saving_step))
