"""The checkpoints of a run folder: lists them, checks them and reads them.

Orbax does not detect damage to the data that it reads. Only a checkpoint that matches its manifest is
restored. A step without a manifest is unfinished.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping
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
from vit_registers.status import say
from vit_registers.storage import files, paths
from vit_registers.storage.objects import StoreError

_TEMPORARY = ".orbax-checkpoint-tmp"  # in the names of Orbax's temporary folders
LAST_STEP = 2**31 - 1  # the largest value of TrainState.step, an int32

_STEP = re.compile("0|[1-9][0-9]{0,9}")  # str.isdigit accepts "²" as well, and int "0099"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """The description of the training data that a checkpoint stores."""

    class_names: tuple[str, ...]
    num_examples: int  # of data.train_split


def run_folder(run: str) -> epath.Path:
    """The run folder as an absolute path, as Orbax requires."""
    return paths.absolute(run)


def checkpoint_root(run: str) -> epath.Path:
    """The folder that holds the checkpoints of a run folder."""
    return run_folder(run) / "checkpoints"


def _names(run: str) -> list[str]:
    """The entries of checkpoint_root(run). Raises CheckpointError if it cannot be read."""
    try:
        return files.names(checkpoint_root(run))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{checkpoint_root(run)} cannot be read: {error.strerror}") from error


def _is_step(run: str, name: str) -> bool:
    is_number = _STEP.fullmatch(name) and int(name) <= LAST_STEP
    return bool(is_number) and manifest.is_committed(checkpoint_root(run) / name)


def list_steps(run: str) -> list[int]:
    """The steps of the checkpoint folders of a run, newest first, unfinished ones included.

    Other entries, such as a file 70 or a folder 0099, are left out. Raises CheckpointError if the folder of
    checkpoints cannot be read.
    """
    return sorted((int(name) for name in _names(run) if _is_step(run, name)), reverse=True)


def remove_unfinished(run: str, step: int | None = None) -> None:
    """Removes what saves that did not end have left, those of `step` if it is given. Raises OSError.

    In gs:// these are folders that are not committed. Those that are marked as damaged stay.
    """
    root = checkpoint_root(run)
    for name in _names(run):
        start, is_temporary, _ = name.partition(_TEMPORARY)
        if is_temporary and (step is None or start == str(step)):
            files.remove(root / name)
        elif step is None and _STEP.fullmatch(name) and not manifest.is_marked(root / name):
            remove_uncommitted(run, int(name))


def remove_uncommitted(run: str, step: int) -> None:
    """Removes the folder of a step in gs:// that is not committed; nothing here. Raises OSError."""
    folder = checkpoint_root(run) / str(step)
    if paths.is_remote(folder) and files.is_folder(folder) and not manifest.is_committed(folder):
        files.remove(folder)


def find_written(run: str, step: int | None) -> epath.Path:
    """The folder in which Orbax writes the checkpoint of a step: it renames local ones at the end."""
    unfinished = [name for name in _names(run) if name.startswith(f"{step}{_TEMPORARY}")]
    return checkpoint_root(run) / (unfinished[0] if unfinished else str(step))


def is_gone(run: str, step: int) -> bool:
    """Whether the folder of a step was removed. False if gs:// does not answer."""
    with contextlib.suppress(OSError):
        return not files.is_folder(checkpoint_root(run) / str(step))
    return False


def is_intact(run: str, step: int) -> bool:
    """Whether the checkpoint of a step matches its manifest. False if gs:// does not answer."""
    with contextlib.suppress(OSError):
        return manifest.find_damage(checkpoint_root(run) / str(step)) is None
    return False


def find_step_damage(run: str, step: int, *, is_quick: bool = False) -> str | None:
    """The damage of the checkpoint of a step; None if it matches its manifest and is of that step.

    With `is_quick` the contents of the files are not compared. Raises CheckpointError if gs:// does not
    answer, which is no damage.
    """
    folder = checkpoint_root(run) / str(step)
    try:
        return _find_damage(folder, step, is_quick)
    except StoreError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from error


def _find_damage(folder: epath.Path, step: int, is_quick: bool) -> str | None:
    if damage := manifest.find_damage(folder, is_quick=is_quick):
        return damage
    try:
        saved = _read_json_item(folder / "meta")["data_position"]["next_step"]
    except (KeyError, TypeError):
        return "its meta has no step"
    except StoreError:
        raise
    except Exception as error:
        return f"its meta cannot be read: {reason(error)}"
    return None if saved == step else f"its state is that of step {saved}"


def newest_intact_step(run: str, *, set_aside: bool = False) -> int | None:
    """The newest step with an intact checkpoint; None if there is no checkpoint.

    A line is printed for each newer one that is damaged. With `set_aside`, damaged ones are moved to
    RUN/damaged, so that the run can write those steps again, and so are other entries named by a number.
    Process 0 checks, and all processes return its result. Raises CheckpointError if none is intact.
    """
    step = _newest_intact_step(run, set_aside) if jax.process_index() == 0 else -1
    if jax.process_count() > 1:
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    if step == -2:
        raise CheckpointError(f"{checkpoint_root(run)}: no checkpoint is intact, so nothing was restored")
    return None if step == -1 else step


def _newest_intact_step(run: str, set_aside: bool) -> int:
    """The step on process 0; -1 if there is no checkpoint, -2 if none is intact."""
    steps, intact = list_steps(run), -1
    if set_aside:
        _set_odd_entries_aside(run, is_only=not steps)
    for step in steps:
        folder = checkpoint_root(run) / str(step)
        damage = find_step_damage(run, step, is_quick=intact >= 0)
        if damage is None:
            intact = max(intact, step)
            if not set_aside:
                break
        elif intact < 0:
            is_last = step == steps[-1]
            say(f"checkpoint {folder} is damaged: {damage}{'' if is_last else '; using the one before'}")
            if set_aside and not is_last:
                _set_aside(run, str(step))
        else:  # it would count as one of the checkpoints that are kept
            say(f"checkpoint {folder} is damaged: {damage}; {_set_aside(run, str(step))}")
    return -2 if steps and intact < 0 else intact


def _set_odd_entries_aside(run: str, *, is_only: bool) -> None:
    """Moves entries away at which Orbax fails, or that it takes for checkpoints.

    Raises CheckpointError if one is a renamed checkpoint and there is no other: the run would start again
    from step 0.
    """
    odd = [n for n in _names(run) if n.strip().lstrip("+-").isdigit() and not _is_step(run, n)]
    for name in odd:
        if is_only and files.exists(checkpoint_root(run) / name / manifest.MANIFEST):
            raise CheckpointError(
                f"{checkpoint_root(run) / name} has a manifest, but is not named by its step, and there "
                "is no other checkpoint: rename it to its step, or move it away"
            )
    for name in odd:
        say(f"{checkpoint_root(run) / name} is not the checkpoint of a step; {_set_aside(run, name)}")


def _set_aside(run: str, name: str) -> str:
    """Moves an entry of checkpoint_root(run) to RUN/damaged. Returns what was done, "moved to PATH".

    In gs://, where that would copy all data, the folder is marked instead, and is not committed any more.
    """
    path = checkpoint_root(run) / name
    try:
        if paths.is_remote(path):
            manifest.mark_damaged(path)
            return "marked as damaged"
        target = files.damaged_path(run_folder(run), name)
        files.move(path, target)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be moved to {run_folder(run) / 'damaged'}: {error.strerror}; move it away"
        ) from error
    return f"moved to {target}"


def _read_json_item(folder: epath.Path) -> Any:
    # Orbax's reader waits for all processes, but only process 0 checks for damage.
    return json.loads(files.read_file(folder / "metadata"))


def read_meta(run: str, step: int) -> dict[str, Any]:
    """The meta item of a checkpoint. Raises CheckpointError if this version cannot read it."""
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
    """The meta item of the newest checkpoint with a readable one, intact or not; None if there is none."""
    for step in list_steps(run):
        with contextlib.suppress(Exception):  # an older one may be readable
            return read_meta(run, step)
    return None


def trained_on(meta: dict[str, Any]) -> TrainedOn | None:
    """The training data of a checkpoint; None for converted weights and checkpoints of early versions."""
    if (saved := meta.get("trained_on")) is None:
        return None
    return TrainedOn(class_names=tuple(saved["class_names"]), num_examples=saved["num_examples"])


def find_step(run: str, step: int | None) -> int:
    """The step to read from a run folder: `step`, or the newest intact one for None.

    Raises CheckpointError if the folder is not a run folder, or if `step` is missing or damaged.
    """
    steps = list_steps(run)
    if not steps:
        raise CheckpointError(f"{run} is not a run folder: there is no checkpoint in {checkpoint_root(run)}")
    if step is None:
        newest = newest_intact_step(run)
        assert newest is not None  # there are checkpoints
        return newest
    if step not in steps:
        known = ", ".join(map(str, sorted(steps)))
        raise CheckpointError(f"{run} has no checkpoint of step {step}; it has {known}")
    if damage := find_step_damage(run, step):
        raise CheckpointError(f"checkpoint {checkpoint_root(run) / str(step)} is damaged: {damage}")
    return step


def restore_args(target: Any, *, is_part: bool) -> ocp.args.PyTreeRestore:
    """Arguments that restore `target` with its shardings; `is_part`: the checkpoint may have more."""
    return ocp.args.PyTreeRestore(
        target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=is_part
    )


def _reader(target: Any) -> ocp.Checkpointer:
    """Orbax's reader, which waits for no process that has no part of `target`."""
    devices = {device for leaf in jax.tree.leaves(target) for device in leaf.sharding.device_set}
    options = ocp.options.MultiprocessingOptions()
    if {device.process_index for device in devices} == {me := jax.process_index()}:
        options = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def read_state(run: str, step: int, target: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of the state of a checkpoint that `target` has, such as "params", "ema" or "extra".

    `target` has shapes with the shardings of the result. All processes whose devices these have must call it.
    Raises CheckpointError for a part that is missing or cannot be read.
    """
    path = checkpoint_root(run) / str(step) / "state"
    version, names = read_meta(run, step)["format"], " and ".join(target)
    args = restore_args(in_format(dict(target), version), is_part=True)
    try:
        read = _reader(target).restore(path, args=args)
    except Exception as error:
        raise CheckpointError(f"{path}: its {names} cannot be restored: {reason(error)}") from error
    for where, leaf in jax.tree_util.tree_leaves_with_path(read):
        if isinstance(leaf, jax.ShapeDtypeStruct):  # Orbax leaves it if the array is missing
            name, *missing = leaf_of(where)
            missing = path_text(tuple(missing[missing[0] == BACKBONE :]))
            raise CheckpointError(f"{path} has no {name} of this model: {missing} is missing")
    return from_format(read, version, dict(target))
