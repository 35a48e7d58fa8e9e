"""convert writes over nothing of a run, and leaves nothing where it fails."""

import contextlib
import json
import os
import resource
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from vit_registers import config as config_lib
from vit_registers.config import Data, Model
from vit_registers.interop.export import targets
from vit_registers.models.vit import ViT
from vit_registers.storage.run_lock import RunLock

TINY = Model(width=16, depth=1, num_heads=2, mlp_dim=32, patch_size=8, image_size=(16, 16), num_classes=3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of transformers' format."""
    shapes = nnx.eval_shape(lambda: ViT(TINY, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    shapes = nnx.to_pure_dict(nnx.split(shapes, nnx.Param)[1])
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)
    folder = tmp_path_factory.mktemp("weights") / "theirs"
    model = targets.export(TINY, params, "transformers")
    targets.write(model, folder, np.float32, Data())
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def place(run_here, weights, made, tmp_path):
    """A folder with `run`, a run folder, and `theirs`, weights of others."""
    if not (made / "run").exists():
        code, _, err = run_here("convert", f"--input={weights}", f"--output={made / 'run'}")
        assert code == 0, err
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.copytree(weights, tmp_path / "theirs")
    (tmp_path / "link").symlink_to("run")
    return tmp_path


def _snapshot(place):
    return {
        path: (path.lstat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in sorted(place.rglob("*"))
        if not path.is_dir()
    }


def _refused(result, *messages):
    code, _, err = result
    assert (code, err.count("\n")) == (2, 1), err
    for message in messages:
        assert message in err


@pytest.mark.parametrize("target", ["run", "transformers", "timm"])
@pytest.mark.parametrize("output", ["run", "run/", "link", "link/", "run/../run", "link/../run/."])
def test_an_output_that_is_the_input(run_here, place, target, output):
    before = _snapshot(place)
    args = (f"--input={place / 'run'}", f"--output={place}/{output}", f"--to={target}")
    _refused(run_here("convert", *args), "is the input: give another --output")
    assert _snapshot(place) == before


def test_an_output_that_is_the_input_of_others(run_here, place):
    before = _snapshot(place)
    for target in ("run", "transformers"):
        args = (f"--input={place / 'theirs'}", f"--output={place / 'theirs'}", f"--to={target}")
        _refused(run_here("convert", *args), "is the input: give another --output")
    args = (f"--input={place / 'theirs' / 'model.safetensors'}", f"--output={place / 'theirs'}")
    _refused(run_here("convert", *args, "--num_heads=2"), "has a config.json already")
    assert _snapshot(place) == before


def _with(name, make):
    def write(folder):
        folder.mkdir()
        make(folder / name)

    return write


PARTS = {
    "a run": lambda folder: shutil.copytree(folder.parent / "run", folder),
    "a link to a run": lambda folder: folder.symlink_to("run"),
    "config.json": _with(
        "config.json", lambda path: path.write_text(json.dumps(config_lib.to_dict(config_lib.Config())))
    ),
    "metrics.jsonl": _with("metrics.jsonl", lambda path: path.write_text("")),
    "result.json": _with("result.json", lambda path: path.write_text("{}")),
    "parameters.txt": _with("parameters.txt", lambda path: path.write_text("")),
    "no checkpoint yet": _with("checkpoints", os.mkdir),
    "an unfinished checkpoint": _with(
        "checkpoints", lambda path: (path / "5.orbax-checkpoint-tmp").mkdir(parents=True)
    ),
    "a damaged checkpoint": _with("checkpoints", lambda path: (path / "5").mkdir(parents=True)),
    "a link to checkpoints that are away": _with("checkpoints", lambda path: path.symlink_to("/mnt/away")),
}


@pytest.mark.parametrize("target", ["run", "transformers"])
@pytest.mark.parametrize("part", PARTS)
def test_an_output_that_holds_a_run_or_a_part_of_one(run_here, place, target, part):
    PARTS[part](place / "out")
    before = _snapshot(place)
    args = (f"--input={place / 'theirs'}", f"--output={place / 'out'}", f"--to={target}")
    _refused(run_here("convert", *args), f"{place / 'out'} h", ": give another --output")
    assert _snapshot(place) == before


@pytest.mark.parametrize("output", ["run/checkpoints/0/weights", "run/checkpoints/7", "link/checkpoints/0"])
def test_an_output_among_checkpoints(run_here, place, output):
    before = _snapshot(place)
    for target in ("run", "transformers", "timm"):
        args = (f"--input={place / 'theirs'}", f"--output={place / output}", f"--to={target}")
        _refused(run_here("convert", *args), "lies in the checkpoints of a run")
    assert _snapshot(place) == before


def test_an_output_where_a_run_begins(run_here, place):
    (place / "out").mkdir()
    with RunLock(place / "out"):
        for target in ("run", "transformers"):
            args = (f"--input={place / 'theirs'}", f"--output={place / 'out'}", f"--to={target}")
            _refused(run_here("convert", *args), f"is in use by process {os.getpid()} on ")
    assert not list((place / "out").iterdir())


def test_an_output_that_is_not_a_folder_or_is_a_file_already(run_here, place):
    (place / "file").write_text("text")
    for target in ("run", "transformers", "timm"):
        for output in ("file", "file/below"):
            args = (f"--input={place / 'theirs'}", f"--output={place / output}", f"--to={target}")
            _refused(run_here("convert", *args), f"{place}/file")
    assert (place / "file").read_text() == "text"


# --- what fails ------------------------------------------------------------------------------


@contextlib.contextmanager
def _files_up_to(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.own_process
# TensorStore reports writes that failed once more, to an event loop that is closed (see cli.py).
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("target", ["run", "transformers", "timm", "stablehlo"])
@pytest.mark.parametrize("output", ["out", "new/folder/out", "there/out"])
def test_a_disk_that_is_full_leaves_nothing(run_here, place, target, output):
    (place / "there").mkdir()
    (place / "there" / "notes.txt").write_text("text")
    before = sorted(place.rglob("*"))
    args = (f"--input={place / 'theirs'}", f"--output={place / output}", f"--to={target}")
    with _files_up_to(3000):
        _refused(run_here("convert", *args), "File too large")
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("name", ["notes.txt", ".hidden"])
def test_weights_that_are_not_what_was_written_leave_what_was_there(run_here, place, name):
    tensors = load_file(place / "theirs" / "model.safetensors")
    first = sorted(tensors)[0]
    tensors[first] = np.full_like(tensors[first], np.nan)
    save_file(tensors, place / "theirs" / "model.safetensors", {"format": "pt"})
    (place / "out").mkdir()
    (place / "out" / name).write_text("text")
    before = _snapshot(place)
    for target in ("run", "transformers"):
        args = (f"--input={place / 'theirs'}", f"--output={place / 'out'}", f"--to={target}")
        _refused(run_here("convert", *args))
        assert _snapshot(place) == before


@pytest.mark.parametrize("name", ["a[1]", "a\\b", "a*", "a?b/run", "lr=**"])
@pytest.mark.parametrize("program", ["convert", "train"])
def test_a_path_that_checkpoints_cannot_be_written_to(run_here, place, program, name):
    """Orbax would not find what it has written there, and TensorStore would write elsewhere."""
    before = _snapshot(place)
    args = {
        "convert": (f"--input={place / 'theirs'}", f"--output={place / name}"),
        "train": ("--config=configs/digits.py:steps=1", f"--workdir={place / name}"),
    }
    _refused(run_here(program, *args[program]), f"{place}/{name}: checkpoints cannot be written to a path")
    assert _snapshot(place) == before and not (place / name).exists()
