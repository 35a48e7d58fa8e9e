"""Planted truth: a ViT whose outliers, register neuron and positions are written into its weights.

A bright patch switches on one neuron, which writes a large vector into its token: so the bright patches are
the outliers, and that neuron alone makes them. Everything else is small. It goes through the whole of the
analysis: images on the disk, the loader, the features, the experiments.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from vit_registers.analysis import opening
from vit_registers.analysis.experiments import (
    attention_bias,
    edited_models,
    frozen_features,
    norms,
    norms_by_layer,
    probe_position,
    probe_position_by_layer,
    register_neurons,
    remove_outliers,
    test_time_registers,
)
from vit_registers.analysis.features.extract import extract
from vit_registers.analysis.features.interventions import Intervention, replace_tokens
from vit_registers.analysis.features.table import depths_shown
from vit_registers.analysis.measures import neurons
from vit_registers.analysis.options import Options
from vit_registers.config import Config, Data, Model
from vit_registers.data.batch import labelled_batch
from vit_registers.data.loaders import open_data
from vit_registers.evaluation.features import CLS, MEAN, block_features
from vit_registers.models.vit import ViT

BLOCK, NEURON, NORM = 1, 7, 300.0
NUM_IMAGES, GRID, PATCH = 48, 6, 4
MODEL = Model(
    width=32,
    depth=3,
    num_heads=4,
    mlp_dim=64,
    patch_size=PATCH,
    image_size=(GRID * PATCH, GRID * PATCH),
    num_classes=2,
    pooling="cls",
    positions="learned",
)
# by hand: above the other patches and below NORM, whatever the share of outliers
OPTIONS = Options(rule="absolute:100", num_edited=40, num_examples=2)


def _planted(*, has_positions=True):
    """The model. Axis 0 of the width is brightness, axis 1 what the neuron writes, 8 to 31 the position."""
    model = ViT(MODEL, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    graph, params = nnx.split(model)
    flat = dict(nnx.to_flat_state(params))
    for path, leaf in flat.items():
        if path[-1] in ("kernel", "bias"):
            scale = 0.02 if path[-1] == "kernel" else 0.0
            flat[path] = leaf.replace(jnp.asarray(rng.normal(0, 1, leaf.shape) * scale, jnp.float32))
    model = nnx.merge(graph, nnx.from_flat_state(list(flat.items())))
    embed = np.zeros((PATCH, PATCH, 3, 32), np.float32)
    embed[..., 0] = 6.0 / (PATCH * PATCH * 3)  # the mean pixel, which is 1 in a bright patch
    model.patch_embed.kernel[...] = embed
    positions = rng.normal(size=(1, GRID * GRID, 32)) * (np.arange(32) >= 8) * has_positions
    model.pos_embed[...] = jnp.asarray(positions, jnp.float32)
    mlp = model.blocks[BLOCK].mlp
    mlp.fc1.kernel[...] = mlp.fc1.kernel[...].at[:, NEURON].set(0.0).at[0, NEURON].set(3.0)
    mlp.fc1.bias[...] = mlp.fc1.bias[...].at[NEURON].set(-6.0)
    mlp.fc2.kernel[...] = mlp.fc2.kernel[...].at[NEURON].set(0.0).at[NEURON, 1].set(NORM / 3)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Grey noise with some bright patches; every eighth image has none. (folder, is_bright_BxP)"""
    root, rng = tmp_path_factory.mktemp("planted"), np.random.default_rng(1)
    is_bright = rng.random((NUM_IMAGES, GRID, GRID)) < 0.08
    is_bright[::8] = False
    for i, bright in enumerate(is_bright):
        pixels = rng.integers(108, 148, (GRID * PATCH, GRID * PATCH, 3), dtype=np.uint8)
        pixels[np.kron(bright, np.ones((PATCH, PATCH), bool))] = 255
        path = root / "images" / str(i % 2) / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    order = np.concatenate([np.arange(0, NUM_IMAGES, 2), np.arange(1, NUM_IMAGES, 2)])  # as the folder lists
    return root, is_bright[order].reshape(NUM_IMAGES, -1)


FEATURES = ("norms_LxT", "final_norms_T", "patches_PxD", "patches_SxPxD", "image_HxWxC")


def _subject(folder, model, name, features=FEATURES):
    data = Data(
        name="images",
        data_dir=str(folder / "images"),
        eval_split="all",
        eval_ops="resize",
        eval_batch_size=16,
    )
    config = dataclasses.replace(Config(), model=MODEL, data=data)
    opened = opening.OpenedModel(
        name=name,
        path=name,
        step=None,
        sha256=name,
        model=model,
        config=config,
        loader=open_data(config),
        num_images=NUM_IMAGES,
    )
    return extract(opened, features, folder / "out", OPTIONS)


@pytest.fixture(scope="module")
def planted(folder):
    """(subject, is_bright_BxP)"""
    root, is_bright_BxP = folder
    return _subject(root, _planted(), "planted"), is_bright_BxP


def _rows(result, table=0):
    columns = result.tables[table].columns
    return [dict(zip(columns, row, strict=True)) for row in result.tables[table].rows]


@pytest.mark.parametrize("rule", ["absolute:100", "std:3", "valley"])
def test_norms_find_the_outliers_and_their_share(planted, rule):
    subject, is_bright_BxP = planted
    np.testing.assert_array_equal(subject.outliers(rule).is_outlier_BxP, is_bright_BxP)
    result = norms.EXPERIMENT.result([subject], dataclasses.replace(OPTIONS, rule=rule))
    found = next(row for row in _rows(result, 1) if row["rule"] == rule)
    assert found["patches flagged, %"] == pytest.approx(100 * is_bright_BxP.mean())
    assert found["images with any, %"] == pytest.approx(100 * is_bright_BxP.any(1).mean())


def test_norms_by_layer_show_the_block_where_they_begin(planted):
    subject, is_bright_BxP = planted
    result = norms_by_layer.EXPERIMENT.result([subject], OPTIONS)
    flagged = {row["block"]: row["absolute:100, %"] for row in _rows(result)}
    share = pytest.approx(100 * is_bright_BxP.mean())
    assert flagged == {0: 0.0, 1: 0.0, 2: share, 3: share}


@pytest.mark.slow
def test_the_register_neuron_is_found(planted):
    subject, is_bright_BxP = planted
    found = edited_models.find_neurons(subject, OPTIONS)
    assert found.last_block == BLOCK
    assert found.neuron_Ex2[0].tolist() == [BLOCK, NEURON]
    assert found.num_images == is_bright_BxP[: OPTIONS.num_edited].any(1).sum()
    on, off = found.score_LxF[BLOCK, NEURON], found.others_LxF[BLOCK, NEURON]
    assert on > 2.5
    assert off < 0.01
    result = register_neurons.EXPERIMENT.result([subject], OPTIONS)
    assert result.tables[0].rows[0][:3] == ("planted", BLOCK + 1, NEURON)
    assert f'"block": {BLOCK},\n   "neuron": {NEURON}' in result.files["neurons-planted.json"]


def test_scores_are_the_mean_activations_worked_by_hand(planted):
    """The planted neuron's activation, from the stream before its block, in numpy."""
    subject, is_bright_BxP = planted
    found = edited_models.find_neurons(subject, OPTIONS)
    model = _planted()
    image = np.asarray(subject.store.read("image_HxWxC")[: OPTIONS.num_edited], np.float32)
    out = nnx.jit(lambda model, x: model(x))(model, (image / 255 - 0.5) / 0.5)
    hidden = np.abs(np.asarray(out.taps["hidden"][BLOCK], np.float64)[:, 1:, NEURON])
    is_bright = is_bright_BxP[: OPTIONS.num_edited]
    means = [hidden[i, is_bright[i]].mean() for i in range(len(hidden)) if is_bright[i].any()]
    np.testing.assert_allclose(found.score_LxF[BLOCK, NEURON], np.mean(means), rtol=1e-4)


@pytest.mark.slow
def test_a_test_time_register_takes_the_outliers(planted):
    subject, is_bright_BxP = planted
    result = test_time_registers.EXPERIMENT.result([subject], OPTIONS)
    rows = {row["variant"]: row for row in _rows(result)}
    above, target = "patches above threshold, %", "norm of the target"
    share = 100 * is_bright_BxP[: OPTIONS.num_edited].mean()
    assert rows["unedited"][above] == pytest.approx(share)
    one = rows["1 neurons to a register"]
    assert one[above] == 0.0
    assert one["largest patch"] < 30
    assert one[target] > 200
    assert rows["as released"][above] == 0.0
    assert rows["neurons silent"][above] == 0.0
    assert rows["neurons silent"][target] is None
    for control in ("a register, nothing moved", "random neurons to a register"):
        assert rows[control][above] == pytest.approx(share)
        assert rows[control][target] < 30
    assert rows["neurons to a random patch"][above] == 0.0
    assert rows["neurons to a random patch"][target] > 200
    assert [row["neurons"] for row in _rows(result, 1)] == [1]


def test_an_attention_bias_does_what_the_register_does(planted):
    subject, _ = planted
    rows = {row["variant"]: row for row in _rows(attention_bias.EXPERIMENT.result([subject], OPTIONS))}
    assert rows["and a key and value"]["patches above threshold, %"] == 0.0
    register, biased, silent = (
        rows[name]["cosine of cls"]
        for name in ("test-time register", "and a key and value", "neurons silent")
    )
    assert abs(register - biased) <= abs(register - silent) + 1e-6


@pytest.mark.slow
def test_taking_outliers_away_before_they_are_made_takes_them_away(planted):
    """Before block 2 the patches are bright: zero is not, so that the neuron stays silent."""
    subject, is_bright_BxP = planted
    result = remove_outliers.EXPERIMENT.result([subject], OPTIONS)
    rows = _rows(result)
    assert rows[0]["taken away"] == "nothing"
    assert rows[0]["cosine of cls"] == pytest.approx(1.0)
    assert {row["before block"] for row in rows[1:]} == {1, 2, 3}
    images = np.flatnonzero(is_bright_BxP[: OPTIONS.num_edited].any(1))
    chosen = is_bright_BxP[: OPTIONS.num_edited]
    for intervention_rows, others in ((chosen, False), (neurons.random_patches(chosen, seed=0), True)):
        store = subject.rerun(
            Intervention(
                name="remove",
                edits=replace_tokens,
                values={"block": np.int32(1), "use_mean": np.bool_(False)},
                rows={"is_chosen_BxP": intervention_rows},
            ),
            ("norms_LxT", "extras_ExD", "logits_Y"),
            OPTIONS.num_edited,
        )
        largest = store.read("norms_LxT")[images, -1][:, subject.layout.patches].max(1)
        assert (largest > 100).all() == others
        assert (largest < 30).all() != others


@pytest.mark.slow
@pytest.mark.slow
def test_features_of_edited_models_have_no_outliers_and_are_those_that_tasks_read(planted):
    """In the forward passes of tasks as in those of the analysis, which have other interfaces."""
    subject, is_bright_BxP = planted
    variants = frozen_features.find_variants(subject, OPTIONS)
    assert list(variants.interventions) == [
        edited_models.UNEDITED,
        frozen_features.WITH_REGISTER,
        frozen_features.REMOVED,
    ]
    assert not variants.gaps
    image = jnp.asarray(subject.store.read("image_HxWxC")[: OPTIONS.num_edited])
    batch = labelled_batch(image, jnp.zeros(len(image), jnp.int32), jnp.ones(len(image), bool))
    for name, intervention in variants.interventions.items():
        here = frozen_features.for_images(intervention, len(image))
        store = subject.rerun(here, ("norms_LxT", "frozen_2xD"), OPTIONS.num_edited)
        layout = dataclasses.replace(subject.layout, num_registers=intervention.num_registers)
        norms = store.read("norms_LxT")[:, :, layout.patches]
        is_above = (norms[:, -1] > 100).any(1)
        np.testing.assert_array_equal(
            is_above, is_bright_BxP[: len(image)].any(1) & (name == edited_models.UNEDITED)
        )
        frozen = subject.frozen(intervention)
        read = block_features(frozen.model, frozen.data, 1, frozen.edits)(frozen.backbone, batch)
        found = np.stack([read[CLS][:, 0], read[MEAN]], axis=1)
        np.testing.assert_allclose(found, store.read("frozen_2xD"), rtol=1e-4, atol=1e-4)


def test_planted_positions_are_recovered_and_absent_ones_are_not(folder, planted):
    rows = {row["patches"]: row for row in _rows(probe_position.EXPERIMENT.result([planted[0]], OPTIONS))}
    assert rows["normal"]["top-1, %"] == 100.0
    assert rows["normal"]["distance, patches"] == 0.0
    without = _subject(folder[0], _planted(has_positions=False), "without")
    rows = {row["patches"]: row for row in _rows(probe_position.EXPERIMENT.result([without], OPTIONS))}
    chance = 100 / GRID**2
    assert rows["normal"]["top-1, %"] < 3 * chance


def test_positions_by_layer_end_where_those_of_the_last_block_are(folder, planted):
    """The table of positions is known before the first block; the last row is the other experiment's."""
    result = probe_position_by_layer.EXPERIMENT.result([planted[0]], OPTIONS)
    rows = {row["after block"]: row for row in _rows(result)}
    assert list(rows) == [0, 1, 2, 3]
    assert rows[0]["top-1, %"] == 100.0
    last = _rows(probe_position.EXPERIMENT.result([planted[0]], OPTIONS))
    right = sum(row["tokens"] * row["top-1, %"] for row in last) / sum(row["tokens"] for row in last)
    assert rows[3]["top-1, %"] == pytest.approx(right)
    without = _subject(folder[0], _planted(has_positions=False), "without")
    result = probe_position_by_layer.EXPERIMENT.result([without], OPTIONS)
    assert all(row["top-1, %"] < 3 * 100 / GRID**2 for row in _rows(result))
    assert len(result.pictures) == 1


def test_few_depths_are_shown_of_a_deep_model():
    assert depths_shown(3) == [0, 1, 2, 3]
    assert depths_shown(6) == list(range(7))
    assert depths_shown(24) == [0, 4, 8, 12, 16, 20, 24]
    assert depths_shown(40) == [0, 7, 13, 20, 27, 33, 40]


def test_random_patches_are_as_many_and_none_of_them():
    rng = np.random.default_rng(0)
    is_outlier_BxP = rng.random((50, 20)) < rng.random((50, 1))
    chosen = neurons.random_patches(is_outlier_BxP, seed=1)
    assert not (chosen & is_outlier_BxP).any()
    expected = np.minimum(is_outlier_BxP.sum(1), (~is_outlier_BxP).sum(1))
    np.testing.assert_array_equal(chosen.sum(1), expected)


def test_random_neurons_are_of_the_same_blocks_and_others():
    chosen = np.array([[0, 1], [2, 3], [2, 4], [2, 5]])
    others = neurons.random_like(chosen, 8, seed=0)
    np.testing.assert_array_equal(np.sort(others[:, 0]), [0, 2, 2, 2])
    assert not {tuple(one) for one in others} & {tuple(one) for one in chosen}
    assert len({tuple(one) for one in others}) == 4


def test_highest_neurons_are_those_up_to_the_block():
    score_LxF = np.array([[1.0, 5.0], [3.0, 3.0], [9.0, 9.0]])
    found = neurons.highest(score_LxF, 1)
    np.testing.assert_array_equal(found, [[0, 1], [1, 0], [1, 1], [0, 0]])
