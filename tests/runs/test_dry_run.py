"""A dry run checks what a run checks, says what it needs, and writes nothing."""

import re

import jax
import pytest

from tests.fixtures.digits import SMALL, flags, make_config
from vit_registers.data.batch import synthetic_batches, to_device
from vit_registers.models.params import count_parameters
from vit_registers.runs import dry_run
from vit_registers.runs.prepared import prepare
from vit_registers.training.sharding import batch_sharding


@pytest.mark.slow
def test_it_says_what_the_run_needs_and_writes_nothing(run_here, tmp_path, monkeypatch):
    before = set(tmp_path.iterdir())
    arguments = flags("registers=2,steps=30", data={"data_dir": str(tmp_path)})
    code, out, err = run_here("train", *arguments, "--dry_run", f"--workdir={tmp_path}/run")
    assert code == 0 and not err
    assert set(tmp_path.iterdir()) == before
    assert "19 tokens: 1 cls, 2 registers, 16 patches" in out
    assert "1,438 images in 'train' to train on; to evaluate 359 in 'test'; 10 classes" in out
    assert "30 steps of 64 images" in out and "warm-up of 1 steps" in out
    assert re.search(r"memory     [\d.]+ \w+ for a step, on each device, of [\d.]+ GiB", out)
    assert out.splitlines()[-1] == "dry run: nothing was written"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config.model.num_classes=7",), "has 10 classes: set --config.model.num_classes=10"),
        (("--config.data.eval_split=validation",), "validation"),
        (("--config.run.total_steps=5", "--config.optimizer.warmup_steps=9"), "warmup is 9 steps of 5"),
        (("--config.init_from.path=/nonexistent",), "/nonexistent"),
        (("--config.data.loader=pil", "--config.data.train_ops="), "only evaluates"),
    ],
)
def test_what_a_run_refuses_is_refused(run_here, arguments, message):
    small = [f"--config.{name}={value}" for name, value in SMALL.items()]
    code, _, err = run_here("train", "--config=digits", *small, *arguments, "--dry_run")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and message in err


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"model": {"use_scan": True, "depth": 3, "remat": "block"}},
        {"optimizer": {"accumulation_steps": 4}},
    ],
)
def test_flops_are_those_of_the_plain_step(settings):
    plain = make_config(model={"depth": settings.get("model", {}).get("depth", 1)})
    counts = []
    for config in (plain, make_config(**settings)):
        prepared = prepare(config)
        with jax.set_mesh(prepared.mesh):
            batch = next(synthetic_batches(config.data, config.model))
            batch = to_device(batch, batch_sharding(prepared.mesh))
            counts.append(dry_run.count_flops(prepared, batch))
    assert counts[0] == counts[1]
    # A matrix product takes 2 FLOPs forward and 4 backward for each token and weight.
    model = plain.model
    tokens = 5 * plain.data.batch_size
    assert 0.5 < counts[0] / (6 * tokens * count_parameters(model)) < 2


def test_numbers_are_scaled():
    assert dry_run._scaled(1.5e12) == "1.5 T" and dry_run._scaled(12.0) == "12"
    assert dry_run._bytes(3 * 2**30) == "3 GiB" and dry_run._bytes(2**10) == "1 KiB"
