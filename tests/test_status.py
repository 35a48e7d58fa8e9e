"""Permanent lines, the live line, and work that takes long."""

import errno
import io
import time

import pytest

from vit_registers import status


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _open_terminal(monkeypatch):
    """Standard error as a terminal. Not a fixture: pytest sets standard error again after those."""
    terminal = _Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    return terminal


def test_in_a_pipe_long_work_has_a_line_at_the_start_and_one_at_the_end(capsys):
    with status.waiting("compiling", said_after_s=0.1):
        time.sleep(0.3)
        assert capsys.readouterr().out == "compiling ...\n"
    assert capsys.readouterr().out.startswith("compiling: 0.")


def test_short_work_has_none(capsys):
    with status.waiting("compiling"):
        time.sleep(0.01)
    with status.waiting("compiling", said_after_s=0.0, is_quiet=True):
        time.sleep(0.01)
    with status.waiting("compiling", said_after_s=None):
        time.sleep(0.01)
    assert capsys.readouterr() == ("", "")


def test_work_that_fails_is_not_reported_as_done(capsys):
    with pytest.raises(ValueError), status.waiting("compiling", said_after_s=0.0):
        raise ValueError
    assert "compiling:" not in capsys.readouterr().out


def test_a_terminal_shows_the_seconds_in_place(monkeypatch, capsys):
    terminal = _open_terminal(monkeypatch)
    with status.waiting("compiling"):
        time.sleep(1.7)
        assert "\r\x1b[Kcompiling ... 1 s" in terminal.getvalue()
        assert "\n" not in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert capsys.readouterr().out.splitlines()[-1].startswith("compiling: 1.")


def test_live_lines_are_cut_to_the_terminal(monkeypatch):
    terminal = _open_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "20")
    status.show("x" * 50)
    status.clear()
    assert terminal.getvalue() == f"\r\x1b[K{'x' * 19}\r\x1b[K"
    monkeypatch.setenv("TERM", "dumb")
    assert not status.is_live()


class _Full(io.StringIO):
    tries = 0

    def write(self, text):
        self.tries += 1
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_ignored():
    full = _Full()
    status.say("a line", full)
    status.show("a line", full)
    status.clear()
    assert full.tries > 0 and full.getvalue() == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (65, "1:05"), (7205, "2:00:05")])
def test_clock(seconds, text):
    assert status.clock(seconds) == text
