"""The live line on a terminal, the lines in a log, and the rates."""

import io

import pytest

from vit_registers import status
from vit_registers.runs import progress as progress_lib
from vit_registers.runs.progress import Progress


class _Terminal(io.StringIO):
    def isatty(self):
        return True


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


def _progress(**changed):
    return Progress(**{"start_step": 0, "total_steps": 100, "batch_size": 32, "log_every_s": 30.0} | changed)


def test_live_line_on_a_terminal_only(capsys, clock):
    for out, is_shown in ((_Terminal(), True), (io.StringIO(), False)):
        progress = _progress(out=out)
        clock.now += 2.0
        progress.update(20)
        progress.show(20, 0.5)
        assert ("step 20/100  loss 0.5000  320 images/s  ETA 0:08" in out.getvalue()) == is_shown
        assert progress.images_per_s == 320
        progress.say("a line")
        assert capsys.readouterr().out == "a line\n"


def test_a_live_line_is_removed_before_a_line(capsys, clock):
    out = _Terminal()
    progress = _progress(out=out)
    clock.now += 1.0
    progress.show(10, 0.5)
    progress.say("a line")
    assert out.getvalue().endswith("\r\x1b[K")
    progress.show(11, 0.5)  # not due
    assert out.getvalue().endswith("\r\x1b[K")
    clock.now += status.REFRESH_S
    progress.show(12, 0.5)
    assert "step 12/100" in out.getvalue()
    status.clear()


def test_a_log_has_a_line_every_log_every_s(capsys, clock):
    progress = _progress(total_steps=1000)
    clock.now += 8.0  # compilation
    progress.compiled(0)
    for step in range(1, 101):
        clock.now += 1.0
        if progress.is_due():
            progress.show(step, 1 / step)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["30/1000", "60/1000", "90/1000"]
    assert lines[1] == f"step 60/1000  loss {1 / 60:.4f}  32 images/s  ETA 15:40"


def test_evaluations_count_in_the_remaining_time_and_not_in_the_rate(capsys, clock):
    progress = _progress(log_every_s=10.0)
    progress.compiled(0)
    clock.now += 10.0
    progress.update(10)
    progress.show(10, 0.5)
    clock.now += 20.0  # an evaluation
    progress.restart(10)
    clock.now += 10.0
    progress.update(20)
    progress.show(20, 0.5)
    assert progress.images_per_s == 32.0
    assert progress.time_s == 40.0
    assert capsys.readouterr().out.splitlines()[1].endswith("32 images/s  ETA 2:40")


def test_nothing_is_shown_where_quiet(capsys, clock):
    out = _Terminal()
    progress = _progress(is_quiet=True, out=out)
    clock.now += 100.0
    assert not progress.is_due()
    progress.show(10, 0.5)
    progress.say("a line")
    assert out.getvalue() == capsys.readouterr().out == ""
