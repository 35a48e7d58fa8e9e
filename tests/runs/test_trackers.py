"""Weights & Biases and MLflow in their offline modes, and trackers that fail, hang or are missing."""

import contextlib
import importlib.util
import json
import threading

import pytest

from tests.fixtures.digits import make_config
from vit_registers.config import to_dict
from vit_registers.errors import ConfigError
from vit_registers.runs import trackers
from vit_registers.runs.trackers import Background, open_trackers, tracker_names
from vit_registers.runs.writers import MetricWriter

CONFIG = make_config()


class _Tracker:
    """Keeps its records; fails for those of `bad` steps."""

    def __init__(self, bad=()):
        self.records, self.bad, self.end = [], bad, None

    def write(self, step, scalars):
        if step in self.bad:
            raise ConnectionError("no route to host\nmore")
        self.records.append((step, scalars))

    def close(self, *, is_failed):
        self.end = is_failed


def _write(run, background, steps=(1, 2, 3, 4)):
    with MetricWriter(run, start_step=0, use_tensorboard=False, trackers=[background]) as writer:
        for step in steps:
            writer.write(step, {"loss": 0.5 / step, "grad": float("nan")})
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_tracker_gets_the_finite_numbers_of_all_records(tmp_path, capsys):
    tracker = _Tracker()
    assert _write(tmp_path, Background("fake", lambda: tracker)) == [1, 2, 3, 4]
    assert tracker.records == [(step, {"loss": 0.5 / step}) for step in (1, 2, 3, 4)]
    assert tracker.end is False and capsys.readouterr().out == ""


def test_failures_in_a_row_are_one_line_and_the_run_continues(tmp_path, capsys):
    tracker = _Tracker(bad=(1, 2, 4))
    assert _write(tmp_path, Background("fake", lambda: tracker)) == [1, 2, 3, 4]
    line = (
        "fake cannot be written: ConnectionError: no route to host; the run continues, and metrics.jsonl has"
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(one.startswith(line) for one in lines)
    assert [step for step, _ in tracker.records] == [3]


def test_a_tracker_that_cannot_be_opened_is_one_line(tmp_path, capsys):
    def fail():
        raise OSError("no server")

    assert _write(tmp_path, Background("fake", fail)) == [1, 2, 3, 4]
    assert (
        capsys.readouterr().out
        == "fake cannot be written: OSError: no server; the run continues without it\n"
    )


def test_a_tracker_that_hangs_does_not_delay_the_run(tmp_path, capsys):
    is_over = threading.Event()

    def hang():
        is_over.wait(30)
        raise OSError

    assert _write(tmp_path, Background("fake", hang, close_s=0.1)) == [1, 2, 3, 4]
    assert "fake does not answer: 5 records are in metrics.jsonl only" in capsys.readouterr().out
    is_over.set()


def test_a_run_that_fails_is_failed_for_the_tracker(tmp_path):
    tracker = _Tracker()
    with (
        contextlib.suppress(ValueError),
        MetricWriter(
            tmp_path,
            start_step=0,
            use_tensorboard=False,
            trackers=[Background("fake", lambda: tracker)],
        ),
    ):
        raise ValueError
    assert tracker.end is True


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_library_is_one_line_before_training(name, run_here, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf'pip install "vit-registers\[{name}\]"'):
        tracker_names(name)
    run = ("--config=configs/digits.py", f"--workdir={tmp_path}/run", f"--config.run.writers={name}")
    code, out, err = run_here("train", *run)
    assert (code, out) == (2, "") and err.count("\n") == 1 and f"vit-registers[{name}]" in err


def test_unknown_trackers_are_named():
    with pytest.raises(ConfigError, match=r"run\.writers='wandbb' is unknown.*'wandb'"):
        tracker_names("wandbb")
    assert tracker_names("") == []


def test_wandb_without_a_key_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ConfigError, match="WANDB_MODE=offline"):
        tracker_names("wandb")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40)
    assert tracker_names("wandb") == ["wandb"]


def _requires(name):
    is_missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(is_missing, reason=f'requires pip install "vit-registers[{name}]"')


def _train_twice(run, name):
    """A run of two records, and the same run resumed after the first."""
    config = make_config(run={"writers": name})
    for start_step in (0, 1):
        opened = open_trackers(config.run.writers, to_dict(config), run)
        with MetricWriter(run, start_step=start_step, use_tensorboard=False, trackers=opened) as writer:
            for step in range(start_step + 1, start_step + 3):
                writer.write(step, {"train/loss": 1 / step, "cifar10:test[:50%]/top1": 0.5})
        yield json.loads((run / trackers.FILE).read_text())[name]


@_requires("wandb")
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_continues_its_run(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    first, again = _train_twice(tmp_path, "wandb")
    assert first == again
    folders = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(folders) >= 1 and all(name.endswith(first) for name in folders)
    assert capfd.readouterr() == ("", "")


@_requires("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_continues_its_run(tmp_path, monkeypatch, capfd):
    from mlflow import MlflowClient

    place = f"file:{tmp_path}/mlruns"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    first, again = _train_twice(tmp_path, "mlflow")
    assert first == again
    client = MlflowClient(place)
    found = client.get_run(first)
    assert found.info.status == "FINISHED" and found.data.params["model.width"] == "16"
    assert [one.step for one in client.get_metric_history(first, "train/loss")] == [1, 2, 2, 3]
    assert found.data.metrics["cifar10:test_:50__/top1"] == 0.5
    assert capfd.readouterr() == ("", "")
