"""Data sets in gs://: prepared from a folder, uploaded, read by several processes, and refused in one line.

This file is also the program that two processes run: see `_work`.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import vit_registers
from tests.fixtures.digits import flags, make_config
from tests.fixtures.faulty_store import FaultyStore
from tests.fixtures.processes import joined, run_processes
from tools.ports import free_port
from vit_registers import train as train_lib
from vit_registers.config import Data
from vit_registers.data.loaders import open_data
from vit_registers.data.sources.folder import Folder
from vit_registers.errors import UserError
from vit_registers.storage import objects

ROOT = Path(__file__).parents[2]
NUM_TRAIN, NUM_VAL, BATCH = 48, 11, 16
CLASSES = ("ant", "bee", "cow")
CONFIG = make_config(
    model={"num_classes": len(CLASSES), "num_registers": 2},
    data={
        "loader": "tfdata",
        "name": "photos",
        "train_split": "train",
        "eval_split": "val",
        "batch_size": BATCH,
        "eval_batch_size": 8,
        "train_ops": "random_crop(padding=1)",
    },
    run={"total_steps": 6, "eval_every_steps": 3, "log_every_steps": 2},
)


def _write_folder(root):
    """Images of several formats; pixel (0, 0) of each is its number in its split."""
    for split, number in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        for i in range(number):
            image_HxW = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
            image_HxW[0, 0] = i
            path = root / split / CLASSES[i % 3] / f"{i:03}.{('png', 'bmp', 'tif')[i % 3]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image_HxW).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image folder."""
    root = tmp_path_factory.mktemp("images")
    _write_folder(root)
    return root


@pytest.fixture
def prepare(run_here, folder, tmp_path, gs_folder):
    """prepare(flag, ...) -> (exit code, standard output, standard error); from the folder into gs://."""
    pytest.importorskip("tensorflow_datasets")

    def prepare(*more):
        local, target = f"--local_dir={tmp_path}/local", f"--data_dir={gs_folder}"
        return run_here("prepare", "--name=photos", f"--from_folder={folder}", target, local, *more)

    return prepare


# --- the program -------------------------------------------------------------------------------


def _read_and_train(folder, given):
    """Writes the numbers of the images of one epoch that this process reads, and trains on both data sets."""
    for name, data_dir in given.items():
        config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, data_dir=data_dir))
        plain = dataclasses.replace(config, data=dataclasses.replace(config.data, train_ops=""))
        mine, count = jax.process_index(), jax.process_count()
        batches = open_data(plain).host_train_batches(0, process_index=mine, process_count=count)
        epoch = [next(batches).views["image"][:, 0, 0, 0].tolist() for _ in range(NUM_TRAIN // BATCH)]
        batches.close()
        Path(folder, f"{name}-{mine}.json").write_text(json.dumps(epoch))
        train_lib.train(config, f"{folder}/{name}")


def _work(port, count, me, folder, given):
    with joined(port, count, me, 60.0):
        _read_and_train(folder, json.loads(given))


# --- reading -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_on_gs_as_on_local_files_and_see_each_image_once(
    prepare, quick, tmp_path, gs_folder
):
    assert prepare()[0] == 0
    given, port = {"gs": gs_folder, "local": f"{tmp_path}/local"}, str(free_port())
    commands = [
        [sys.executable, __file__, port, "2", str(me), str(tmp_path), json.dumps(given)] for me in range(2)
    ]
    results = run_processes(commands, quick(), tmp_path, timeout_s=280)
    assert [code for code, _, _ in results] == [0, 0], [err[-2000:] for _, _, err in results]
    seen = {
        name: np.array([json.loads((tmp_path / f"{name}-{me}.json").read_text()) for me in range(2)])
        for name in given
    }
    np.testing.assert_array_equal(seen["gs"], seen["local"])
    assert sorted(seen["gs"].ravel()) == list(range(NUM_TRAIN))
    assert _metrics(tmp_path / "gs") == _metrics(tmp_path / "local")
    assert _arrays(tmp_path / "gs") == _arrays(tmp_path / "local")


def _metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "images_per_s" not in line]


def _arrays(run):
    """The parameters of the last checkpoint, bit for bit."""
    params = nnx.state(vit_registers.load(str(run)), nnx.Param)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)]


def test_images_and_labels_in_gs_are_those_of_the_folder_in_its_order(prepare, folder, gs_folder):
    from vit_registers.data.sources.tfds_prepared import open_prepared

    assert prepare()[0] == 0
    ours = open_prepared(Data(name="photos", data_dir=gs_folder), 1)
    theirs = Folder(folder)
    assert ours.class_names == theirs.class_names == CLASSES
    for split, number in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        np.testing.assert_array_equal(ours.labels(split), theirs.labels(split))
        read, read_file = ours.image_reader(split), theirs.image_reader(split)
        assert [read(i) for i in range(number)] == [read_file(i) for i in range(number)]
    of_folder, of_gs = _first_batch(name="folder", data_dir=str(folder)), _first_batch(data_dir=gs_folder)
    jax.tree.map(np.testing.assert_array_equal, of_folder, of_gs)


def _first_batch(**settings):
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, **settings))
    batches = open_data(config).host_train_batches(0, process_index=0, process_count=1)
    batch = next(batches)
    batches.close()
    return batch


READ = """
import sys
from etils import epath
{first}
from vit_registers.config import Data
from vit_registers.data.sources.tfds_prepared import open_prepared
source = open_prepared(Data(name="photos", data_dir=sys.argv[1]), 1)
print(source.labels("val").sum(), "tensorflow" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    ["import vit_registers", "import orbax.checkpoint, tensorflow_datasets", "epath.Path('/').exists()"],
)
def test_gs_is_not_read_with_tensorflow_whatever_is_imported_first(first, prepare, gs_folder):
    assert prepare()[0] == 0
    command = [sys.executable, "-c", READ.format(first=first), gs_folder]
    variables = {key: value for key, value in os.environ.items() if key != "EPATH_USE_TF"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT, env=variables)
    assert done.stdout.split() == [str(sum(i % 3 for i in range(NUM_VAL))), "False"], done.stderr


# --- uploading ---------------------------------------------------------------------------------


def test_an_upload_goes_on_where_it_was_interrupted(prepare, gs_folder, tmp_path):
    code, out, err = prepare()
    assert (code, err) == (0, "")
    target = f"{gs_folder}/photos/1.0.0"
    files = sorted(path.name for path in (tmp_path / "local/photos/1.0.0").iterdir())
    assert sorted(objects.find_all(target)) == files
    assert f"{target}: {len(files)} files sent, 0 were there; checksums are equal" in out
    for line in objects.read_object(f"{target}/SHA256SUMS").decode().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256(objects.read_object(f"{target}/{name}")).hexdigest() == digest
    damaged, missing = f"{target}/{files[-1]}", f"{target}/{files[-2]}"
    objects.write_object(damaged, objects.read_object(damaged)[:-1])
    for path in (missing, f"{target}/dataset_info.json"):
        objects.remove_objects(path)
    code, out, _ = prepare()
    assert code == 0
    assert f"{target}: 3 files sent, {len(files) - 3} were there; checksums are equal" in out
    assert f"{target}: 0 files sent, {len(files)} were there; checksums are equal" in prepare()[1]


def test_a_data_set_that_is_not_whole_is_not_read(prepare, gs_folder):
    assert prepare()[0] == 0
    target = f"{gs_folder}/photos/1.0.0"
    objects.remove_objects(f"{target}/dataset_info.json")
    assert "photos/1.0.0 is only partly prepared, as it has no dataset_info.json" in _refused(gs_folder)
    assert prepare()[0] == 0
    name = next(name for name in objects.find_all(target) if "-train." in name)
    objects.remove_objects(f"{target}/{name}")
    assert f"split 'train' of photos lacks the file {target}/{name}" in _refused(gs_folder)


def test_another_data_set_is_not_overwritten(prepare, gs_folder, folder, tmp_path):
    assert prepare()[0] == 0
    target = f"{gs_folder}/photos/1.0.0"
    before = objects.find_all(target)
    (tmp_path / "local").rename(tmp_path / "first")
    added = folder / "val" / CLASSES[0] / "zzz.png"
    Image.new("L", (8, 8)).save(added)
    try:
        code, _, err = prepare()
    finally:
        added.unlink()
    assert (code, err) == (
        2,
        f"error: {target} holds another data set: delete that folder, or give another --name or --data_dir\n",
    )
    assert objects.find_all(target) == before


# --- refusing ----------------------------------------------------------------------------------


def _refused(data_dir, **settings):
    """The error of opening the data set."""
    data = dataclasses.replace(CONFIG.data, data_dir=data_dir, **settings)
    with pytest.raises(UserError) as error:
        open_data(dataclasses.replace(CONFIG, data=data)).num_examples("train")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_read_is_refused_with_the_cure(emulator, gs_folder, monkeypatch, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    cure = "--from_folder=COPY --data_dir=gs://"
    for name in ("folder", "images"):
        refused = _refused(gs_folder, name=name)
        assert f"data.data_dir={gs_folder}: image folders are read from local disks only" in refused
        assert cure in refused
    objects.write_object(f"{gs_folder}/train/ant/1.png", b"")
    assert cure in _refused(None, name=gs_folder)
    assert "s3:// is not supported" in _refused("s3://bucket/data")
    assert "there is no bucket gs://nowhere" in _refused("gs://nowhere/data")
    assert "'photos' is neither prepared in gs://" in _refused(gs_folder)
    # No credentials, as array_record looks for them.
    monkeypatch.delenv("CLOUD_STORAGE_EMULATOR_ENDPOINT")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    assert "no credentials of Google Cloud are found: run 'gcloud auth" in _refused(gs_folder)


@pytest.fixture
def forbidding(emulator, monkeypatch):
    """A store that answers every request with 403, for programs that are started."""
    with FaultyStore(emulator.address) as store:
        store.code = 403
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("program", ["train", "prepare"])
def test_permission_denied_is_one_line(program, run, forbidding, folder, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    given = {
        "train": (
            *flags("steps=1", data={"loader": "tfdata", "name": "photos", "data_dir": "gs://bucket/data"}),
            f"--workdir={tmp_path}/run",
        ),
        "prepare": (
            *("--name=photos", f"--from_folder={folder}", "--data_dir=gs://bucket/data"),
            f"--local_dir={tmp_path}/local",
        ),
    }
    code, _, err = run(program, *given[program])
    assert code == 2, err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert "gs://bucket/data" in err and "permission denied: grant roles/storage" in err


if __name__ == "__main__":
    _work(*sys.argv[1:])
