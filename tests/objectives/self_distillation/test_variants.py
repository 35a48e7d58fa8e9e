"""DINO, iBOT and registers added to a trained model: the commands of docs/self_supervised.md, made tiny."""

import json
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_registers
from vit_registers import loading
from vit_registers.config import Mesh
from vit_registers.objectives.catalog import make_objective
from vit_registers.runs.checkpoints import Checkpoints
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training.state import TrainState

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_once")]
PAGE = Path(__file__).parents[3] / "docs/self_supervised.md"
DISTILLATION = {"num_prototypes": 16, "ibot_prototypes": 16, "head_hidden": 16, "head_bottleneck": 8}
DISTILLATION |= {"ibot_bottleneck": 8, "mask_group": 16, "koleo_group": 16}
TINY = {"model.width": 16, "model.depth": 1, "data.batch_size": 16, "run.log_every_steps": 1}
TINY |= {f"objective.self_distillation.{name}": value for name, value in DISTILLATION.items()}
TINY |= {"run.eval_at_start": False, "run.eval_every_steps": 4, "checkpoint.every_steps": 4}
TINY |= {"optimizer.delay_share": 0.0, "objective.self_distillation.num_locals": 1}


def commands(heading):
    """The arguments of each training command below a heading of the page."""
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    text = "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL)).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [words[2:] for words in lines if words[:2] == ["vit-registers", "train"]]


def run(run_here, arguments, folder):
    """(the run folder, what was printed, records of its steps) of a command with tiny settings."""
    given = {word.partition("=")[0] for word in arguments}
    arguments = [word.replace("runs/", f"{folder}/") for word in arguments]
    arguments = [
        re.sub(r"^(--config=dino_digits)(:registers=\d+)?.*", r"\1\2,steps=4", word).replace(
            "digits,", "digits:"
        )
        for word in arguments
    ]
    tiny = [f"--config.{name}={value}" for name, value in TINY.items() if f"--config.{name}" not in given]
    code, out, err = run_here("train", *arguments, *tiny)
    assert code == 0, err
    (path,) = (Path(word.partition("=")[2]) for word in arguments if word.startswith("--workdir="))
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return path, out, [line for line in lines if "train/loss" in line]


def heads(path, params):
    found = loading.read_heads(loading.open_run(str(path)), make_mesh(Mesh()), params=params)
    return jax.device_get(found)


@pytest.mark.parametrize(("number", "absent"), [(0, ("ibot", "koleo")), (1, ("dino_local", "koleo"))])
def test_dino_and_ibot_are_settings(run_here, tmp_path, number, absent):
    path, _, records = run(run_here, commands("DINO and iBOT")[number], tmp_path)
    assert len(records) == 4
    for record in records:
        terms = {name: record[f"train/{name}"] for name in ("dino_local", "dino_global", "ibot", "koleo")}
        assert {name for name, value in terms.items() if value == 0} == set(absent)
        assert record["train/loss"] == pytest.approx(sum(terms.values()), rel=1e-5)
    for params in ("student", "teacher"):
        assert set(found := heads(path, params)) == {"dino_head"}
        assert (found["dino_head"]["last_layer"]["g"] == 1).all()  # frozen, also for weight decay
    student, teacher = (
        heads(path, params)["dino_head"]["last_layer"]["v"] for params in ("student", "teacher")
    )
    assert 0 < np.abs(student - teacher).max() < 0.1


def test_registers_are_added_to_a_model_that_has_none(run_here, tmp_path):
    plain, tuned = commands("Registers for a model that has none")
    assert plain[0] == "--config=dino_digits:registers=0"
    config = vit_registers.recipe("dino_digits", registers=0, steps=4, **TINY)
    params, extra = jax.jit(make_objective(config).init)(jax.random.key(5))
    state = TrainState(step=jnp.ones((), jnp.int32), params=params, opt_state=None, ema=None, extra=extra)
    start = tmp_path / "plain"
    with Checkpoints(str(start), config) as written:
        written.save(state, {"top1_k20": 0.5})
    path, out, records = run(run_here, tuned, tmp_path)
    assert "initialised: registers" in out and len(records) == 4
    before, student, teacher = (
        vit_registers.load(str(one), params=params)
        for one, params in ((start, None), (path, "student"), (path, "teacher"))
    )
    assert before.registers is None and student.registers[...].shape == (1, 4, 16)
    moved = np.abs(np.asarray(student.registers[...] - teacher.registers[...])).max()
    assert moved > 1e-5  # the student's registers are trained; the teacher's follow
    kernels = [np.asarray(model.patch_embed.kernel[...]) for model in (before, teacher)]
    np.testing.assert_allclose(kernels[1], kernels[0], atol=1e-3)
    for name, head in heads(start, "teacher").items():
        np.testing.assert_allclose(
            heads(path, "teacher")[name]["last_layer"]["v"], head["last_layer"]["v"], atol=1e-2
        )
