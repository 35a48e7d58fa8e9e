"""The loop: steps that are not finite, a hung step, a trace of some steps."""

import math
import threading
import types

import jax
import numpy as np
import pytest

from vit_registers.data.batch import synthetic_batches
from vit_registers.errors import ConfigError, TrainingError
from vit_registers.runs.loop import Loop
from vit_registers.runs.progress import Progress
from vit_registers.runtime import watchdog as watchdog_lib
from vit_registers.runtime.mesh import make_mesh
from vit_registers.runtime.profiling import Profile, parse_steps
from vit_registers.runtime.stopping import Agreement
from vit_registers.runtime.watchdog import Watchdog
from vit_registers.training.durations import Durations
from vit_registers.training.setup import set_up


def _assert_equal(found, want):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), want)


@pytest.mark.slow
def test_a_step_with_nan_in_its_batch_changes_nothing_but_the_step(tiny, change):
    config = change(tiny, model={"depth": 1}, optimizer={"ema_decay": 0.5})
    lengths = Durations(total_steps=40, warmup_steps=2, eval_every_steps=40, steps_per_epoch=10.0)
    mesh = make_mesh(config.mesh, devices=jax.devices()[:1])
    setup = set_up(config, lengths, mesh)
    batches = synthetic_batches(config.data, config.model)
    good = [next(batches) for _ in range(2)]
    good = [batch._replace(views={"image": batch.views["image"].astype(np.float32)}) for batch in good]
    bad = good[0]._replace(views={"image": good[0].views["image"].copy()})
    bad.views["image"][3, 2, 1, 0] = math.nan
    with jax.set_mesh(mesh):
        first = setup.make_state()
        state, _ = setup.train_step(first, good[0])
        before = jax.device_get(state)
        state, metrics = setup.train_step(state, bad)
        after = jax.device_get(state)
        state, later = setup.train_step(state, good[1])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((first.params, first.opt_state, first.ema)))
    assert math.isnan(metrics["loss"]) and math.isnan(metrics["grad_norm"])
    assert (before.step, after.step, state.step) == (1, 2, 3)
    _assert_equal((after.params, after.opt_state, after.ema), (before.params, before.opt_state, before.ema))
    # The schedule goes by updates: the next one has the rate that the skipped one would have had.
    assert later["learning_rate"] == metrics["learning_rate"]
    assert np.isfinite(later["loss"])
    kernels = [jax.device_get(one.params["vit"]["head"]["kernel"]) for one in (state, after)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0


# --- the loop around a step that is told what to return ------------------------------------------


class _Saver:
    """Stands in for Checkpoints."""

    def __init__(self, skipped=(0, 0)):
        self.skipped, self.last_saved_step, self.saved = skipped, None, []

    def save(self, state, metrics, *, skipped):
        self.saved.append((state.step, metrics, skipped))
        self.last_saved_step = state.step

    def save_surely(self, state, metrics, *, skipped):
        if self.last_saved_step != state.step:
            self.save(state, metrics, skipped=skipped)

    def wait(self):
        pass


class _Writer:
    def __init__(self):
        self.lines = []

    def write(self, step, scalars):
        self.lines.append((step, dict(scalars)))

    def before_save(self):
        pass


@pytest.fixture
def run(tiny, change, tmp_path):
    """run(bad steps, total=, max_skipped_steps=) -> (the state, saver, lines) of a loop over steps of which
    those are not finite."""

    def run(bad, *, total=12, skipped=(0, 0), **settings):
        config = change(
            tiny, run={"log_every_steps": 3, **settings}, checkpoint={"every_steps": 2}, mesh={"data": 8}
        )
        saver, writer, mesh = _Saver(skipped), _Writer(), make_mesh(config.mesh)
        self = run

        def step(state, batch):
            at = state.step + 1
            value = math.nan if at in bad else 1.0 / at
            return types.SimpleNamespace(step=at), {"loss": np.float32(value), "grad_norm": np.float32(1.0)}

        loop = Loop(
            settings=config.run,
            checkpoint=config.checkpoint,
            durations=Durations(
                total_steps=total, warmup_steps=0, eval_every_steps=total, steps_per_epoch=1.0
            ),
            train_step=step,
            evaluators={"test": lambda state: {"top1": 0.5}},
            checkpoints=saver,
            writer=writer,
            progress=Progress(start_step=0, total_steps=total, batch_size=1, log_every_s=30.0),
            agreement=Agreement(mesh, 1),
            watchdog=Watchdog(0.0, lambda line: None),
            profile=Profile(tmp_path / "profile", None),
        )
        self.saver, self.lines = saver, writer.lines
        return loop.run(types.SimpleNamespace(step=0), iter(range(total + 1)))

    return run


def test_skipped_steps_are_counted_and_a_save_after_one_is_put_off(run, capsys):
    assert run({4, 5, 9}).step == 12
    said = [line.split("  ")[:2] for line in capsys.readouterr().out.splitlines() if "nothing" in line]
    why = "changed nothing: a loss, gradient or update was not finite; in all"
    assert said == [["step 6/12", f"2 steps {why} 2"], ["step 9/12", f"1 steps {why} 3"]]
    counts = {step: line["train/skipped_steps"] for step, line in run.lines if "train/loss" in line}
    assert counts == {3: 0, 6: 2, 9: 3, 12: 3}
    assert [(step, skipped) for step, _, skipped in run.saver.saved] == [
        (2, (0, 0)),
        (6, (2, 0)),
        (8, (2, 0)),
        (10, (3, 0)),
        (12, (3, 0)),
    ]
    assert run.saver.saved[-1][1] == {"top1": 0.5}


def test_a_save_put_off_comes_with_the_next_finite_step(run):
    run({4}, skipped=(7, 0))
    assert [step for step, _, _ in run.saver.saved] == [2, 5, 6, 8, 10, 12]
    assert run.saver.saved[1][2] == (8, 0)


def test_more_in_a_row_than_the_limit_stop_the_run_and_are_named(run):
    message = (
        r"step 7: loss is nan.*4 consecutive steps.*last good checkpoint is that of step 2;.*learning_rate"
    )
    with pytest.raises(TrainingError, match=message):
        run({4, 5, 6, 7, 8}, max_skipped_steps=3)
    assert run({3, 4, 5, 7, 8, 9}, max_skipped_steps=3).step == 12
    with pytest.raises(TrainingError, match="step 4"):
        run({4}, max_skipped_steps=0)
    # The count goes over restarts.
    with pytest.raises(TrainingError, match=r"step 2: .*4 consecutive steps"):
        run({1, 2}, max_skipped_steps=3, skipped=(2, 2))
    with pytest.raises(ConfigError, match="max_skipped_steps=-1"):
        run(set(), max_skipped_steps=-1)


# --- a step that does not come back --------------------------------------------------------------


class _Result:
    def __init__(self, is_done):
        self.is_done = is_done

    def is_ready(self):
        return self.is_done


@pytest.fixture
def watch(monkeypatch):
    """watch(limit) -> (watchdog, the lines that it ended the process with, an event set by them)."""
    monkeypatch.setattr(watchdog_lib, "SLOW_FACTOR", 4)

    def watch(limit_s):
        lines, ended = [], threading.Event()

        def end(line):
            lines.append(line)
            ended.set()

        return Watchdog(limit_s, end), lines, ended

    return watch


def test_a_step_that_does_not_come_back_ends_the_process_and_says_where_it_was(watch):
    watchdog, lines, ended = watch(0.3)
    with watchdog:
        for step in (1, 2, 3):
            watchdog.started(step, _Result(step < 3))
        assert ended.wait(10)
    assert "no step has finished for 0 s (the last was step 2; run.hang_timeout_s=0.3)" in lines[0]
    assert "at training" in lines[0]


@pytest.mark.slow
def test_the_first_step_and_evaluations_have_more_time_but_not_for_ever(watch):
    watchdog, lines, ended = watch(0.4)
    with watchdog:
        assert not ended.wait(0.8)
        watchdog.started(1, _Result(True))
        with watchdog.slow("an evaluation"):
            assert not ended.wait(0.8)
            assert ended.wait(10)
    assert "the last was step 1" in lines[0] and "at an evaluation" in lines[0]


def test_one_process_has_no_limit_unless_it_is_set(watch):
    for limit in (None, 0.0):
        watchdog, lines, _ = watch(limit)
        with watchdog:
            watchdog.started(1, _Result(False))
            assert not watchdog._under_way
        assert not lines
    with pytest.raises(ConfigError, match="hang_timeout_s=-1"):
        watch(-1.0)


# --- traces --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["10", "0:3", "5:4", "a:b", "-1:2", "1:2:3"])
def test_steps_to_trace_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError, match="must be 'first:last'"):
        parse_steps(text, 20)


def test_steps_beyond_the_run_are_refused_with_its_length():
    assert parse_steps("8:20", 20) == (8, 20)
    for text in ("10:21", "30:40"):
        with pytest.raises(ConfigError, match=f"run.profile_steps='{text}': the run has 20 steps"):
            parse_steps(text, 20)


def test_exactly_the_steps_asked_for_are_traced(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop",)))

    def steps(first, last, traced):
        calls.clear()
        with Profile(tmp_path, parse_steps(traced, 20)) as profile:
            for step in range(first, last + 1):
                profile.before(step)
                calls.append(step)
                profile.after(step, np.float32(0))
        return list(calls)

    assert steps(1, 4, "2:3") == [1, ("start", str(tmp_path)), 2, 3, ("stop",), 4]
    assert steps(1, 2, "2:9") == [1, ("start", str(tmp_path)), 2, ("stop",)]  # the run was stopped
    assert steps(3, 4, "2:3") == [3, 4]  # and went on
    assert steps(1, 2, None) == [1, 2]


def test_a_trace_is_written(tmp_path):
    with Profile(tmp_path / "profile", (1, 1)) as profile:
        profile.before(1)
        result = jax.jit(lambda x: x * 2)(np.float32(1))
        profile.after(1, result)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
