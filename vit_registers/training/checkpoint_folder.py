"""The checkpoints that a run folder holds: which there are, which are intact, and what they hold.

Orbax does not notice damage to the data it reads back, so nothing is restored that does not match its
manifest; a step without one was never finished.
"""

import contextlib
import dataclasses
import os
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from vit_registers.errors import CheckpointError
from vit_registers.training.manifest import find_damage

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """What a checkpoint remembers of its data set."""

    class_names: tuple[str, ...]
    num_examples: int  # of data.train_split


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


def newest_meta(run: str) -> dict[str, Any] | None:
    """The meta item of the newest checkpoint that has one, intact or not; None where there is none."""
    for step in list_steps(run):
        with contextlib.suppress(Exception):  # damage is for those who restore it
            return read_meta(run, step)
    return None


def trained_on(meta: dict[str, Any]) -> TrainedOn | None:
    """What a checkpoint was trained on; None for weights of others, and checkpoints of early versions."""
    saved = meta.get("trained_on")
    if saved is None:
        return None
    return TrainedOn(class_names=tuple(saved["class_names"]), num_examples=saved["num_examples"])


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


def restore_args(target: Any, *, is_part: bool) -> ocp.args.PyTreeRestore:
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
    args = restore_args(target, is_part=True)
    try:
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(path, args=args)[name]
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path} holds no {name} of this model: {error}".splitlines()[0]) from error
