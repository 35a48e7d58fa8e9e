"""Training with self-distillation: on meshes, resumed, in files, and the settings that it refuses."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

import vit_registers
from configs import dino_digits
from vit_registers.config import InitFrom, Mesh, from_mapping
from vit_registers.data.batch import Training
from vit_registers.data.loaders import open_data
from vit_registers.errors import ConfigError
from vit_registers.objectives.catalog import make_objective
from vit_registers.runs import checkpoint_folder
from vit_registers.runtime.mesh import make_mesh
from vit_registers.train import train
from vit_registers.training import sharding
from vit_registers.training.durations import durations
from vit_registers.training.setup import set_up


def change(config, **sections):
    """The config with other settings; distillation={...} are those of the objective."""
    if "distillation" in sections:
        settings = dataclasses.replace(config.objective.self_distillation, **sections.pop("distillation"))
        sections["objective"] = {"self_distillation": settings}
    parts = {name: dataclasses.replace(getattr(config, name), **s) for name, s in sections.items()}
    return dataclasses.replace(config, **parts)


CONFIG = change(
    from_mapping(dino_digits.get_config("registers=2,steps=24").to_dict()),
    model={"width": 16, "depth": 1, "num_heads": 4},
    data={"batch_size": 16},
    distillation={
        "num_locals": 2,
        "num_prototypes": 32,
        "ibot_prototypes": 16,
        "head_hidden": 16,
        "head_bottleneck": 8,
        "ibot_bottleneck": 8,
        "mask_group": 2,
        "koleo_group": 2,
        "chunk_rows": 24,
        "temperatures": (0.04, 0.05),
        "momentum": (0.99, 1.0),
    },
    optimizer={"learning_rate": 1e-3, "patch_embed_rate": 0.2},
    checkpoint={"every_steps": 8},
    run={"eval_every_steps": 8, "log_every_steps": 1},
)
CENTRING = {"has_ibot_head": False, "targets": "centring"}
SUBSET = {"drop_path": 0.4, "drop_path_schedule": "constant", "drop_path_group": 2}
MIXED = Mesh(data=2, fsdp=2, tensor=2)


def run_steps(config, number, num_devices):
    mesh = make_mesh(config.mesh, devices=jax.devices()[:num_devices])
    objective = make_objective(config)
    loader = open_data(config, Training(objective.views, objective.host_targets))
    lengths = durations(config.run, config.optimizer, config.data, loader.num_examples("train"))
    setup = set_up(config, lengths, mesh)
    history = []
    with jax.set_mesh(mesh):
        state = setup.make_state()
        batches = loader.train_batches(0, sharding.batch_sharding(mesh))
        for _ in range(number):
            state, metrics = setup.train_step(state, next(batches))
            history.append(jax.device_get(metrics))
        return jax.device_get(state), history


def leaves(tree):
    """{path: array} without the biases of keys, whose gradient is zero but for rounding."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        if name.endswith("['qkv']['bias']"):
            leaf = np.asarray(leaf)[[0, 2]]
        found[name] = np.asarray(leaf)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sections", "meshes"),
    [
        ({}, [MIXED, Mesh(data=8)]),
        ({"distillation": CENTRING, "model": SUBSET}, [MIXED, Mesh(data=1, fsdp=8)]),
    ],
    ids=["sinkhorn, separate", "centring, shared, drop path"],
)
def test_20_steps_are_the_same_on_every_mesh(sections, meshes):
    config = change(CONFIG, **sections)
    state, history = run_steps(config, 20, 1)
    for mesh in meshes:
        other, metrics = run_steps(dataclasses.replace(config, mesh=mesh), 20, 8)
        for step, (a, b) in enumerate(zip(metrics, history, strict=True)):
            for name in b:
                np.testing.assert_allclose(
                    a[name], b[name], rtol=1e-5, atol=1e-6, err_msg=f"{mesh} {name} {step}"
                )
        ours, want = leaves((other.params, other.extra)), leaves((state.params, state.extra))
        for name, value in want.items():
            np.testing.assert_allclose(ours[name], value, atol=1e-5, err_msg=f"{mesh} {name}")


@pytest.mark.slow
def test_rates_by_parameter_of_a_student():
    """Three steps with a frozen backbone train the heads alone, of student and teacher."""
    patterns = {"frozen": ("vit/*",), "delayed": (), "layer_decay": 0.5, "head_rate": 2.0}
    config = change(CONFIG, optimizer=patterns)
    first, last = (run_steps(config, number, 1)[0] for number in (0, 3))
    for before, after in ((first.params, last.params), (first.extra["teacher"], last.extra["teacher"])):
        # Exactly for the student; an average of equal values is rounded.
        close = functools.partial(np.testing.assert_allclose, rtol=0.0 if after is last.params else 1e-6)
        jax.tree.map(close, after["vit"], before["vit"])
        for name in ("dino_head", "ibot_head"):
            assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), before[name], after[name])))


def test_prototypes_are_split_over_the_mesh():
    config = dataclasses.replace(CONFIG, mesh=Mesh(data=1, fsdp=2, tensor=4))
    mesh = make_mesh(config.mesh)
    lengths = durations(config.run, config.optimizer, config.data, 1438)
    abstract = set_up(config, lengths, mesh).abstract
    for head in (abstract.params["dino_head"], abstract.extra["teacher"]["dino_head"]):
        v_ExZ = head["last_layer"]["v"]
        assert v_ExZ.sharding.shard_shape(v_ExZ.shape) == (4, 8)


@pytest.fixture(scope="module")
def run(tmp_path_factory, compiled_once):
    """The folder of a finished run."""
    path = tmp_path_factory.mktemp("runs") / "dino"
    train(CONFIG, str(path))
    return path


def read(run, step):
    params, extra = jax.eval_shape(make_objective(CONFIG).init, jax.random.key(0))
    tree = {"params": params, "extra": extra}
    target = jax.tree.map(sharding.place, tree, sharding.parameter_shardings(tree, make_mesh(Mesh())))
    return jax.device_get(checkpoint_folder.read_state(str(run), step, target))


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "24")
    lines = [line for line in records(again) if line["step"] <= 16]
    (again / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train(CONFIG, str(again))
    jax.tree.map(np.testing.assert_array_equal, read(again, 24), read(run, 24))
    a, b = ([one for one in records(path) if "time_s" not in one] for path in (again, run))
    assert a == b


@pytest.mark.slow
def test_the_teacher_is_evaluated_and_loaded(run):
    state = read(run, 24)
    for params, want in ((None, state["extra"]["teacher"]), ("params", state["params"])):
        model = vit_registers.load(str(run), params=params)
        np.testing.assert_array_equal(model.registers[...], want["vit"]["registers"])
    found = [one for one in records(run) if "knn/top1_k20" in one]
    assert [one["step"] for one in found] == [0, 8, 16, 24]
    best = json.loads((run / "result.json").read_text())["best"]
    assert best["top1_k20"] == max(one["knn/top1_k20"] for one in found)
    logged = next(one for one in records(run) if "train/ibot" in one)
    terms = ("dino_local", "dino_global", "ibot", "koleo")
    assert logged["train/loss"] == pytest.approx(sum(logged[f"train/{name}"] for name in terms), rel=1e-5)
    assert logged["train/ibot_logged"] == pytest.approx(logged["train/ibot"] / 2)


@pytest.mark.slow
def test_a_run_starts_from_another_with_its_heads(run, tmp_path, capsys):
    """With keep_head, student and teacher start as the teacher of the other run."""
    start, short = InitFrom(path=str(run), keep_head=True), change(CONFIG, run={"total_steps": 3})
    train(dataclasses.replace(short, init_from=start), str(tmp_path / "next"))
    assert "initialised: nothing" in capsys.readouterr().out
    teacher, moved = read(run, 24)["extra"]["teacher"], read(tmp_path / "next", 3)["extra"]["teacher"]
    for old, new in zip(jax.tree.leaves(teacher), jax.tree.leaves(moved), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-4)  # three steps of at most 1e-3, times 1 - momentum
    assert (teacher["dino_head"]["last_layer"]["g"] != 1).any()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"distillation": {"local_size": 10}},
            r"local_size=10 is not a multiple of model.patch_size=4: such as 8",
        ),
        (
            {"distillation": {"koleo_group": 32}},
            r"koleo_group=32 does not divide data.batch_size=16: set it to 16",
        ),
        (
            {"distillation": {"mask_group": 3}},
            r"mask_group=3 does not divide data.batch_size=16: set it to 2",
        ),
        ({"model": {"use_mask_token": False}}, "requires a mask token: set model.use_mask_token=True"),
        ({"model": {"use_cls": False, "pooling": "gap"}}, "set model.use_cls=True"),
        (
            {"distillation": {"num_prototypes": 30}, "mesh": {"data": 1, "tensor": 4}},
            "num_prototypes=30 does not",
        ),
        ({"distillation": {"targets": "softmax"}}, "targets='softmax' is unknown"),
        ({"distillation": {"masks": "all"}}, "masks='all' is unknown"),
        ({"distillation": {"mask_ratios": (0.5, 0.1)}}, r"mask_ratios=\(0.5, 0.1\)"),
    ],
)
def test_settings_that_are_refused(sections, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_objective(change(CONFIG, **sections)).check()
    assert "\n" not in str(error.value)
