"""Saves and restores the checkpoints of a run, with Orbax and a manifest.

RUN/checkpoints/<step>/state/...      the TrainState
RUN/checkpoints/<step>/meta/...       format version, resolved config, data position, what was trained on
RUN/checkpoints/<step>/manifest.json  size and checksum of every file, written before the commit
"""

import contextlib
import dataclasses
import time
from typing import Any

import jax
import orbax.checkpoint as ocp

from vit_registers import config as config_lib
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.objectives.catalog import best_metric
from vit_registers.runs.checkpoint_folder import (
    TrainedOn,
    checkpoint_root,
    find_written,
    is_gone,
    is_intact,
    list_steps,
    newest_intact_step,
    read_meta,
    remove_uncommitted,
    remove_unfinished,
    restore_args,
    trained_on,
)
from vit_registers.runs.compatibility import check_same_config, check_same_data, say_changed_attention
from vit_registers.runs.formats import FORMAT_VERSION, from_format, in_format
from vit_registers.runs.manifest import write_manifest
from vit_registers.runs.retention import FailedSaves, Keep, is_any, reason
from vit_registers.runtime.barrier import Barrier
from vit_registers.status import say
from vit_registers.storage import files
from vit_registers.storage.run_lock import Lock
from vit_registers.strict_json import as_plain
from vit_registers.training.state import TrainState

# Orbax holds a data file in memory until it is full. Its default, 2 GB, doubles the memory of a save.
DATA_FILE_BYTES = 1 << 24
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # between tries of the last save; each is twice the one before


def _items(state: TrainState) -> dict[str, Any]:
    """The parts of a state that are saved: all but a missing average and an empty `extra`."""
    return {
        name: value
        for name, value in vars(state).items()
        if value is not None and not (name == "extra" and not value)
    }


class Checkpoints(contextlib.AbstractContextManager):
    """Saves and restores the states of one run. A context manager: its exit waits for an unfinished save.

    A save that fails is printed, and the run continues; checkpoint.max_failed_saves in a row raise. A save
    fails on all processes if one of them cannot write its part. With the `lock` of the run folder, which
    process 0 has, a save raises CheckpointError if the folder is gone.
    """

    def __init__(
        self,
        run: str,
        config: config_lib.Config,
        lock: Lock | None = None,
        *,
        data: TrainedOn | None = None,
        attention: str | None = None,
    ):
        """`data` describes the training data; None for converted weights. `attention` is the back end used.

        Raises CheckpointError for a folder that cannot be used, and ConfigError as compatibility.py does.
        """
        config_lib.check_section("checkpoint", config.checkpoint)
        every, keep_every = config.checkpoint.every_steps, config.checkpoint.keep_every_steps
        if keep_every is not None and keep_every % every:
            raise ConfigError(
                f"checkpoint.keep_every_steps={keep_every} is not a multiple of "
                f"checkpoint.every_steps={every}, so not all of these steps would be saved: set a multiple"
            )
        self._run, self._config, self._lock = run, config, lock
        self._data, self._attention = data, attention
        self._root = checkpoint_root(run)
        self._failed = FailedSaves(self._root, config.checkpoint.max_failed_saves)
        self._barrier = Barrier(reason) if jax.process_count() > 1 else None
        self._saving_step: int | None = None  # started, not yet waited for
        self._error: Exception | None = None  # raised when it was started
        self.restorable_step, self.skipped = self._prepare_folder()
        self.last_saved_step = self.restorable_step
        self._keep = Keep(config.checkpoint, best_metric(config.objective.name))
        self.evaluations: dict[int, dict[str, float]] = {}  # by the first evaluator, of saved steps
        for step in list_steps(run):
            with contextlib.suppress(Exception):  # damaged checkpoints are not ranked
                self._note(step, read_meta(run, step)["metrics"])
        self._manager: ocp.CheckpointManager | None = self._open()

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
        """(step to resume from, its (total, consecutive) skipped steps). Moves damaged entries away."""
        if jax.process_index() == 0:
            try:
                files.make_folder(self._root)
                remove_unfinished(self._run)
            except OSError as error:
                where = error.filename or self._root
                raise CheckpointError(f"{where} cannot be used: {error.strerror}") from error
        step = newest_intact_step(self._run, set_aside=True)
        if not (files.can_hold(self._root) if step is None else files.is_folder(self._root / str(step))):
            raise CheckpointError(
                f"{self._root} differs from that of process 0: all processes require the same --workdir"
            )
        if step is None:
            return None, (0, 0)
        meta = read_meta(self._run, step)
        if meta["origin"] is not None:
            raise ConfigError(
                f"{self._run} holds converted weights ({meta['origin']}), which cannot be resumed: "
                f"start a run in another --workdir, with --config.init_from.path={self._run}"
            )
        check_same_config(meta["config"], config_lib.to_dict(self._config), self._run)
        check_same_data(trained_on(meta), self._data, self._run)
        say_changed_attention(meta.get("attention"), self._attention, self._run)
        skipped = meta.get("skipped", {"total": 0, "in_a_row": 0})  # early checkpoints lack it
        return step, (skipped["total"], skipped["in_a_row"])

    def __exit__(self, kind: type | None, *_: object) -> None:
        # The first error is the one to show, not its effect on a save.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.wait()
        self._close()

    def check_folder(self) -> None:
        """Raises CheckpointError if the run folder is no longer the one in which this run was started."""
        if self._lock is not None:
            self._lock.check()

    def _notice_loss(self) -> None:
        """Prints a line if the last checkpoint was removed, and lets Orbax read the folder again."""
        self.check_folder()
        step = self.last_saved_step
        if not is_any(jax.process_index() == 0 and step is not None and is_gone(self._run, step)):
            return
        if jax.process_index() == 0:
            say(
                f"checkpoint {self._root / str(step)} was removed during the run; the run continues "
                "and saves again"
            )
        self.last_saved_step = None
        self._reopen()

    def _reopen(self, *, failed_step: int | None = None) -> None:
        """Opens a new manager, which reads the folder, after removing the files of a save that failed."""
        self._close()
        if failed_step is not None and jax.process_index() == 0:
            with contextlib.suppress(CheckpointError, OSError):
                remove_unfinished(self._run, failed_step)
            with contextlib.suppress(OSError):
                files.remove(self._root / str(failed_step))
        with contextlib.suppress(Exception):  # the next save opens it, or fails
            self._manager = self._open()

    def _close(self) -> None:
        with contextlib.suppress(Exception):  # it raises the errors of saves once more
            if self._manager is not None:
                self._manager.close()
        self._manager = None

    def restore(self, abstract: TrainState) -> TrainState:
        """The state of `restorable_step`, with the shardings of `abstract`.

        Raises CheckpointError if it cannot be read, or is that of another step.
        """
        step = self.restorable_step
        assert step is not None and self._manager is not None, "there is no checkpoint to restore"
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
        class_names: tuple[str, ...] | None = None,
        skipped: tuple[int, int] = (0, 0),
    ) -> None:
        """Starts to save the state; the write continues during the following steps.

        `metrics` are those of the evaluation at this step, if any. `origin` and `normalisation` are the
        origins of converted parameters, and of the mean and deviation of their images; `class_names` are
        those of their head, where the training data is not known. `skipped` is the (total, consecutive)
        number of non-finite steps. Prints if the save before has failed, and raises
        CheckpointError if that reaches checkpoint.max_failed_saves.
        """
        step = int(state.step)
        meta = {
            "format": FORMAT_VERSION,
            "config": config_lib.to_dict(self._config),
            "data_position": {"seed": self._config.run.seed, "next_step": step},
            "trained_on": None if self._data is None else dataclasses.asdict(self._data),
            "attention": self._attention,
            "metrics": as_plain(metrics),
            "origin": origin,
            "normalisation": normalisation,
            "class_names": None if class_names is None else list(class_names),
            "skipped": {"total": skipped[0], "in_a_row": skipped[1]},
        }
        self._finish()
        self._notice_loss()
        if self._barrier is not None:
            self._barrier.begin()
        self._note(step, metrics)
        self._saving_step = step
        if jax.process_index() == 0:
            with contextlib.suppress(CheckpointError, OSError):  # the save meets the same error
                remove_uncommitted(self._run, step)
        items = ocp.args.PyTreeSave(_items(state), ocdbt_target_data_file_size=DATA_FILE_BYTES)
        try:
            self._manager = self._manager or self._open()
            self._manager.save(step, args=ocp.args.Composite(state=items, meta=ocp.args.JsonSave(meta)))
        except Exception as error:
            self._error = error

    def save_surely(
        self, state: TrainState, metrics: dict[str, float] | None, *, skipped: tuple[int, int] = (0, 0)
    ) -> None:
        """Saves the state and waits for it. Tries again, with growing pauses, if the save fails.

        Raises CheckpointError if checkpoint.max_failed_saves in a row fail.
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
        """Waits for an unfinished save. Raises CheckpointError if the last save failed."""
        self._finish()
        if self._failed:
            raise self._failed.error(self.last_saved_step)

    def _finish(self) -> None:
        if self._saving_step is None:
            return
        error, self._error = self._error, None
        try:
            if self._manager is not None:
                self._manager.wait_until_finished()
        except Exception as late:
            error = error or late
        step = self._saving_step
        # A checkpoint that is intact counts as saved: the error came later, as when deleting another.
        if is_any(error is not None) and not is_any(jax.process_index() == 0 and is_intact(self._run, step)):
            self.check_folder()
            self._reopen(failed_step=step)
            self._saving_step = None
            self._failed.note(step, error, self.last_saved_step)
        else:
            self._saving_step, self.last_saved_step = None, step
            self._failed.clear()

    def _before_commit(self) -> None:
        """Writes the manifest. Orbax calls it in its thread before it renames the temporary folder."""
        if jax.process_index() != 0:
            return
        self.check_folder()  # TensorStore creates removed folders again for the files that it still writes
        write_manifest(find_written(self._run, self._saving_step))
