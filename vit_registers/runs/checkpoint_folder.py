"""The checkpoints that a run folder holds: which there are, which are intact, and what they hold.

Orbax does not notice damage to the data it reads back, so nothing is restored that does not match its
manifest; a step without one was never finished.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from vit_registers.errors import CheckpointError
from vit_registers.models.paths import leaf_of, path_text
from vit_registers.objectives.base import BACKBONE
from vit_registers.runs import manifest
from vit_registers.runs.formats import FORMAT_VERSION, READABLE, from_format, in_format
from vit_registers.runs.retention import reason
from vit_registers.runs.writers import say

LAST_STEP = 2**31 - 1  # that TrainState.step, an int32, can have

_STEP = re.compile("0|[1-9][0-9]{0,9}")  # str.isdigit accepts "²" as well, and int "0099"


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


def _names(run: str) -> list[str]:
    """The entries of a run's folder of checkpoints. Raises CheckpointError where it cannot be read."""
    try:
        return sorted(os.listdir(checkpoint_root(run)))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{checkpoint_root(run)} cannot be read: {error.strerror}") from error


def _is_step(run: str, name: str) -> bool:
    """Whether an entry is the folder of a step, under the name that Orbax gives it."""
    is_number = _STEP.fullmatch(name) and int(name) <= LAST_STEP
    return bool(is_number) and os.path.isdir(checkpoint_root(run) / name)


def list_steps(run: str) -> list[int]:
    """The steps that a run folder has checkpoint folders of, newest first, finished or not.

    Other entries, as a file called 70 or a folder called 0099, are left out. Raises CheckpointError where the
    folder of checkpoints cannot be read.
    """
    return sorted((int(name) for name in _names(run) if _is_step(run, name)), reverse=True)


def find_step_damage(run: str, step: int, *, is_quick: bool = False) -> str | None:
    """What is wrong with the checkpoint of a step; None where it matches its manifest and is of that step.

    With `is_quick` the contents of the files are not compared.
    """
    folder = checkpoint_root(run) / str(step)
    if damage := manifest.find_damage(folder, is_quick=is_quick):
        return damage
    try:
        meta = _read_json_item(folder / "meta")
    except Exception as error:
        return f"its meta cannot be read: {reason(error)}"
    position = meta.get("data_position") if isinstance(meta, dict) else None
    saved = position.get("next_step") if isinstance(position, dict) else None
    if saved is None:
        return "its meta does not say of which step it is"
    return None if saved == step else f"its state is that of step {saved}"


def newest_intact_step(run: str, *, set_aside: bool = False) -> int | None:
    """The newest step whose checkpoint is intact; a line is printed for each newer one that is not.

    With `set_aside`, damaged ones are moved to RUN/damaged, so that the run can write those steps again; so
    is what has the name of a number and is no folder of a step. Process 0 looks; all processes get its
    answer. None: there is no checkpoint. Raises CheckpointError where there are some and none is intact.
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
    steps, intact = list_steps(run), None
    if set_aside:
        _set_odd_entries_aside(run, is_only=not steps)
    for step in steps:
        folder = checkpoint_root(run) / str(step)
        damage = find_step_damage(run, step, is_quick=intact is not None)
        if damage is None:
            intact = step if intact is None else intact
            if not set_aside:
                break
        elif intact is None:
            is_last = step == steps[-1]
            say(f"checkpoint {folder} is damaged: {damage}{'' if is_last else '; using the one before'}")
            if set_aside and not is_last:
                _set_aside(run, str(step))
        else:  # it would take the place of an intact one among those that are kept
            say(f"checkpoint {folder} is damaged: {damage}; {_set_aside(run, str(step))}")
    if intact is None:
        return -2 if steps else -1
    return intact


def _set_odd_entries_aside(run: str, *, is_only: bool) -> None:
    """Moves away what Orbax would stumble over, or take for a checkpoint.

    Raises CheckpointError where there is nothing else and one was a checkpoint, under another name: the run
    would start anew.
    """
    odd = [n for n in _names(run) if n.strip().lstrip("+-").isdigit() and not _is_step(run, n)]
    for name in odd:
        if is_only and (checkpoint_root(run) / name / manifest.MANIFEST).exists():
            raise CheckpointError(
                f"{checkpoint_root(run) / name} has a manifest and no name of a step, and there is no other "
                "checkpoint: give it its name again, or move it away"
            )
    for name in odd:
        where = _set_aside(run, name)
        say(f"{checkpoint_root(run) / name} is no checkpoint of a step; {where}")


def _set_aside(run: str, name: str) -> str:
    """Moves an entry of the folder of checkpoints to RUN/damaged; says where it is."""
    folder = run_folder(run) / "damaged"
    free = (folder / f"{name}-{int(time.time())}{end}" for end in itertools.chain([""], _suffixes()))
    try:
        os.makedirs(folder, exist_ok=True)
        target = next(path for path in free if not os.path.lexists(path))
        os.rename(checkpoint_root(run) / name, target)
    except OSError as error:
        raise CheckpointError(
            f"{checkpoint_root(run) / name} cannot be moved to {folder}: {error.strerror}; move it away"
        ) from error
    return f"moved to {target}"


def _suffixes() -> Iterator[str]:
    return (f"-{i}" for i in itertools.count(1))


# --- reading ---------------------------------------------------------------------------------


def _read_json_item(folder: epath.Path) -> Any:
    # Orbax's own reader waits for all processes, and process 0 alone looks for damage.
    return json.loads((folder / "metadata").read_bytes())


def read_meta(run: str, step: int) -> dict[str, Any]:
    """The meta item of a checkpoint. Raises CheckpointError for one that this version cannot read."""
    folder = checkpoint_root(run) / str(step) / "meta"
    try:
        meta = _read_json_item(folder)
        version = meta["format"]
    except Exception as error:
        raise CheckpointError(f"{folder} cannot be read: {reason(error)}") from error
    if version not in READABLE:
        raise CheckpointError(f"{folder} has format {version}: this version reads up to {FORMAT_VERSION}")
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
        newest = newest_intact_step(run)
        assert newest is not None, "it raises where there are checkpoints and none is intact"
        return newest
    if step not in steps:
        known = ", ".join(map(str, sorted(steps)))
        raise CheckpointError(f"{run} has no checkpoint of step {step}; it has {known}")
    damage = find_step_damage(run, step)
    if damage is not None:
        raise CheckpointError(f"checkpoint {checkpoint_root(run) / str(step)} is damaged: {damage}")
    return step


def restore_args(target: Any, *, is_part: bool) -> ocp.args.PyTreeRestore:
    """To restore `target` with its shardings, all that a checkpoint has or a part of it."""
    return ocp.args.PyTreeRestore(
        target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=is_part
    )


def read_state(run: str, step: int, target: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of the state of a checkpoint that `target` has, such as "params", "ema" or "extra".

    `target` is of shapes with shardings, and so is the result laid out. Raises CheckpointError where there is
    no such part, or it cannot be read.
    """
    path = checkpoint_root(run) / str(step) / "state"
    version, names = read_meta(run, step)["format"], " and ".join(target)
    stored = in_format(dict(target), version)
    args = restore_args(stored, is_part=True)
    try:
        read = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(path, args=args)
    except Exception as error:
        raise CheckpointError(f"{path}: its {names} cannot be restored: {reason(error)}") from error
    for where, leaf in jax.tree_util.tree_leaves_with_path(read):
        if isinstance(leaf, jax.ShapeDtypeStruct):  # what Orbax leaves where a checkpoint has nothing
            name, *missing = leaf_of(where)
            missing = path_text(tuple(missing[missing[0] == BACKBONE :]))
            raise CheckpointError(f"{path} holds no {name} of this model: {missing} is missing")
    return from_format(read, version, dict(target))
