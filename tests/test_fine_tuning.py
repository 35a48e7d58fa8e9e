"""Fine-tuning as users start it: from a run folder and from published weights."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from flax import nnx

import vit_registers
from tests.fixtures.digits import make_config
from vit_registers.config import InitFrom
from vit_registers.errors import CheckpointError
from vit_registers.fine_tuning import start_settings
from vit_registers.models.paths import leaves_of
from vit_registers.runs.checkpoint_folder import list_steps

pytestmark = pytest.mark.usefixtures("compiled_once")

SOURCE = make_config(model={"num_registers": 4}, data={"mean": (0.25,), "std": (0.75,)})
SHORT = (
    "--config.data.loader=memory",
    "--config.data.eval_split=test",
    "--config.data.train_ops=",
    "--config.data.eval_ops=",
    "--config.data.batch_size=16",
    "--config.data.eval_batch_size=360",
    "--config.run.use_tensorboard=False",
    "--config.run.total_epochs=None",
    "--config.run.total_steps=2",
    "--config.run.eval_every_epochs=None",
    "--config.optimizer.warmup_epochs=None",
    "--config.optimizer.warmup_steps=1",
    "--config.checkpoint.every_steps=1",
)


def _card(path, *more):
    return f"--config=configs/transfer.py:path={path},image=8,data=digits,classes=10{''.join(more)}"


@pytest.mark.slow
def test_a_resumed_run_needs_the_weights_no_more(untrained, run_here, tmp_path):
    weights = tmp_path / "source.npz"
    untrained(tmp_path / "source", SOURCE)
    code, _, err = run_here("convert", f"--input={tmp_path}/source", f"--output={weights}", "--to=timm")
    assert code == 0, err
    args = (_card(weights, ",registers=6,old_registers=keep,heads=2"), *SHORT)
    run = f"--workdir={tmp_path}/tuned"
    code, out, err = run_here(
        "train", *args, run, "--config.model.use_scan=True", "--config.model.remat=block"
    )
    assert code == 0, err
    assert "in part: registers" in out
    whole = json.loads((tmp_path / "tuned" / "config.json").read_text())
    weights.unlink()
    shutil.rmtree(tmp_path / "tuned" / "checkpoints" / "2")  # stopped before the last step

    code, out, err = run_here("train", *args, run)  # how it is computed may change
    assert code == 0, err
    assert "resumes at step 1 of 2" in out
    assert list_steps(str(tmp_path / "tuned"))[0] == 2
    now = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert whole["model"].pop("use_scan") != now["model"].pop("use_scan")
    assert whole["model"].pop("remat") != now["model"].pop("remat")
    assert now == whole
    # Other settings still fail, and a new run still needs the weights.
    code, _, err = run_here("train", _card(weights, ",registers=5,old_registers=keep,heads=2"), *SHORT, run)
    assert code == 2 and "model.num_registers (6 there, 5 now)" in err, err
    code, _, err = run_here("train", *args, f"--workdir={tmp_path}/new")
    assert (code, err.count("\n")) == (2, 1), err
    assert str(weights) in err


@pytest.mark.slow
def test_what_weights_tell_is_read_from_the_run_where_they_are_gone(untrained, tmp_path):
    start = InitFrom(path=str(tmp_path / "source"))
    untrained(tmp_path / "source", SOURCE)
    untrained(tmp_path / "run", dataclasses.replace(SOURCE, init_from=start))
    untrained(tmp_path / "other", SOURCE)
    told = start_settings(start)
    assert told == (SOURCE.model, SOURCE.data)
    shutil.rmtree(tmp_path / "source")
    assert start_settings(start, run=str(tmp_path / "run")) == told
    for run in (None, "other", "nosuch"):
        with pytest.raises(CheckpointError, match="source"):
            start_settings(start, run=run and str(tmp_path / run))


def test_another_number_of_registers_is_refused_with_the_argument(untrained, run_here, tmp_path):
    untrained(tmp_path / "source", SOURCE)
    code, _, err = run_here(
        "train", _card(tmp_path / "source", ",registers=2"), *SHORT, f"--workdir={tmp_path}/tuned"
    )
    assert (code, err.count("\n")) == (2, 1), err
    assert "model.num_registers is 4 there and 2 here (set init_from.registers to keep" in err


@pytest.mark.parametrize(
    "name", ["registers", "summaries", "source", "hidden_act", "interpolation", "params"]
)
def test_unknown_choices_are_refused_without_weights_too(run_here, tmp_path, name):
    code, _, err = run_here(
        "train",
        "--config=configs/digits.py:steps=1",
        f"--workdir={tmp_path}",
        "--config.mesh.data=8",
        f"--config.init_from.{name}=../x",
    )
    assert code == 2 and err.count("\n") == 1
    assert err.startswith(f"error: init_from.{name}='../x' is unknown: known: ")


@pytest.mark.slow
def test_frozen_parameters_and_rates_are_arguments_of_the_card(untrained, run_here, tmp_path):
    """With all but the head frozen, two steps change the head alone; the head's rate is a multiple."""
    untrained(tmp_path / "source", SOURCE)
    moved = {}
    for rate in (1.0, 4.0):
        workdir = tmp_path / f"tuned{rate}"
        card = _card(tmp_path / "source", f",frozen=vit/[!h]*+vit/nosuch,head_rate={rate},layer_decay=0.5")
        code, _, err = run_here("train", card, *SHORT, f"--workdir={workdir}")
        assert (code, err.count("\n")) == (2, 1) and "optimizer.frozen='vit/nosuch'" in err, err
        code, _, err = run_here("train", card.replace("+vit/nosuch", ""), *SHORT, f"--workdir={workdir}")
        assert code == 0, err
        settings = json.loads((workdir / "config.json").read_text())["optimizer"]
        assert (settings["layer_decay"], settings["head_rate"]) == (0.5, rate)
        before, after = (
            leaves_of(nnx.to_pure_dict(nnx.state(vit_registers.load(str(path)), nnx.Param)))
            for path in (tmp_path / "source", workdir)
        )
        for leaf, value in before.items():
            if leaf[0] != "head":
                np.testing.assert_array_equal(after[leaf], value, err_msg=str(leaf))
        moved[rate] = np.abs(np.asarray(after["head", "bias"])).max()
    assert moved[1.0] > 0 and moved[4.0] == pytest.approx(4 * moved[1.0], rel=0.05)
