"""Errors that a user can correct: one line and exit code 2, never a stack trace."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.fixtures.digits import flags

pytestmark = pytest.mark.usefixtures("compiled_once")

ROOT = Path(__file__).parents[1]
DIGITS = "--config=configs/digits.py:steps=4"
SHORT = flags("steps=4", run={"eval_every_steps": 2})


def _assert_one_line(result, message):
    code, _, err = result
    # libjpeg, inside TensorFlow, writes a line for each broken image.
    lines = [line for line in err.splitlines() if line.strip() and line != "Input file read error"]
    assert code == 2, err
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert message in lines[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((DIGITS, "--config.model.num_register=4"), "num_registers"),
        ((DIGITS, "--config.model.num_registers=many"), "model.num_registers=many"),
        (("--config=configs/digits.py:registrs=4",), "did you mean 'registers'"),
        (("--config=configs/nosuch.py",), "configs/nosuch.py"),
        ((DIGITS, "steps=4"), "'steps=4' is not a flag"),
        ((DIGITS, "--config.model.mask=fractl"), "did you mean 'fractal'"),
        (("--config=configs/digits.py:mask=fractal,k=5",), "does not fit the patch grid of 4 x 4"),
        ((DIGITS, "--config.data.name=nosuchdata", "--config.data.loader=tfdata"), "nosuchdata"),
        ((DIGITS, "--config.data.train_ops=flipp"), "did you mean 'flip'"),
        ((DIGITS, "--config.model.num_classes=7"), "set --config.model.num_classes=10"),
        ((DIGITS, "--config.run.total_epochs=3", "--config.run.total_steps=4"), "both set"),
        (
            (DIGITS, "--config.optimizer.eps=0.0", "--config.run.seed=-1"),
            "eps=0.0: must be > 0; run.seed=-1: must be",
        ),
        ((DIGITS, "--config.data.std=(0.0,)"), "data.std=(0.0,): must be > 0"),
        (
            (DIGITS, "--config.model.channels=3"),
            "data.std=(0.5,): must have one value for each channel, and model.channels=3",
        ),
        ((DIGITS, "--workdir=s3://bucket/run"), "mount it"),
    ],
)
def test_bad_settings(run_here, tmp_path, args, message):
    _assert_one_line(run_here("train", f"--workdir={tmp_path}", *args), message)


def test_batch_that_does_not_divide_over_the_devices(run_here, tmp_path):
    args = (DIGITS, f"--workdir={tmp_path}", "--config.data.batch_size=12")
    _assert_one_line(run_here("train", *args), "data.batch_size=12 is not divisible by 8 devices")


def test_data_set_that_is_not_prepared(run_here, tmp_path):
    args = ("--config=configs/cifar10.py", f"--workdir={tmp_path}", f"--config.data.data_dir={tmp_path}")
    _assert_one_line(run_here("train", *args), "python -m vit_registers.prepare --name=cifar10")


def test_work_directory_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    _assert_one_line(run("train", DIGITS, f"--workdir={tmp_path}/file/run"), "cannot be written to")


@pytest.fixture
def folder(tmp_path):
    """A data set of 8 x 8 px grey images in two classes."""
    for split in ("train", "test"):
        for label, name in enumerate(("black", "white")):
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for i in range(8):
                Image.new("L", (8, 8), 255 * label).save(place / f"{i}.jpg")
    return tmp_path / "images"


def _folder_args(tmp_path, folder):
    return (
        *SHORT,
        f"--workdir={tmp_path}/run",
        "--config.data.name=folder",
        "--config.data.loader=tfdata",
        f"--config.data.data_dir={folder}",
        "--config.model.num_classes=2",
        "--config.data.batch_size=16",
        "--config.data.eval_batch_size=16",
    )


def test_class_folder_without_images(run_here, tmp_path, folder):
    shutil.rmtree(folder / "train" / "white")
    (folder / "train" / "white").mkdir()
    _assert_one_line(run_here("train", *_folder_args(tmp_path, folder)), "white")


@pytest.mark.slow
def test_image_that_cannot_be_decoded_is_named_or_skipped_with_a_count(run_here, tmp_path, folder):
    (folder / "train" / "black" / "3.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no JPEG")
    args = _folder_args(tmp_path, folder)
    _assert_one_line(run_here("train", *args), "train/black/3.jpg")
    shutil.rmtree(tmp_path / "run")
    code, out, err = run_here("train", *args, "--config.data.on_broken=skip")
    assert code == 0, err
    assert "images left out because they cannot be decoded: 1" in out


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.slow
def test_damaged_checkpoints_are_refused_or_the_one_before_is_used(run, run_here, tmp_path):
    work = tmp_path / "run"
    code, _, err = run_here("train", *SHORT, f"--workdir={work}")
    assert code == 0, err
    _assert_one_line(run_here("evaluate", f"--checkpoint={tmp_path}"), "is not a run folder")
    _assert_one_line(
        run_here("evaluate", f"--checkpoint={work}", "--step=3"), "has no checkpoint of step 3; it has 2, 4"
    )

    def biggest(step):
        files = [p for p in (work / "checkpoints" / str(step) / "state").rglob("*") if p.is_file()]
        return max(files, key=lambda p: p.stat().st_size)

    _assert_one_line(
        run_here("evaluate", f"--checkpoint={work}", "--config.model.depth=2"),
        "keeps the settings of its training",
    )
    _flip(biggest(4))
    code, out, err = run_here("evaluate", f"--checkpoint={work}")
    assert code == 0, err
    assert "SHA-256 differs); using the one before" in out
    assert "step        2" in out
    _assert_one_line(run_here("evaluate", f"--checkpoint={work}", "--step=4"), "is damaged")
    _truncate(biggest(2))
    _assert_one_line(run("evaluate", f"--checkpoint={work}"), "no checkpoint is intact")


@pytest.mark.slow
def test_checkpoint_that_cannot_be_written(run, run_here, tmp_path):
    """A limit on the size of files replaces a full disk."""
    args = (*SHORT, "--config.model.width=64", f"--workdir={tmp_path}/run")
    _assert_one_line(run("train", *args, limit_bytes=50_000), "checkpoints/2 could not be written")
    code, _, err = run_here("train", *args)
    assert code == 0, err


# A save that fails cancels others: some have not begun, and some end in another error.
GIVES_UP = """
from vit_registers import cli
from vit_registers.errors import CheckpointError

async def begins_never(): ...

class Stubborn:
    def __await__(self):
        try:
            yield
        finally:
            yield

async def does_not_end():
    await Stubborn()

def main():
    begins_never()
    begun = does_not_end()
    begun.send(None)
    del begun
    raise CheckpointError("could not be written")

cli.run(main)
"""


def test_saves_that_are_given_up_add_no_lines():
    ended = subprocess.run([sys.executable, "-c", GIVES_UP], capture_output=True, text=True, cwd=ROOT)
    _assert_one_line((ended.returncode, ended.stdout, ended.stderr), "could not be written")


@pytest.mark.slow
def test_run_folder_with_a_relative_name(run, tmp_path):
    """The folder is relative to the working directory."""
    code, _, err = run("train", *SHORT, "--workdir=runs/relative", folder=tmp_path)
    assert code == 0, err
    code, _, err = run("evaluate", "--checkpoint=runs/relative", folder=tmp_path)
    assert code == 0, err
    assert (tmp_path / "runs" / "relative" / "evaluation" / "test-4.json").exists()


@pytest.mark.slow
def test_loss_that_is_not_finite_stops_the_run_and_names_step_and_checkpoint(run_here, tmp_path):
    # The first step has the rate 0, and every later one an update whose norm is infinite.
    optimizer = {"learning_rate": 1e30, "grad_clip_norm": None}
    args = flags("steps=40", optimizer=optimizer, run={"eval_every_steps": 1})
    result = run_here("train", *args, f"--workdir={tmp_path}")
    _assert_one_line(result, "step 12: norm of the update is inf; 11 consecutive steps are not finite")
    assert "The last good checkpoint is that of step 1;" in result[2]
