"""Models of bytes: what they see, their symmetries, and their runs from start to evaluation."""

import dataclasses
import itertools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures.digits import ROOT
from vit_registers import evaluate, loading
from vit_registers.config import LanguageModelSettings, Mesh, from_mapping, override, to_dict
from vit_registers.config.cards import load_module
from vit_registers.data.batch import IMAGE, Batch, synthetic_batches, to_device
from vit_registers.errors import ConfigError
from vit_registers.evaluation.language_model import LanguageModelEvaluator, eval_passes
from vit_registers.objectives.language_model import BYTE_HEAD, WEIGHT, LanguageModel, byte_losses
from vit_registers.runs import checkpoint_folder
from vit_registers.runtime.mesh import make_mesh
from vit_registers.train import train
from vit_registers.training import sharding
from vit_registers.training.durations import Durations
from vit_registers.training.setup import set_up

LENGTH = 16
CARD = f"{ROOT}/configs/fractal_text.py"
SMALL = {
    "model.width": 32,
    "model.depth": 2,
    "model.num_heads": 2,
    "data.batch_size": 16,
    "data.eval_batch_size": 64,
    "checkpoint.every_steps": 2,
}
HIDDEN, NEXT = "predicts=hidden,mask=fractal", "predicts=next,mask=fractal_causal"
ANY_ORDER = "predicts=any_order,mask=fractal"


def _config(kind=HIDDEN, length=LENGTH, **model):
    card = from_mapping(load_module(CARD).get_config(f"length={length},steps=4,k=2,{kind}"))
    config = override(to_dict(card), SMALL)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **model))


RUN = _config(NEXT, length=128)


def _random(config, seed=0):
    """Parameters with a head, biases and norms that are not trivial."""
    params, _ = LanguageModel(config).init(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params)


@pytest.fixture(scope="module")
def sequences():
    """(image_BxHxWxC, hidden_BxP): four sequences with five hidden bytes each."""
    rng = np.random.default_rng(1)
    hidden_BxP = np.stack([rng.permutation(LENGTH) < 5 for _ in range(4)])
    return rng.integers(0, 256, (4, 1, LENGTH, 1), dtype=np.uint8), hidden_BxP


_compiled = jax.jit(byte_losses, static_argnums=(0, 1))


def _losses(config, params, image, hidden):
    return np.asarray(_compiled(config.objective.language_model, config.model, params, image, hidden)[0])


def test_all_bytes_are_equally_probable_at_the_start(sequences):
    config = _config()
    params, extra = LanguageModel(config).init(jax.random.key(0))
    np.testing.assert_allclose(_losses(config, params, *sequences), math.log(256), rtol=1e-6)
    image, hidden_BxP = sequences
    batch = Batch(views={IMAGE: image}, targets={WEIGHT: hidden_BxP}, mask_B=np.array([True] * 3 + [False]))
    sums, _ = LanguageModel(config).loss(params, extra, batch, jnp.int32(0), jax.random.key(0))
    assert int(sums["loss"][1]) == 15
    assert float(sums["bits_per_byte"][0] / sums["bits_per_byte"][1]) == pytest.approx(8.0, rel=1e-6)


@pytest.mark.parametrize("positions", ["none", "sincos1d"])
def test_no_prediction_depends_on_hidden_bytes(sequences, positions):
    config = _config(positions=positions)
    params, (image, hidden_BxP) = _random(config), sequences
    head = params[BYTE_HEAD]

    def log_p(image):  # of all 256 values in the place of each byte, from the losses of two such texts
        return _losses(config, params | {BYTE_HEAD: head}, image, hidden_BxP)

    other = np.where(hidden_BxP[:, None, :, None], (image.astype(int) + 77) % 256, image).astype(np.uint8)
    swapped = {"kernel": np.roll(head["kernel"], 77, axis=1), "bias": np.roll(head["bias"], 77)}
    before = log_p(image)
    head = swapped
    np.testing.assert_allclose(log_p(other)[hidden_BxP], before[hidden_BxP], rtol=2e-5)
    # A byte that is seen does have an effect on the predictions of hidden ones.
    head, seen = params[BYTE_HEAD], image.copy()
    seen[0, 0, np.flatnonzero(~hidden_BxP[0])[0], 0] ^= 85
    assert np.abs(log_p(seen) - before)[0][hidden_BxP[0]].max() > 1e-3


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("kind", [NEXT, "predicts=next,mask=causal"])
def test_no_byte_has_an_effect_on_predictions_of_itself_and_earlier_ones(sequences, kind, depth):
    """Over all pairs: the predictions of each byte depend on each byte before it, and on no other."""
    config = _config(kind, depth=depth, num_registers=1)
    params, (image, _) = _random(config), sequences
    text_P, diagonal = image[0].reshape(-1), np.diag_indices(LENGTH)
    changed_PxP = np.tile(text_P, (LENGTH, 1))
    changed_PxP[diagonal] += 77  # row j has another byte j

    def losses(texts_BxP, params):
        return _losses(config, params, texts_BxP.reshape(-1, 1, LENGTH, 1), np.ones(texts_BxP.shape, bool))

    before_1xP, after_PxP = losses(text_P[None], params), losses(changed_PxP, params)
    rows, columns = np.mgrid[:LENGTH, :LENGTH]
    effect_PxP = np.abs(after_PxP - before_1xP)
    np.testing.assert_allclose(effect_PxP[columns < rows], 0.0, atol=1e-5)
    assert (
        effect_PxP[columns > rows] > 1e-4
    ).mean() > 0.95  # a difference of one loss may be small by chance
    # Its own prediction: the changed byte is as probable under a head whose values are moved with it.
    rolled = params | {BYTE_HEAD: jax.tree.map(lambda x: np.roll(x, 77, axis=-1), params[BYTE_HEAD])}
    np.testing.assert_allclose(losses(changed_PxP, rolled)[diagonal], before_1xP[0], rtol=2e-5)


def _permuted(config, sequences, order):
    """(losses of the permuted sequences, permuted losses of the sequences)."""
    params, (image, hidden_BxP) = _random(config), sequences
    moved = _losses(config, params, image[:, :, order], hidden_BxP[:, order])
    return moved, _losses(config, params, image, hidden_BxP)[:, order]


def test_without_positions_and_mask_the_order_of_bytes_has_no_effect(sequences):
    order = np.random.default_rng(2).permutation(LENGTH)
    for model in ({"summary_factor": None}, {"summary_factor": 2}):
        np.testing.assert_allclose(
            *_permuted(_config(positions="none", mask="none", **model), sequences, order), rtol=2e-5
        )
    moved, still = _permuted(_config(positions="sincos1d", mask="none"), sequences, order)
    assert np.abs(moved - still).max() > 1e-2


@pytest.mark.parametrize("summaries", ["zeros", "learned"])
def test_the_fractal_mask_leaves_the_order_below_a_summary_open(sequences, summaries):
    """Summaries of zeros distinguish nothing but the tree: any two spans of a summary can be exchanged."""
    config = _config(positions="none", summaries=summaries)
    order = np.arange(LENGTH)
    pair = np.concatenate([order[:4], [5, 4], order[6:]])  # two bytes of the same finest summary
    np.testing.assert_allclose(*_permuted(config, sequences, pair), rtol=2e-5)
    halves = np.concatenate([order[8:], order[:8]])
    across = np.concatenate([order[:3], [4, 3], order[5:]])  # bytes of two summaries
    for moved_order, has_effect in ((halves, summaries == "learned"), (across, True)):
        moved, still = _permuted(config, sequences, moved_order)
        assert (np.abs(moved - still).max() > 1e-3) == has_effect


def test_the_same_number_of_bytes_is_hidden_in_each_sequence_and_all_places_are():
    objective = LanguageModel(_config())
    image = jnp.zeros((512, 1, LENGTH, 1), jnp.uint8)
    batch = Batch(views={IMAGE: image}, targets={}, mask_B=jnp.ones(512, bool))
    hidden = [np.asarray(objective.prepare(batch, jax.random.key(i)).targets[WEIGHT]) > 0 for i in range(2)]
    assert {*hidden[0].sum(axis=1)} == {2}  # 15 % of 16, rounded
    assert (hidden[0] != hidden[1]).any()
    np.testing.assert_allclose(hidden[0].mean(axis=0), 2 / 16, atol=0.06)


@pytest.mark.parametrize("kind", [NEXT, ANY_ORDER])
def test_the_probabilities_of_all_sequences_have_the_sum_of_one(kind):
    config = _config(kind, length=2)
    params, settings = _random(config), config.objective.language_model
    text_NxP = np.stack(np.mgrid[:256, :256], axis=-1).reshape(-1, 2).astype(np.uint8)
    log_p_N = np.zeros(len(text_NxP))
    for hidden_P, predicted_P in zip(*eval_passes(settings, 2), strict=True):
        hidden_NxP = np.broadcast_to(hidden_P, text_NxP.shape)
        loss_NxP = _losses(config, params, text_NxP.reshape(-1, 1, 2, 1), hidden_NxP)
        log_p_N -= loss_NxP[:, predicted_P].sum(axis=1, dtype=np.float64)
    assert np.exp(log_p_N).sum() == pytest.approx(1.0, abs=1e-5)
    assert np.ptp(log_p_N) > 0.1


def test_the_expected_loss_with_any_order_is_the_mean_over_all_orders():
    config = _config(ANY_ORDER, length=3, summary_factor=None, mask="none", positions="sincos1d")
    objective, params = LanguageModel(config), _random(config)
    image = np.random.default_rng(5).integers(0, 256, (1, 1, 3, 1), dtype=np.uint8)
    orders = list(itertools.permutations(range(3)))
    exact = 0.0
    for order in orders:
        for i, place in enumerate(order):
            hidden_1xP = np.array([[j in order[i:] for j in range(3)]])
            exact += _losses(config, params, image, hidden_1xP)[0, place] / (3 * len(orders))

    def loss(key):
        batch = Batch(views={IMAGE: jnp.asarray(image)}, targets={}, mask_B=jnp.ones(1, bool))
        sums, _ = objective.loss(params, {}, objective.prepare(batch, key), jnp.int32(0), key)
        return sums["loss"]

    loss_N, count_N = jax.vmap(loss)(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(count_N, 3.0, rtol=1e-6)
    sample = np.asarray(loss_N) / 3
    error = float(sample.std()) / math.sqrt(len(sample))
    assert float(sample.mean()) == pytest.approx(float(exact), abs=4 * error)
    assert error < 0.05 * abs(exact - math.log(256))  # a uniform model is told apart


def test_each_byte_is_hidden_once_in_an_evaluation():
    hidden_KxP, predicted_KxP = eval_passes(LanguageModelSettings(predicts="hidden", share=0.15), 100)
    assert hidden_KxP.shape == (7, 100)
    np.testing.assert_array_equal(hidden_KxP, predicted_KxP)
    np.testing.assert_array_equal(hidden_KxP.sum(axis=0), 1)
    assert {*hidden_KxP.sum(axis=1)} == {14, 15}
    assert all(one.all() for one in eval_passes(LanguageModelSettings(predicts="next"), 100))


def test_with_any_order_a_pass_predicts_the_first_byte_that_it_hides():
    hidden_KxP, predicted_KxP = eval_passes(LanguageModelSettings(predicts="any_order"), 20)
    np.testing.assert_array_equal(predicted_KxP.sum(axis=0), 1)
    np.testing.assert_array_equal(predicted_KxP.sum(axis=1), 1)
    np.testing.assert_array_equal(hidden_KxP.sum(axis=1), 20 - np.arange(20))
    np.testing.assert_array_equal(hidden_KxP[1:], hidden_KxP[:-1] & ~predicted_KxP[:-1])


@pytest.mark.parametrize("kind", [HIDDEN, NEXT, ANY_ORDER])
def test_an_evaluation_is_the_mean_over_all_bytes(sequences, kind):
    config, (image, _) = _config(kind), sequences
    settings = config.objective.language_model
    params, mesh = _random(config), make_mesh(Mesh(), devices=jax.devices()[:1])
    mask_B = np.array([True, True, True, False])

    class OneBatch:
        loader = property(lambda self: self)
        split = "validation"

        def eval_batches(self, split, layout):
            batch = Batch(views={IMAGE: image}, targets={}, mask_B=mask_B)
            return iter([to_device(batch, layout)] * 2)

    with jax.set_mesh(mesh):
        found = LanguageModelEvaluator(settings, config.model, OneBatch(), mesh)(params)
        bad = LanguageModelEvaluator(settings, config.model, OneBatch(), mesh)(
            jax.tree.map(lambda x: x * np.nan, params)
        )
    passes = zip(*eval_passes(settings, LENGTH), strict=True)
    losses = [
        _losses(config, params, image, np.tile(hidden, (4, 1)))[:3, predicted] for hidden, predicted in passes
    ]
    bits = np.concatenate([loss.ravel() for loss in losses]).mean() / math.log(2)
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert found["perplexity"] == pytest.approx(2**bits, rel=1e-4)
    assert (found["images"], found["non_finite"]) == (6, 0)
    assert (bad["non_finite"], bad["accuracy"]) == (6, 0)


def test_without_positions_a_decoder_knows_order_from_its_mask(sequences):
    config = _config("predicts=next,mask=causal", positions="none", summary_factor=None)
    params, (image, _) = _random(config), sequences
    predicted = np.ones((4, LENGTH), bool)
    moved = image.copy()
    moved[:, :, [2, 5]] = image[:, :, [5, 2]]
    before, after = (_losses(config, params, one, predicted)[:, -1] for one in (image, moved))
    assert np.abs(before - after).min() > 1e-5


def _steps(config, mesh_settings, num_devices):
    config = dataclasses.replace(config, mesh=mesh_settings)
    mesh = make_mesh(config.mesh, devices=jax.devices()[:num_devices])
    lengths = Durations(total_steps=9, warmup_steps=1, eval_every_steps=9, steps_per_epoch=9.0)
    setup = set_up(config, lengths, mesh)
    with jax.set_mesh(mesh):
        state, found = setup.make_state(), []
        batches = synthetic_batches(config.data, config.model)
        for _ in range(3):
            state, metrics = setup.train_step(state, to_device(next(batches), sharding.batch_sharding(mesh)))
            found.append(jax.device_get(metrics))
    return found


@pytest.mark.slow
def test_one_and_two_devices_make_the_same_steps():
    one = _steps(_config(), Mesh(), 1)
    for settings in (Mesh(), Mesh(fsdp=2)):
        for a, b in zip(one, _steps(_config(), settings, 2), strict=True):
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)
    assert one[0]["bits_per_byte"] == pytest.approx(8.0, rel=1e-6)
    assert one[-1]["bits_per_byte"] != pytest.approx(8.0, rel=1e-4)


@pytest.mark.slow
def test_micro_batches_have_the_gradient_of_the_batch():
    parts = dataclasses.replace(_config().optimizer, accumulation_steps=4)
    whole, several = (
        _steps(_config(), Mesh(), 1),
        _steps(dataclasses.replace(_config(), optimizer=parts), Mesh(), 1),
    )
    for a, b in zip(whole, several, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-3)


@pytest.fixture(scope="module")
def run(compiled_once, tmp_path_factory):
    """The folder of a finished run of four steps."""
    path = tmp_path_factory.mktemp("runs") / "text"
    train(RUN, str(path))
    return path


def _records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "4")
    lines = [line for line in _records(again) if line["step"] <= 2]
    (again / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train(RUN, str(again))
    mesh = make_mesh(Mesh())
    params, extra = jax.eval_shape(LanguageModel(RUN).init, jax.random.key(0))
    tree = {"params": params, "extra": extra}
    target = jax.tree.map(sharding.place, tree, sharding.parameter_shardings(tree, mesh))
    states = [checkpoint_folder.read_state(str(one), 4, target) for one in (run, again)]
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get(states))
    a, b = ([one for one in _records(path) if "time_s" not in one] for path in (again, run))
    assert a == b


@pytest.mark.slow
def test_evaluate_repeats_what_the_run_measured(run):
    logged = [one for one in _records(run) if "validation/bits_per_byte" in one]
    assert logged[-1]["step"] == 4
    result = evaluate.evaluate(str(run), step=None, overrides={}, params=None)
    bits = result["bits_per_byte"]
    assert bits == pytest.approx(logged[-1]["validation/bits_per_byte"], rel=1e-5)
    assert 4.0 < bits < 8.0
    best = json.loads((run / "result.json").read_text())["best"]
    assert best["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert all("SHA-256" in name for name in loading.open_run(str(run)).class_names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("analyze", ["norms", "--checkpoint={run}"]),
        ("convert", ["--input={run}", "--output={out}", "--to=timm"]),
        ("convert", ["--input={run}", "--output={out}", "--to=stablehlo"]),
        ("evaluate", ["--checkpoint={run}", "--task=knn"]),
    ],
)
def test_commands_for_images_refuse_a_run_of_text(run, run_here, tmp_path, program, flags):
    code, out, err = run_here(program, *(flag.format(run=run, out=tmp_path / "out") for flag in flags))
    assert code == 2
    assert "is a model of bytes (model.pixels='byte'), and" in err
    assert "Traceback" not in out + err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("model", "share", "message"),
    [
        ({"pixels": "brightness"}, 0.15, "requires model.pixels='byte', not 'brightness'"),
        ({"use_mask_token": False}, 0.15, "requires model.use_mask_token=True and model.num_classes=0"),
        ({"num_classes": 3}, 0.15, "requires model.use_mask_token=True and model.num_classes=0"),
        ({"image_size": (1, 8)}, 0.15, r"data.image_size=\(1, 16\): must be model.image_size=\(1, 8\)"),
        ({}, 0.01, "share=0.01: hides 0 of the 16 bytes"),
        ({}, 0.99, "share=0.99: hides 16 of the 16 bytes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(model, share, message):
    config = _config(**model)
    settings = dataclasses.replace(config.objective.language_model, share=share)
    objective = dataclasses.replace(config.objective, language_model=settings)
    with pytest.raises(ConfigError, match=message):
        LanguageModel(dataclasses.replace(config, objective=objective)).check()


@pytest.mark.parametrize("mask", ["none", "fractal", "window(radius=1)"])
def test_a_decoder_refuses_masks_in_which_bytes_see_later_ones(mask):
    config = _config("predicts=next", mask=mask)
    with pytest.raises(ConfigError, match=r"predicts='next' with model.mask=.*set model.mask to causal or"):
        LanguageModel(config).check()
