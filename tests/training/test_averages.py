"""Schedule-free training: its average is the model, from the first step to loading and conversion."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

import vit_registers
from tests.fixtures.digits import make_config
from vit_registers import convert, evaluate, fine_tuning, run_conversion
from vit_registers.checkpoint_names import CheckpointName
from vit_registers.config import InitFrom, Mesh
from vit_registers.conversion import open_input
from vit_registers.fine_tuning import first_state
from vit_registers.interop.hints import Hints
from vit_registers.models.params import abstract_model
from vit_registers.models.paths import leaves_of
from vit_registers.runs import checkpoint_folder
from vit_registers.runs.progress import Progress
from vit_registers.runtime.mesh import make_mesh
from vit_registers.train import train
from vit_registers.training import sharding
from vit_registers.training.durations import Durations
from vit_registers.training.setup import set_up

SCHEDULE_FREE = {"name": "schedule_free_adamw", "schedule": "constant"}
DIGITS = make_config(optimizer=SCHEDULE_FREE)


def _assert_equal(found, want):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(want))


@pytest.mark.slow
def test_the_average_follows_z_and_its_weights(tiny, change, run_steps):
    config = change(tiny, optimizer=SCHEDULE_FREE)
    state, _ = run_steps(config, 0)
    x, total = jax.device_get(state.params), 0.0
    for tree in (state.ema, state.opt_state[-1].z):
        _assert_equal(tree, x)
    for step in range(5):
        state, metrics = run_steps(config, 1, state=state, start_step=step)
        rate = float(metrics[0]["learning_rate"])
        total += rate**2
        share = rate**2 / total if total else 0.0
        z = jax.device_get(state.opt_state[-1].z)
        x = jax.tree.map(lambda a, b, share=share: (1 - share) * a + share * b, x, z)
        ema = jax.device_get(state.ema)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), ema, x)
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), ema, z))) > 1e-3


@pytest.fixture(scope="module")
def run(compiled_once, tmp_path_factory):
    """A run folder of a few steps on digits."""
    path = tmp_path_factory.mktemp("runs") / "schedule_free"
    train(DIGITS, str(path))
    return path


def _saved(run, name):
    """The parameters of the last checkpoint by their name in it."""
    abstract = {"vit": abstract_model(DIGITS.model)[1]}
    layout = sharding.parameter_shardings(abstract, make_mesh(Mesh()))
    target = jax.tree.map(sharding.place, abstract, layout)
    return jax.device_get(checkpoint_folder.read_state(str(run), 8, {name: target}))[name]["vit"]


def _loaded(run, **settings):
    model = vit_registers.load(str(run), **settings)
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@pytest.mark.slow
def test_the_average_is_what_is_evaluated_and_loaded(run):
    ema, trained = (_saved(run, name) for name in ("ema", "params"))
    gap = jax.tree.map(lambda a, b: np.abs(a - b).max(), ema, trained)
    assert max(jax.tree.leaves(gap)) > 1e-4
    _assert_equal(_loaded(run), ema)
    _assert_equal(_loaded(run, params="params"), trained)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert not any("test_ema/loss" in line for line in lines)
    logged = next(line for line in reversed(lines) if "test/loss" in line)
    losses = {}
    for params in (None, "ema", "params"):
        result = evaluate.evaluate(str(run), step=None, overrides={}, params=params)
        assert result["params"] == (params or "ema")
        losses[params] = result["loss"]
    assert losses[None] == losses["ema"] == logged["test/loss"] != losses["params"]


def test_the_average_is_what_is_converted_and_what_others_start_from(run, tmp_path):
    ema = _saved(run, "ema")
    source = open_input(CheckpointName(str(run)), source="auto", hints=Hints(), params=None)
    run_conversion.to_run(source, str(tmp_path / "converted"))
    for path in (run, tmp_path / "converted"):
        settings = InitFrom(path=str(path), keep_head=True)
        _assert_equal(fine_tuning.start_leaves(settings, DIGITS.model), leaves_of(ema))
    assert convert.check_written(source, str(tmp_path / "converted"), None, "float32") == len(leaves_of(ema))


@pytest.mark.slow
def test_the_average_and_the_optimizer_start_from_given_weights_too(run, change):
    config = change(DIGITS, init_from={"path": str(run), "keep_head": True}, mesh={"fsdp": 2, "tensor": 2})
    mesh = make_mesh(config.mesh)
    lengths = Durations(total_steps=9, warmup_steps=2, eval_every_steps=9, steps_per_epoch=9.0)
    setup = set_up(config, lengths, mesh)
    progress = Progress(start_step=0, total_steps=9, batch_size=64, log_every_s=30.0, is_quiet=True)
    with jax.set_mesh(mesh):
        state = first_state(config.init_from, config.model, setup, say=progress.say)
    trees = (state.params, state.ema, state.opt_state[-1].z)
    for tree in trees:
        _assert_equal(tree["vit"], _saved(run, "ema"))
    kernels = [tree["vit"]["blocks"][0]["attn"]["qkv"]["kernel"] for tree in trees]
    assert {kernel.sharding.shard_shape(kernel.shape) for kernel in kernels} == {(8, 3, 1, 8)}
    for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(setup.abstract), strict=True):
        assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)


def test_a_run_gone_on_with_ends_with_the_same_bits(run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "8")
    train(DIGITS, str(again))
    for name in ("params", "ema"):
        _assert_equal(_saved(again, name), _saved(run, name))
