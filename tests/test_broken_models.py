"""Models with finite weights and logits that are not finite: wrong, never best, null in every file."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests.fixtures.digits import flags, make_config
from vit_registers.models.params import init_params
from vit_registers.runs import checkpoint_folder
from vit_registers.runs.checkpoints import Checkpoints
from vit_registers.training.state import TrainState

ROOT = Path(__file__).parents[1]
EVERY_STEP = {"eval_every_steps": 1, "log_every_steps": 1}


def _read(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.fixture
def overflowing(tmp_path):
    """A run folder of weights that are finite and overflow in the head.

    Its epsilon is refused in training; a folder of a run that was trained with one is still read.
    """
    config = make_config(model={"patch_size": 2}, run=EVERY_STEP)  # the model of flags()
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, eps=0.0))
    params = jax.jit(lambda: init_params(config.model, key=jax.random.key(config.run.seed)))()
    params["head"]["kernel"] = jnp.full_like(params["head"]["kernel"], 3e38)
    run = tmp_path / "overflowing"
    with Checkpoints(str(run), config) as written:
        state = TrainState(step=jnp.zeros((), jnp.int32), params={"vit": params}, opt_state=None, ema=None)
        written.save(state, None, origin="the test")
    return run


def test_such_a_model_is_wrong_for_every_image(overflowing, run_here):
    code, out, err = run_here("evaluate", f"--checkpoint={overflowing}")
    assert code == 0, err
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (lines["top1"], lines["top5"], lines["non_finite"]) == ("0.0000", "0.0000", "359")
    assert lines["warning"] == "the logits of 359 of 359 images are not finite; they count as wrong"
    found = _read((overflowing / "evaluation" / "test-0.json").read_text())
    assert (found["loss"], found["top1"], found["top5"], found["non_finite"]) == (None, 0.0, 0.0, 359)


@pytest.mark.slow
def test_a_run_of_such_a_model_has_no_best(overflowing, tmp_path, run_here):
    start = (f"--config.init_from.path={overflowing}", "--config.init_from.keep_head=True")
    work = tmp_path / "run"
    args = (*flags("steps=2", run=EVERY_STEP), *start, f"--workdir={work}")
    code, out, err = run_here("train", *args)
    assert code == 0, err
    for step in (1, 2):
        line = f"step {step}  test: the logits of 359 of 359 images are not finite; they count as wrong;"
        assert f"{line} this evaluation is never the best of the run" in out.splitlines()
    result = _read((work / "result.json").read_text())
    assert result["best"] is None
    assert (result["metrics"]["test/top1"], result["metrics"]["test/loss"]) == (0.0, None)
    records = [_read(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    assert [r["train/top1"] for r in records if "train/top1" in r] == [0.0, 0.0]
    assert [r["test/non_finite"] for r in records if "test/non_finite" in r] == [359, 359]
    assert records[-1]["step"] == 2
    for step in checkpoint_folder.list_steps(str(work)):
        meta = _read((work / "checkpoints" / str(step) / "meta" / "metadata").read_text())
        assert meta["metrics"]["loss"] is None
