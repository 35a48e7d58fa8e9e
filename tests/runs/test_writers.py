"""metrics.jsonl after a kill, and TensorBoard files."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vit_registers.runs.writers import MetricWriter


def _steps(path):
    return [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_lines_after_the_step_that_a_run_goes_on_from_are_taken_out(tmp_path):
    writer = MetricWriter(tmp_path, start_step=0, use_tensorboard=False)
    for step in (10, 20, 30):
        writer.write(step, {"train/loss": 1.0 / step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "train/lo')  # what a kill leaves
    writer = MetricWriter(tmp_path, start_step=20, use_tensorboard=False)
    assert _steps(tmp_path) == [10, 20]
    writer.write(30, {"train/loss": 0.5})
    writer.close()
    assert _steps(tmp_path) == [10, 20, 30]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_tensorboard_gets_the_same_scalars(tmp_path):
    writer = MetricWriter(tmp_path, start_step=0, use_tensorboard=True)
    writer.write(5, {"train/loss": 0.25})
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert "train/loss" in str(events.Tags())
    assert _steps(tmp_path) == [5]
