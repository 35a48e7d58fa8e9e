"""tools/bench/step.py: what is compared, what is counted, and that it runs where there is no TensorFlow."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tools.bench import models as bench_models
from tools.bench import programs as bench_programs
from tools.bench import step as bench_step
from vit_registers.config import from_mapping
from vit_registers.data.batch import synthetic_batches, to_device
from vit_registers.errors import ConfigError
from vit_registers.models.params import abstract_model
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training import sharding

ROOT = Path(__file__).parents[2]

# A stand-in for torchvision, which timm imports and which has no build beside a CPU torch.
EMPTY = """
class _Any(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Any(name, (), {})
"""
MODULES = ("__init__", "ops/__init__", "ops/misc", "transforms/__init__", "transforms/functional")
MODULES += ("datasets/__init__", "datasets/folder")

WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None
from tools.bench import step as bench_step
from vit_registers import cli
bench_step.define_flags()
cli.run(bench_step.main)
"""


@pytest.fixture
def small():
    return bench_step.chosen(from_mapping(bench_step.get_config()), bench_step.Choices(small=True))


def number_of_parameters(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_variants_differ_in_one_thing_and_masks_have_equal_tokens(small):
    choices = bench_step.Choices(registers=("0", "4"), backends=("xla", "auto"), sizes=("S", "B"))
    found = {variant.name: variant for variant in bench_step.variants(small, choices)}
    plain = ["", " variant=B", " num_registers=4", " attention=auto"]
    masked = [" summary_factor=2", " summary_factor=2 mask=fractal"]
    both = [f" attention=auto{other}" for other in masked]
    names = [f"train{other}" for other in plain + masked + both]
    assert list(found) == names + [f"forward{other}" for other in plain + masked]
    assert found["train"].config == small
    flops = [bench_programs.flops_per_image(found[f"train{other}"].config.model, "train") for other in masked]
    assert flops[0] == flops[1] > bench_programs.flops_per_image(small.model, "train")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"masks": ("fractl",)}, "model.mask='fractl' is unknown: did you mean 'fractal'"),
        ({"steps": ("backward",)}, "--steps=backward"),
        ({"sizes": ("XL",)}, "--sizes=XL"),
        ({"registers": ("four",)}, "--registers=four"),
        ({"steps": ()}, "nothing to measure"),
    ],
)
def test_flags_that_cannot_be_meant(given, message):
    with pytest.raises(ConfigError, match=message):
        bench_step.Choices(**given)


def test_goals_and_ratios_are_taken_within_rounds(small):
    def program(name, *rates):
        return bench_programs.Program(name, small, 16, call=None, flops=2e9, rates=list(rates))

    programs = [
        program("train", 100.0, 200.0, 300.0),  # the machine became faster from round to round
        program("train num_registers=4", 98.0, 196.0, 270.0),
        program("train summary_factor=2", 50.0, 100.0, 150.0),
        program("train summary_factor=2 mask=fractal", 40.0, 90.0, 150.0),
        program("train timm", 50.0, 100.0, 100.0),
    ]
    found = bench_step.goals(programs, {"float32": 1e12}, num_devices=2)
    assert found == pytest.approx({"timm": 2.0, "peak": 0.2, "mask": 0.9, "registers": 0.98})
    missing = bench_step.goals(programs[:1], {"float32": 1e12}, num_devices=1)
    assert missing == {"timm": None, "peak": pytest.approx(0.4), "mask": None, "registers": None}
    assert bench_step.goals(programs[1:], {}, num_devices=1) == dict.fromkeys(bench_step.GOALS)
    lines = bench_step.result_table(programs, {"float32": 1e12}, num_devices=1)
    assert len(lines) == 6 and "200.0" in lines[1] and "0.400" in lines[1] and " 0.980" in lines[2]


@pytest.mark.slow
def test_what_is_timed_trains(small):
    mesh = make_mesh(small.mesh, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        program = bench_programs.prepare_program(bench_programs.Variant("train", "train", small), mesh)
        metrics = [jax.device_get(program.call()) for _ in range(3)]
        assert program.rate(0.01) > 0 and program.memory.endswith("compiled")
    assert set(metrics[0]) >= {"loss", "grad_norm", "learning_rate"}  # of the run's own train step
    assert metrics[2]["learning_rate"] > metrics[0]["learning_rate"]  # one state, from step to step
    assert metrics[2]["loss"] < metrics[0]["loss"]


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 2, reason="needs 2 devices")
def test_the_flax_model_is_the_same_model_and_learns(small):
    mesh = make_mesh(small.mesh, devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        make_state, step = bench_models.linen_step(small, sharding.replicated(mesh))
        state = make_state()
        assert number_of_parameters(state.params) == number_of_parameters(abstract_model(small.model)[1])
        batch = to_device(next(synthetic_batches(small.data, small.model)), sharding.batch_sharding(mesh))
        losses = []
        for _ in range(4):
            state, loss = step(state, batch)
            losses.append(float(loss))
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("step", ["train", "forward"])
def test_timm_runs_in_its_own_process(small, tmp_path, monkeypatch, step):
    pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    if importlib.util.find_spec("torchvision") is None:
        for name in MODULES:
            path = tmp_path / "torchvision" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(EMPTY)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = bench_models.TimmProcess(small, step=step, compile_mode="off")
    try:
        own = abstract_model(small.model)[1]
        assert process.about["parameters"] == number_of_parameters(own)
        if step == "train":
            assert process.about["loss"] < np.log(small.model.num_classes)
        assert process.rate(0.01) > 0
    finally:
        process.close()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('echo noise; echo \'{"error": "ImportError: no timm"}\'', "^ImportError: no timm$"),
        ("echo one >&2; echo two >&2; exit 1", "^its process ended: two$"),
        ("exit 1", "^its process ended: no output$"),
    ],
)
def test_why_timm_cannot_run_is_one_line(small, tmp_path, monkeypatch, script, message):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(RuntimeError, match=message):
        bench_models.TimmProcess(small, step="train", compile_mode="off")


@pytest.mark.slow
def test_runs_without_tensorflow(tmp_path, quick):
    flags = ["--small", "--steps=train", "--masks=", "--backends=cudnn", "--rounds=2", "--seconds=0.01"]
    flags += ["--registers=", "--compare=", f"--json={tmp_path}/out.json", "--config.optimizer.ema_decay=0.9"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, *flags],
        cwd=ROOT,
        env=quick(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out.json").read_text())
    assert list(record["images_per_s"]) == ["train"] and len(record["images_per_s"]["train"]) == 2
    assert record["goals"]["peak"] > 0 and record["goals"]["timm"] is None
    assert "cannot run here: train attention=cudnn: ConfigError" in done.stdout
    for name in bench_step.GOALS:
        assert f"\n  {name} " in done.stdout
