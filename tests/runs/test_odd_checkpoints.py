"""What is found among checkpoints and is none: readers pass over it, and a run moves it out of its way."""

import hashlib
import json
import os
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from vit_registers.analysis import opening
from vit_registers.checkpoint_names import parse_checkpoint
from vit_registers.config import Checkpoint, Config, Mesh
from vit_registers.errors import CheckpointError
from vit_registers.runs import checkpoint_folder
from vit_registers.runs.checkpoint_folder import find_step, list_steps, read_meta, read_state
from vit_registers.runs.checkpoints import Checkpoints
from vit_registers.runs.manifest import find_damage
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training import sharding
from vit_registers.training.state import TrainState

CONFIG = Config(checkpoint=Checkpoint(keep_last=2, keep_best=0))


def _state(step):
    whole = sharding.replicated(make_mesh(Mesh(), devices=jax.devices()[:1]))
    params = {"kernel": np.random.default_rng(step).normal(size=(64, 32)).astype(np.float32)}
    values = {"step": np.int32(step), "params": params, "opt_state": ()}
    return TrainState(**jax.device_put(values, whole), ema=None)


def _abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    run = tmp_path_factory.mktemp("saved")
    with Checkpoints(str(run), CONFIG) as saver:
        for step in (20, 33):
            saver.save(_state(step), {"top1": 0.5})
    return run


@pytest.fixture
def run(saved, tmp_path):
    """A run folder with intact checkpoints of steps 20 and 33."""
    return shutil.copytree(saved, tmp_path / "run")


def _assert_trains_on(run, step):
    """A start resumes from `step`, and what it keeps are its last two checkpoints, whatever else is there."""
    with Checkpoints(str(run), CONFIG) as saver:
        assert saver.restorable_step == step
        got = saver.restore(_abstract(_state(step)))
        np.testing.assert_array_equal(got.params["kernel"], _state(step).params["kernel"])
        if step == 33:
            assert list_steps(str(run)) == [33, 20]
        saver.save(_state(100), None)
    assert list_steps(str(run)) == [100, step]
    assert [checkpoint_folder.find_step_damage(str(run), s) for s in (100, step)] == [None, None]


# --- entries ---------------------------------------------------------------------------------


def _copy(path):
    shutil.copytree(path.parent / "33", path)


def _file(path):
    path.write_text("x")


# Name, what is made there, and whether a run moves it away.
ENTRIES = {
    "a file": ("70", _file, True),
    "a link to itself": ("71", lambda path: path.symlink_to(path.name), True),
    "a link to nothing": ("72", lambda path: path.symlink_to("nowhere"), True),
    "a link to the folder that it is in": ("73", lambda path: path.symlink_to("."), True),
    "a named pipe": ("74", os.mkfifo, True),
    "an empty folder": ("80", os.mkdir, True),
    "a folder with an empty folder": ("81", lambda path: (path / "state").mkdir(parents=True), True),
    "superscript": ("²", os.mkdir, True),
    "superscript file": ("²", _file, True),
    "circled": ("①", os.mkdir, True),
    "digits of another script": ("٧", os.mkdir, True),
    "leading zeros": ("0099", os.mkdir, True),
    "leading zeros of a copy": ("0033", _copy, True),
    "below zero": ("-1", os.mkdir, True),
    "with a sign": ("+50", _copy, True),
    "spaces": (" 70 ", os.mkdir, True),
    "more than a step can be": ("2147483648", os.mkdir, True),
    "30 digits": ("9" * 30, os.mkdir, True),
    "a copy as another step": ("50", _copy, True),
    "a copy as an earlier step": ("25", _copy, True),
    "a copy with a name": ("33 copy", _copy, False),
    "a copy with a number at its end": ("old_50", _copy, False),
    "notes": ("README.txt", _file, False),
    "not UTF-8": (os.fsdecode(b"\xff70"), _file, False),
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_odd_entries(run, capsys, kind):
    name, make, is_moved = ENTRIES[kind]
    make(run / "checkpoints" / name)
    assert find_step(str(run), None) == 33
    out = capsys.readouterr().out
    assert out.count("\n") <= 1
    assert os.path.lexists(run / "checkpoints" / name)
    _assert_trains_on(run, 33)
    out = capsys.readouterr().out
    assert out.count("\n") == is_moved
    assert os.path.lexists(run / "checkpoints" / name) != is_moved
    assert [path.name.startswith(name) for path in run.glob("damaged/*")] == [True] * is_moved


@pytest.mark.parametrize(
    "make", [_file, lambda path: path.symlink_to(path.name), os.mkdir], ids=["file", "link", "folder"]
)
def test_odd_unfinished_saves(run, make):
    make(run / "checkpoints" / "40.orbax-checkpoint-tmp")
    _assert_trains_on(run, 33)
    assert not list((run / "checkpoints").glob("*tmp*"))


def test_a_copy_as_another_step_is_refused_by_name_and_says_so(run, capsys):
    _copy(run / "checkpoints" / "50")
    with pytest.raises(CheckpointError, match=r"50 is damaged: its state is that of step 33$"):
        find_step(str(run), 50)
    assert find_step(str(run), None) == 33
    assert "checkpoints/50 is damaged: its state is that of step 33; using the one before" in (
        capsys.readouterr().out
    )


def test_the_only_checkpoint_under_another_name_is_not_moved_away(run):
    shutil.rmtree(run / "checkpoints" / "20")
    os.rename(run / "checkpoints" / "33", run / "checkpoints" / "0033")
    with pytest.raises(CheckpointError, match=r"0033 has a manifest, but is not named by its step"):
        Checkpoints(str(run), CONFIG)
    os.rename(run / "checkpoints" / "0033", run / "checkpoints" / "34")
    with pytest.raises(CheckpointError, match="no checkpoint is intact"):
        Checkpoints(str(run), CONFIG)
    os.rename(run / "checkpoints" / "34", run / "checkpoints" / "33")
    assert find_step(str(run), None) == 33


def test_analyze_reads_steps_as_it_lists_them(run, capsys):
    assert parse_checkpoint(f"{run}@33", where="x") == (str(run), 33, False)
    with pytest.raises(CheckpointError, match="'²' is no step"):
        parse_checkpoint(f"{run}@²", where="x")
    _copy(run / "checkpoints" / "50")
    os.mkdir(run / "checkpoints" / "25")
    assert opening._steps(f"{run}@all") == [f"{run}@20", f"{run}@33"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("; left out") for line in lines] == [True, True]


def test_a_state_of_another_step_than_its_meta_says_is_not_restored(run):
    state = run / "checkpoints" / "33" / "state"
    shutil.rmtree(state)
    shutil.copytree(run / "checkpoints" / "20" / "state", state)
    _list_all_files(state.parent)
    with (
        Checkpoints(str(run), CONFIG) as saver,
        pytest.raises(CheckpointError, match="33 is damaged: its state is that of step 20"),
    ):
        saver.restore(_abstract(_state(33)))


def test_checkpoints_that_cannot_be_listed_are_one_line(run, tmp_path):
    loop = tmp_path / "loop"
    loop.mkdir()
    (loop / "checkpoints").symlink_to("checkpoints")
    with pytest.raises(CheckpointError, match="checkpoints cannot be read: Too many levels"):
        find_step(str(loop), None)
    with pytest.raises(CheckpointError, match="checkpoints cannot be used: "):
        Checkpoints(str(loop), CONFIG)
    (run / "file").mkdir()
    (run / "file" / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="is not a run folder"):
        find_step(str(run / "file"), None)
    with pytest.raises(CheckpointError, match="checkpoints cannot be used: File exists"):
        Checkpoints(str(run / "file"), CONFIG)


# --- manifests -------------------------------------------------------------------------------


def _list_all_files(folder):
    """Writes a manifest that fits the folder, with this library's own reading of it."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent != folder]
    entries = {
        str(path.relative_to(folder)): {
            "bytes": len(path.read_bytes()),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in files
    }
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": entries}))


def _edit(change):
    def edit(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest = change(manifest["files"]) or manifest
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return edit


def _write(data):
    return lambda folder: (folder / "manifest.json").write_bytes(data)


def _as_folder(folder):
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()


def _as_pipe(folder):
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")


def _without_item(item):
    def remove(folder):
        shutil.rmtree(folder / item)
        _list_all_files(folder)

    return remove


def _outside(path):
    return _edit(lambda files: files.update({path: files["meta/metadata"]}))


def _entry(value):
    return _edit(lambda files: files.update({"meta/metadata": value}))


def _other_meta(text):
    def write(folder):
        (folder / "meta" / "metadata").write_text(text)
        _list_all_files(folder)

    return write


_DIGEST = "0" * 64

DAMAGE = {
    "no files": (_write(b'{"files": []}'), 'no object "files"'),
    "no entries": (_write(b'{"files": {}}'), "lists no file of state/"),
    "no object": (_write(b"[]"), 'no object "files"'),
    "null": (_write(b"null"), 'no object "files"'),
    "empty": (_write(b""), "not JSON"),
    "binary": (_write(bytes(range(256))), "not JSON"),
    "deep": (_write(b"[" * 100_000), "not JSON"),
    "a folder": (_as_folder, "Is a directory"),
    "a named pipe": (_as_pipe, "it is not a regular file"),
    "without meta": (_without_item("meta"), "lists no file of meta/"),
    "without state": (_without_item("state"), "lists no file of state/"),
    "without one file": (
        _edit(lambda files: files.pop("state/_METADATA") and None),
        "does not list state/_MET",
    ),
    "one file more": (lambda folder: (folder / "state" / "more").write_text(""), "does not list state/more"),
    "up": (_outside("../20/meta/metadata"), "is not a path in the folder"),
    "up in between": (_outside("meta/../meta/metadata"), "is not a path in the folder"),
    "absolute": (_outside("/etc/passwd"), "is not a path in the folder"),
    "no name": (_outside(""), "is not a path in the folder"),
    "the folder": (_outside("."), "is not a path in the folder"),
    "zero byte": (_outside("meta/\0"), "is not a path in the folder"),
    "long name": (_outside("meta/" + "x" * 5000), "cannot be read: File name too long"),
    "lone surrogate": (_outside("meta/\ud800"), "cannot be read: "),
    "entry of text": (_entry("text"), "has no size and SHA-256"),
    "entry without fields": (_entry({}), "has no size and SHA-256"),
    "entry of null": (_entry({"bytes": None, "sha256": _DIGEST}), "has no size and SHA-256"),
    "size of text": (_entry({"bytes": "9", "sha256": _DIGEST}), "has no size and SHA-256"),
    "size of yes": (_entry({"bytes": True, "sha256": _DIGEST}), "has no size and SHA-256"),
    "digest of text": (_entry({"bytes": 9, "sha256": "text"}), "has no size and SHA-256"),
    "digest of a number": (_entry({"bytes": 9, "sha256": 9}), "has no size and SHA-256"),
    "file as folder": (
        lambda folder: [(folder / "meta/metadata").unlink(), (folder / "meta/metadata").mkdir()],
        "meta/metadata is not a file",
    ),
    "file as pipe": (
        lambda folder: [(folder / "meta/metadata").unlink(), os.mkfifo(folder / "meta/metadata")],
        "meta/metadata is not a file",
    ),
    "file as link to itself": (
        lambda folder: [
            (folder / "meta/metadata").unlink(),
            (folder / "meta/metadata").symlink_to("metadata"),
        ],
        "meta/metadata cannot be read: Too many levels",
    ),
    "folder as file": (
        lambda folder: [shutil.rmtree(folder / "meta"), (folder / "meta").write_text("")],
        "is missing",
    ),
    "meta is no JSON": (_other_meta("{"), "its meta cannot be read"),
    "meta is a list": (_other_meta("[]"), "its meta has no step"),
    "meta without step": (_other_meta('{"data_position": {}}'), "its meta has no step"),
    "meta of another step": (_other_meta('{"data_position": {"next_step": "33"}}'), "is that of step 33"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_checkpoint_that_its_manifest_does_not_cover_is_damaged(run, capsys, kind):
    damage, message = DAMAGE[kind]
    damage(run / "checkpoints" / "33")
    assert find_step(str(run), None) == 20
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"checkpoint {run}/checkpoints/33 is damaged: ")
    assert message in line and line.endswith("; using the one before")
    with pytest.raises(CheckpointError, match="33 is damaged: "):
        find_step(str(run), 33)
    _assert_trains_on(run, 20)
    assert [path.name[:3] for path in (run / "damaged").iterdir()] == ["33-"]


def test_a_damaged_checkpoint_between_others_does_not_take_the_place_of_one(run, capsys):
    (run / "checkpoints" / "25").mkdir()
    with Checkpoints(str(run), CONFIG):
        assert "checkpoints/25 is damaged: it has no manifest" in capsys.readouterr().out
    assert list_steps(str(run)) == [33, 20]


def test_what_file_systems_and_orbax_add_is_no_damage(run):
    folder = run / "checkpoints" / "33"
    for name in ("state/.nfs000123", "meta/.DS_Store", ".DS_Store", "notes.txt"):
        (folder / name).write_text("x")
    (folder / "state" / "loop").symlink_to(".")
    assert find_damage(epath.Path(folder)) is None
    _edit(lambda files: files.pop("state/commit_success.txt") and None)(folder)
    assert find_damage(epath.Path(folder)) is None
    assert find_step(str(run), 33) == 33


# --- errors of Orbax and TensorStore ---------------------------------------------------------


def _empty_files(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def _flip(folder):
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 255
            path.write_bytes(data)


# Reads that are given up leave coroutines behind (see cli.py).
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "damage",
    [
        lambda state: shutil.rmtree(state),
        lambda state: shutil.rmtree(state / "d"),
        lambda state: shutil.rmtree(state / "ocdbt.process_0"),
        lambda state: (state / "manifest.ocdbt").write_bytes(b""),
        lambda state: (state / "_METADATA").write_text("[]"),
        lambda state: (state / "_METADATA").write_text("{"),
        _empty_files,
        _flip,
    ],
)
# Of reads that Orbax gives up, as cli.py hides them in programs.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_state_that_cannot_be_read_in_spite_of_its_manifest_is_one_line(run, damage):
    with Checkpoints(str(run), CONFIG) as saver:  # damaged after it was looked at
        damage(run / "checkpoints" / "33" / "state")
        with pytest.raises(CheckpointError, match="33 cannot be restored: ") as restored:
            saver.restore(_abstract(_state(33)))
    with pytest.raises(CheckpointError, match="state: its params cannot be restored: ") as read:
        read_state(str(run), 33, {"params": _abstract(_state(33).params)})
    for error in (restored, read):
        assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_parameters_that_a_checkpoint_does_not_have_are_named(run):
    abstract = _abstract(_state(33).params)
    with pytest.raises(CheckpointError, match="state has no ema of this model: kernel is missing"):
        read_state(str(run), 33, {"ema": abstract})
    with pytest.raises(CheckpointError, match="state has no params of this model: other is missing"):
        read_state(str(run), 33, {"params": {"other": abstract["kernel"]}})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 3}'])
def test_a_meta_that_cannot_be_read_is_one_line(run, text):
    (run / "checkpoints" / "33" / "meta" / "metadata").write_text(text)
    with pytest.raises(CheckpointError, match=r"meta (cannot be read|has format 3)") as error:
        read_meta(str(run), 33)
    assert "\n" not in str(error.value)
