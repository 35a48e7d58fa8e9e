"""Two processes train on images and texts as one does: loss, parameters, zero-shot accuracy, captions."""

import json
import socket

import jax
import numpy as np
import pytest

from vit_registers.config import Mesh
from vit_registers.loading import open_run
from vit_registers.runtime.mesh import make_mesh

pytestmark = pytest.mark.slow
ARGS = (
    "--config=configs/clip_digits.py:registers=2,steps=8",
    *("--config.model.width=16", "--config.model.depth=1", "--config.model.num_heads=2"),
    *("--config.text.width=16", "--config.text.depth=1", "--config.text.num_heads=2"),
    "--config.data.batch_size=40",
    "--config.optimizer.accumulation_steps=2",
    # The gradient of the key bias is zero but for rounding, which Adam would blow up.
    "--config.optimizer.eps=1e-3",
    "--config.run.log_every_steps=1",
    "--config.run.eval_every_steps=4",
)


def _records(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "time_s" not in line]


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_two_processes_train_as_one(start, tmp_path, loss):
    one, two = tmp_path / "one", tmp_path / "two"
    args = (*ARGS, f"--config.objective.image_text.loss={loss}")
    program = start("train", *args, f"--workdir={one}", devices=4)
    _, error = program.communicate(timeout=300)
    assert program.returncode == 0, error
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    job = (f"--coordinator=localhost:{port}", "--num_processes=2", f"--workdir={two}")
    programs = [start("train", *args, *job, f"--process_id={i}", devices=2) for i in range(2)]
    ended = [program.communicate(timeout=300) for program in programs]
    assert [program.returncode for program in programs] == [0, 0], ended
    for a, b in zip(_records(two), _records(one), strict=True):
        assert a.keys() == b.keys()
        for name, value in b.items():
            np.testing.assert_allclose(a[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
    assert any("zero_shot/top1" in record for record in _records(two))
    states = [jax.device_get(open_run(str(run), 8).read_params(make_mesh(Mesh()))) for run in (two, one)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *states)
