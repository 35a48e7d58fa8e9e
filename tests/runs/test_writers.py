"""metrics.jsonl after a kill, TensorBoard files, and the live line."""

import io
import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vit_registers.runs.writers import MetricWriter, Progress


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


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_live_line_on_a_terminal_only(capsys):
    for out, is_shown in ((_Terminal(), True), (io.StringIO(), False)):
        progress = Progress(start_step=0, total_steps=100, batch_size=32, out=out)
        progress.update(10, 0.5)
        assert ("step 10/100  loss 0.5000" in out.getvalue()) == is_shown
        assert progress.images_per_s > 0
        progress.say("a line")
        assert capsys.readouterr().out == "a line\n"


def test_nothing_is_shown_where_quiet(capsys):
    out = _Terminal()
    progress = Progress(start_step=0, total_steps=100, batch_size=32, is_quiet=True, out=out)
    progress.update(10, 0.5)
    progress.say("a line")
    assert out.getvalue() == capsys.readouterr().out == ""
