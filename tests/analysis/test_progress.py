"""The line of an analysis: experiment, its number, images and remaining time."""

import time

import pytest

from vit_registers.analysis import progress as progress_lib
from vit_registers.analysis.progress import AnalysisProgress


@pytest.fixture
def clock(monkeypatch):
    """clock.now: the time, which tests set."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress_lib, "time", clock)
    return clock


def test_images_have_the_time_that_remains_at_their_rate(clock):
    progress = AnalysisProgress(3, 30.0)
    assert progress.line() is None
    progress.images("features of a", 64, 640)
    assert progress.line() == "features of a: 64 of 640 images"
    clock.now += 10
    progress.images("features of a", 128, 640)
    assert progress.line() == "features of a: 128 of 640 images  ETA 1:20"
    progress.images("features of a", 640, 640)
    assert progress.line() is None


def test_experiments_have_the_time_that_remains_for_all(clock):
    progress = AnalysisProgress(3, 30.0)
    with progress.measuring("norms"):
        clock.now += 20
        assert progress.line() == "norms (1 of 3)  0:20"
    assert progress.line() is None
    with progress.measuring("mask"):
        progress.images("a, edited model 2", 0, 0)
        clock.now += 5
        assert progress.line() == "mask (2 of 3)  0:05  a, edited model 2  ETA 0:45"


def test_an_experiment_that_fails_is_no_longer_shown(clock):
    progress = AnalysisProgress(3, 30.0)
    with pytest.raises(ValueError), progress.measuring("norms"):
        raise ValueError
    assert progress.line() is None


def test_a_log_has_a_line_only_where_there_was_none_for_a_while(capsys):
    with AnalysisProgress(2, 0.6) as progress:
        with progress.measuring("norms"):
            time.sleep(0.3)
        assert capsys.readouterr() == ("", "")
        with progress.measuring("mask"):
            time.sleep(1.3)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 2 and lines[0].startswith("mask (2 of 2)  0:0")
