"""A second objective: minimal DINO (arXiv:2104.14294) on digits.

A student matches the soft-maxed, centred outputs of its exponential average, each of two crops against the
other. The teacher and the centre are `extra`. The crops are made on the device, from the one view that the
loaders deliver.
"""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_registers
from tests.fixtures.digits import make_config
from vit_registers import evaluate
from vit_registers.config import Mesh, Optimizer
from vit_registers.data.batch import IMAGE, LABEL, Batch, View, normalize, synthetic_batches, to_device
from vit_registers.errors import ConfigError
from vit_registers.evaluation import catalog as evaluators
from vit_registers.evaluation.base import EvaluatorKind
from vit_registers.models.params import abstract_model, build_model, init_params
from vit_registers.objectives import catalog as objectives
from vit_registers.objectives.base import BACKBONE, Best
from vit_registers.runs import checkpoint_folder
from vit_registers.runtime.mesh import make_mesh
from vit_registers.train import train
from vit_registers.training import sharding
from vit_registers.training.durations import Durations
from vit_registers.training.setup import set_up

MOMENTUM, CENTRE_MOMENTUM = 0.99, 0.5
PROTOTYPES, STUDENT_TEMPERATURE, STEPS = 32, 0.1, 120

CONFIG = make_config(
    model={"width": 32, "depth": 2, "patch_size": 2, "num_classes": 0, "num_registers": 2, "pooling": "gap"},
    objective={"name": "dino"},
    optimizer={"learning_rate": 2e-3, "warmup_steps": 10},
    checkpoint={"every_steps": 40, "keep_last": 4},
    run={"total_steps": STEPS, "eval_every_steps": 40, "log_every_steps": 1},
)
# For tests of single steps, which do not have to learn.
SHALLOW = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, depth=1))


def teacher_temperature(step):
    """0.02 to 0.03 over the first 30 steps."""
    return 0.02 + 0.01 * jnp.minimum(step / 30, 1.0)


class Dino:
    """The Objective for objective.name='dino'. The head is an MLP and normalised prototypes."""

    best = Best("top1", label="1-NN top-1", is_fraction=True)
    host_targets, targets = {}, ()
    is_additive = False  # the centre is a mean over the batch

    def __init__(self, config):
        self._config = config
        self._graphdef, _ = abstract_model(config.model)
        self.views = {IMAGE: View(8, 8, config.data.train_ops, "data.train_ops")}

    def check(self):
        pass

    def init(self, key, backbone=None):
        if backbone is None:
            backbone = init_params(self._config.model, key=key)
        sizes = {"hidden": (self._config.model.width, 64), "out": (64, 16), "prototypes": (16, PROTOTYPES)}
        keys = jax.random.split(jax.random.fold_in(key, 1), len(sizes))
        head = {
            name: {"kernel": jax.random.normal(key, shape) / np.sqrt(shape[0])}
            for key, (name, shape) in zip(keys, sizes.items(), strict=True)
        }
        params = {BACKBONE: backbone, "head": head}
        teacher = jax.tree.map(jnp.copy, params)
        return params, {"teacher": teacher, "centre_K": jnp.zeros(PROTOTYPES)}

    def prepare(self, batch, key):
        """Two crops of 6 x 6 px in every image, at random places, padded to 8 x 8."""
        image = normalize(batch.views[IMAGE], mean=self._config.data.mean, std=self._config.data.std)

        def crop(key):
            start_Bx2 = jax.random.randint(key, (len(image), 2), 0, 3)
            cut = jax.vmap(lambda one, at: jax.lax.dynamic_slice(one, (at[0], at[1], 0), (6, 6, 1)))
            return jnp.pad(cut(image, start_Bx2), [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-1.0)

        first, second = (crop(one) for one in jax.random.split(key))
        return Batch(views={"first": first, "second": second}, targets={}, mask_B=batch.mask_B)

    def _logits(self, params, image, key=None):
        head = {name: layer["kernel"] for name, layer in params["head"].items()}
        x = build_model(self._graphdef, params[BACKBONE])(image, drop_key=key).pooled
        x = jax.nn.gelu(x @ head["hidden"]) @ head["out"]
        x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        return x @ (head["prototypes"] / jnp.linalg.norm(head["prototypes"], axis=0, keepdims=True))

    def loss(self, params, extra, batch, step, key):
        crops, mask_B = (batch.views["first"], batch.views["second"]), batch.mask_B
        taught = [self._logits(extra["teacher"], crop) for crop in crops]
        temperature = teacher_temperature(step)
        taught = [jax.lax.stop_gradient(logits) for logits in taught]
        targets = [jax.nn.softmax((logits - extra["centre_K"][None]) / temperature) for logits in taught]
        log_p = [jax.nn.log_softmax(self._logits(params, crop, key) / STUDENT_TEMPERATURE) for crop in crops]
        loss_B = -sum((t * p).sum(-1) for t, p in zip(targets, log_p[::-1], strict=True)) / 2
        entropy_B = -(targets[0] * jnp.log(targets[0] + 1e-9)).sum(-1)
        count = mask_B.sum()
        mean_K = jnp.where(mask_B[:, None], sum(taught) / 2, 0.0).sum(0) / jnp.maximum(count, 1)
        centre = CENTRE_MOMENTUM * extra["centre_K"] + (1 - CENTRE_MOMENTUM) * mean_K
        sums = {
            name: (jnp.where(mask_B, value, 0.0).sum(), count)
            for name, value in (("loss", loss_B), ("teacher_entropy", entropy_B))
        }
        return sums, {**extra, "centre_K": jax.lax.stop_gradient(centre)}

    def after_update(self, params, extra, step):
        move = lambda t, p: MOMENTUM * t + (1 - MOMENTUM) * p  # noqa: E731
        return {**extra, "teacher": jax.tree.map(move, extra["teacher"], params)}

    def eval_params(self, params, extra):
        return extra["teacher"]


def _nearest_neighbour(objective, model, data, splits, mesh):
    """Top-1 of the nearest training image by the cosine of pooled vectors."""
    graphdef, _ = abstract_model(model)
    (split,) = splits.values()

    @jax.jit
    def vectors(backbone, batch):
        image = normalize(batch.views[IMAGE], mean=data.mean, std=data.std)
        pooled = build_model(graphdef, backbone)(image).pooled
        return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True), batch.targets[LABEL], batch.mask_B

    def features(params, name):
        batches = split.loader.eval_batches(name, sharding.batch_sharding(mesh))
        parts = [jax.device_get(vectors(params[BACKBONE], batch)) for batch in batches]
        x, label, mask = (np.concatenate(part) for part in zip(*parts, strict=True))
        return x[mask], label[mask]

    def evaluate(params):
        (bank, labels), (query, wanted) = features(params, "train"), features(params, split.split)
        return {"top1": float((labels[(query @ bank.T).argmax(-1)] == wanted).mean())}

    return {"nearest_neighbour": evaluate}


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The objective and its evaluator are registered for the tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(objectives.OBJECTIVES, "dino", Dino)
        kind = EvaluatorKind(lambda objective, model: objective.name == "dino", _nearest_neighbour)
        patch.setitem(evaluators.EVALUATORS, "nearest_neighbour", kind)
        yield


@pytest.fixture(scope="module")
def run(registered, compiled_once, tmp_path_factory):
    """The folder of a finished run."""
    path = tmp_path_factory.mktemp("runs") / "dino"
    train(CONFIG, str(path))
    return path


def _records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _state(run, step):
    mesh = make_mesh(Mesh())
    params, extra = jax.eval_shape(Dino(CONFIG).init, jax.random.key(0))
    tree = {"params": params, "extra": extra}
    target = jax.tree.map(sharding.place, tree, sharding.parameter_shardings(tree, mesh))
    return jax.device_get(checkpoint_folder.read_state(str(run), step, target))


def _assert_equal(found, want):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(want))


@pytest.mark.slow
def test_the_loss_falls_and_the_teacher_does_not_collapse(run):
    losses = [record["train/loss"] for record in _records(run) if "train/loss" in record]
    assert len(losses) == STEPS
    # At first all outputs are equal, until the centre is known.
    assert np.mean(losses[-10:]) < np.mean(losses[16:26]) - 0.2
    assert np.mean(losses[-10:]) < np.log(PROTOTYPES)
    entropy = [record["train/teacher_entropy"] for record in _records(run) if "train/loss" in record]
    assert all(0.01 < value < np.log(PROTOTYPES) for value in entropy)


def _steps(config, number, num_devices=1):
    mesh = make_mesh(config.mesh, devices=jax.devices()[:num_devices])
    lengths = Durations(total_steps=9, warmup_steps=2, eval_every_steps=9, steps_per_epoch=9.0)
    setup = set_up(config, lengths, mesh)
    states = []
    with jax.set_mesh(mesh):
        state = setup.make_state()
        states.append(jax.device_get(state))
        batches = synthetic_batches(config.data, config.model)
        for _ in range(number):
            state, _ = setup.train_step(state, to_device(next(batches), sharding.batch_sharding(mesh)))
            states.append(jax.device_get(state))
    return state, states


@pytest.mark.slow
def test_the_teacher_is_the_average_of_the_students_and_starts_as_their_copy():
    _, states = _steps(SHALLOW, 4)
    _assert_equal(states[0].extra["teacher"], states[0].params)
    for t, state in enumerate(states):
        weights = [MOMENTUM**t, *((1 - MOMENTUM) * MOMENTUM ** (t - i) for i in range(1, t + 1))]
        want = jax.tree.map(
            lambda *students, weights=weights: sum(w * s for w, s in zip(weights, students, strict=True)),
            *(one.params for one in states[: t + 1]),
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.extra["teacher"], want)
    assert np.abs(states[1].extra["centre_K"]).max() > 0 == np.abs(states[0].extra["centre_K"]).max()


@pytest.mark.slow
def test_a_step_that_is_not_finite_leaves_extra_unchanged():
    config = dataclasses.replace(
        SHALLOW, optimizer=Optimizer(learning_rate=1e30, grad_clip_norm=None, warmup_steps=0)
    )
    _, states = _steps(config, 2)  # the rate of the first is 0
    assert int(states[2].step) == 2
    _assert_equal(states[2].extra, states[1].extra)
    _assert_equal(states[2].params, states[1].params)


@pytest.mark.slow
def test_the_teacher_is_sharded_as_the_student():
    config = dataclasses.replace(SHALLOW, mesh=Mesh(fsdp=2, tensor=2))
    state, _ = _steps(config, 1, num_devices=8)
    same = jax.tree.map(
        lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), state.params, state.extra["teacher"]
    )
    assert all(jax.tree.leaves(same))
    kernel = state.extra["teacher"]["vit"]["blocks"][0]["attn"]["qkv"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (16, 3, 1, 16)


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / str(STEPS))
    lines = [line for line in _records(again) if line["step"] <= 80]
    (again / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train(CONFIG, str(again))
    _assert_equal(_state(again, STEPS), _state(run, STEPS))
    a, b = ([one for one in _records(path) if "time_s" not in one] for path in (again, run))
    assert a == b


@pytest.mark.slow
def test_evaluate_and_load_take_the_teacher(run):
    state = _state(run, STEPS)
    teacher, student = state["extra"]["teacher"]["vit"], state["params"]["vit"]
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), teacher, student))) > 1e-4
    for params, want in ((None, teacher), ("params", student)):
        model = vit_registers.load(str(run), params=params)
        _assert_equal(nnx.to_pure_dict(nnx.state(model, nnx.Param)), want)
    logged = [one for one in _records(run) if "nearest_neighbour/top1" in one]
    assert [one["step"] for one in logged] == [40, 80, 120]
    result = evaluate.evaluate(str(run), step=None, overrides={}, params=None)
    assert result["params"] == "teacher"
    assert result["nearest_neighbour/top1"] == logged[-1]["nearest_neighbour/top1"] > 0.3
    best = json.loads((run / "result.json").read_text())["best"]
    assert best["top1"] == max(one["nearest_neighbour/top1"] for one in logged)


def test_gradient_accumulation_is_refused():
    config = dataclasses.replace(SHALLOW, optimizer=Optimizer(accumulation_steps=2))
    with pytest.raises(ConfigError, match=r"accumulation_steps=2: .*'dino' is not a sum"):
        _steps(config, 1)
