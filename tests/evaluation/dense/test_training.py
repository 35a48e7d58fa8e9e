"""The loop of dense heads: devices, cached features, kills, damaged files, numbers that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_registers.config import Mesh
from vit_registers.errors import ConfigError, TrainingError
from vit_registers.evaluation.dense import training
from vit_registers.evaluation.dense.examples import DenseExample, Examples, in_threads
from vit_registers.evaluation.dense.saved import SavedHead
from vit_registers.evaluation.dense.training import HeadTrainer, Recipe
from vit_registers.runtime.mesh import make_mesh

NUMBER, BATCH, STEPS = 21, 8, 12
BACKBONE = np.random.default_rng(5).standard_normal((3, 4)).astype(np.float32)


def features(backbone, image_BxHxWxC, size_Bx2):
    return image_BxHxWxC.astype(jnp.float32) / 255 @ backbone


def loss(head, statistics, feature, label, key, step):
    """A regression with a little noise, on features that a running mean centres."""
    mean = feature.mean(axis=(0, 1, 2))
    noise = 0.01 * jax.random.normal(key, label.shape)
    predicted = (feature - mean[None, None, None]) @ head["kernel"] + head["bias"][None, None]
    return jnp.square(predicted + noise - label).mean(), 0.9 * statistics + 0.1 * mean


def recipe(num_steps=STEPS, rate=0.05, **settings):
    def init(key):
        return {"kernel": 0.1 * jax.random.normal(key, (4,)), "bias": jnp.zeros(1)}, jnp.zeros(4)

    return Recipe(
        **(
            {
                "init": init,
                "loss": loss,
                "optimizer": optax.adamw(rate),
                "num_steps": num_steps,
                "batch_size": BATCH,
                "seed": 3,
            }
            | settings
        )
    )


def make(record, rng, *, is_random=True):
    image = np.random.default_rng(record).integers(0, 256, (2, 3, 3), np.uint8)
    if is_random and rng.random() < 0.5:
        image = image[::-1]
    return DenseExample(image, image[..., 0].astype(np.float32) / 255, (2, 3))


RANDOM = Examples(NUMBER, make, True)


def train(examples=RANDOM, *, devices=1, saved=None, said=None, features=features, **settings):
    mesh = make_mesh(Mesh(), devices=jax.devices()[:devices])
    trainer = HeadTrainer(recipe(**settings), features, mesh, setting="tasks.segmentation")
    say = (lambda line: None) if said is None else said.append
    return trainer.train(BACKBONE, examples, what="a head", saved=saved, say=say)


def assert_same(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **({"rtol": 0, "atol": 0} | tolerance))


def test_the_head_learns_and_does_not_depend_on_the_devices():
    one, all_devices = train(num_steps=100), train(num_steps=100, devices=8)
    assert_same(one, all_devices, atol=1e-5)
    assert float(jnp.abs(one[0]["kernel"]).max()) > 0.2  # 0.1 N(0, 1) before


def test_cached_features_give_the_same_head(monkeypatch):
    fixed = Examples(NUMBER, lambda record, rng: make(record, rng, is_random=False), False)
    cached = train(fixed, devices=4)
    monkeypatch.setattr(training, "_MAX_CACHED_BYTES", 0)
    assert_same(cached, train(fixed, devices=4), atol=1e-5)


@pytest.mark.parametrize("is_random", [True, False])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, monkeypatch, is_random):
    monkeypatch.setattr(training, "_SAVE_EVERY_S", 0)
    examples = Examples(NUMBER, lambda i, rng: make(i, rng, is_random=is_random), is_random)
    straight = train(examples)
    saved, write, said = SavedHead(tmp_path / "head.npz", "settings"), training.write_head, []

    def killed(saved, state):
        write(saved, state)
        if int(state.step) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "write_head", killed)
    with pytest.raises(KeyboardInterrupt):
        train(examples, saved=saved)
    monkeypatch.setattr(training, "write_head", write)
    assert_same(straight, train(examples, saved=saved, said=said))
    assert said[0] == "a head: continues at step 5" and said[1].startswith("a head: 6 of 12 steps  ETA 0:0")
    said.clear()
    assert_same(straight, train(examples, saved=saved, said=said))  # complete: nothing is trained
    assert not said


@pytest.mark.parametrize("damage", ["cut", "other", "shape"])
def test_a_file_of_something_else_is_not_resumed(tmp_path, damage):
    saved = SavedHead(tmp_path / "head.npz", "settings")
    train(saved=saved, num_steps=2)
    if damage == "cut":
        saved.path.write_bytes(saved.path.read_bytes()[:-200])
    if damage == "other":
        saved = saved._replace(identity="other settings")
    if damage == "shape":
        np.savez(saved.path, np.array("settings"), np.zeros(3))
    said = []
    assert_same(train(), train(saved=saved, said=said))
    assert "damaged or has a head of other settings" in said[0]


def test_numbers_that_are_not_finite_end_in_one_line(tmp_path):
    saved = SavedHead(tmp_path / "head.npz", "settings")
    with pytest.raises(
        TrainingError, match=r"loss .* not finite from step .* tasks.segmentation.learning_rate"
    ):
        train(rate=1e38, saved=saved)
    assert not saved.path.exists()
    with pytest.raises(TrainingError, match="features are not finite from step 0"):
        train(features=lambda *a: features(*a) * jnp.nan)


def test_the_batch_must_divide():
    with pytest.raises(
        ConfigError, match=r"tasks\.segmentation\.batch_size=8 does not divide over 3 devices"
    ):
        train(devices=3)


def test_errors_of_examples_are_raised_and_leave_no_thread():
    def broken(record, rng):
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        train(Examples(NUMBER, broken, True))
    batches = in_threads(lambda n: [(int, n)], range(100), list)
    assert [next(batches), next(batches)] == [[0], [1]]
    batches.close()
