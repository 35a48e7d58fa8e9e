"""Runs with a mask from a file: what the run folder keeps, and what a moved or changed file causes."""

import json

import numpy as np
import pytest

from tests.fixtures.digits import flags
from vit_registers.models.vit import static_attention


@pytest.fixture
def train(run_here, tmp_path):
    def train(path, *settings):
        mask = f"--config.model.mask=file(path='{path}')"
        return run_here("train", *flags("steps=2"), f"--workdir={tmp_path}/run", mask, *settings)

    return train


def one_line(result):
    code, _, err = result
    assert (code, err.count("\n")) == (2, 1), err
    return err


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_a_run_keeps_its_matrix_and_refuses_another(train, run_here, tmp_path):
    matrix, file, run = np.random.default_rng(0).random((17, 17)) < 0.5, tmp_path / "m.npy", tmp_path / "run"
    np.fill_diagonal(matrix, True)
    np.save(file, matrix)
    code, _, err = train(file)
    assert code == 0, err
    mask = json.loads((run / "config.json").read_text())["model"]["mask"]
    assert mask.startswith(f"file(path='{file}', sha256='")
    np.testing.assert_array_equal(np.load(run / "mask.npy"), matrix)

    # A changed file is another config; a moved file is the same config.
    assert train(file, "--config.run.log_every_steps=1")[0] == 0
    file.rename(tmp_path / "moved.npy")
    assert "m.npy is missing" in one_line(train(file))
    assert train(tmp_path / "moved.npy")[0] == 0
    assert train(run / "mask.npy")[0] == 0
    np.save(file, ~matrix | np.eye(17, dtype=bool))
    assert 'run holds a run of another config: model.mask ("file(path=' in one_line(train(file))
    file.unlink()

    # Evaluation, conversion and fine-tuning need only the run folder.
    evaluate = ("evaluate", f"--checkpoint={run}")
    code, before, err = run_here(*evaluate)
    assert code == 0, err
    code, _, err = run_here("convert", f"--input={run}", f"--output={tmp_path}/other", "--to=run")
    assert code == 0, err
    code, out, err = run_here("evaluate", f"--checkpoint={tmp_path}/other")
    assert code == 0, err
    assert out.split("top1")[1].split()[0] == before.split("top1")[1].split()[0]
    assert "cannot be written as 'timm'" in one_line(
        run_here("convert", f"--input={run}", f"--output={tmp_path}/t.npz", "--to=timm")
    )
    np.save(run / "mask.npy", matrix.T)
    static_attention.cache_clear()  # as in another process
    assert "run/mask.npy has changed: its SHA-256 is" in one_line(run_here(*evaluate))
    (run / "mask.npy").unlink()  # then the file of the start is read
    assert "m.npy is missing" in one_line(run_here(*evaluate))


def test_a_matrix_of_another_model_is_one_line_before_training(train, tmp_path):
    np.save(tmp_path / "m.npy", np.ones((16, 16), bool))
    assert "m.npy has shape (16, 16): must be (17, 17), for 1 cls, 16 patches" in one_line(
        train(tmp_path / "m.npy")
    )
