"""Shuffled patches: the orders, the edit against shuffled pixels, and models that do or do not see places."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.fixtures.patches import shuffle_pixels
from vit_registers.analysis import opening
from vit_registers.analysis.experiments import shuffled_patches
from vit_registers.analysis.experiments.shuffled_patches import (
    EVERYWHERE,
    QUARTERS,
    WITHIN,
    shuffled_orders,
    shuffles,
)
from vit_registers.analysis.features.extract import extract
from vit_registers.analysis.options import Options
from vit_registers.config import Config, Data, Model
from vit_registers.data.loaders import open_data
from vit_registers.models.vit import ViT

OPTIONS = Options(num_edited=20)


@pytest.mark.parametrize("grid", [(4, 6), (14, 14)])
def test_orders_move_what_they_say(grid):
    rows, columns = grid
    quarter_P = (2 * (np.arange(rows) >= rows // 2)[:, None] + (np.arange(columns) >= columns // 2)).ravel()
    usual_P = np.arange(rows * columns)
    inside_P = (np.arange(rows) % (rows // 2))[:, None] * columns + np.arange(columns) % (columns // 2)
    for how in (WITHIN, QUARTERS, EVERYWHERE):
        order_BxP = shuffled_orders(grid, how, 50)
        np.testing.assert_array_equal(np.sort(order_BxP, axis=1), np.tile(usual_P, (50, 1)))
        assert (order_BxP != usual_P).any(axis=1).all()
        assert len(np.unique(order_BxP, axis=0)) > 10
        stays = (quarter_P[order_BxP] == quarter_P).all()
        assert stays == (how == WITHIN)
        if how == QUARTERS:
            np.testing.assert_array_equal(inside_P.ravel()[order_BxP], np.tile(inside_P.ravel(), (50, 1)))
        np.testing.assert_array_equal(order_BxP, shuffled_orders(grid, how, 50))


def test_patches_go_to_every_place_equally_often():
    order_BxP = shuffled_orders((4, 4), EVERYWHERE, 20_000)
    counts = np.stack([np.bincount(order_BxP[:, place], minlength=16) for place in range(16)])
    # 6 standard deviations of a binomial count
    assert np.abs(counts - 20_000 / 16).max() < 6 * np.sqrt(20_000 * 15 / 256)


@pytest.mark.parametrize("grid", [(1, 5), (2, 2), (4, 7)])
def test_grids_without_quarters_are_shuffled_everywhere(grid):
    assert shuffles(grid) == (EVERYWHERE,)


def test_two_patches_always_change_places():
    np.testing.assert_array_equal(shuffled_orders((1, 2), EVERYWHERE, 20), [[1, 0]] * 20)


def _random_model(**settings):
    """All parameters are random, so that the head does not give zeros."""
    model = ViT(
        Model(
            width=32,
            depth=2,
            num_heads=4,
            mlp_dim=64,
            patch_size=4,
            image_size=(16, 16),
            num_classes=2,
            **settings,
        ),
        rngs=nnx.Rngs(0),
    )
    graph, params = nnx.split(model)
    rng = np.random.default_rng(0)
    return nnx.merge(
        graph, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), params)
    )


def _choices(model, image_BxHxWxC):
    pixels = jnp.asarray((image_BxHxWxC / 255 - 0.5) / 0.5, jnp.float32)
    return np.asarray(nnx.jit(lambda model, x: model(x).logits)(model, pixels)).argmax(1)


@pytest.fixture
def measured(tmp_path):
    """measured(settings) -> (result of the experiment, the model, its images, their labels)"""

    def measured(**settings):
        model = _random_model(**settings)
        side, rng = model.model.image_size[0], np.random.default_rng(1)
        for i in range(24):
            path = tmp_path / "images" / str(i // 12) / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
        data = Data(
            name="images",
            data_dir=str(tmp_path / "images"),
            eval_split="all",
            eval_ops="resize",
            eval_batch_size=8,
        )
        config = dataclasses.replace(Config(), model=model.model, data=data)
        opened = opening.OpenedModel(
            name="model",
            path="model",
            step=None,
            sha256="model",
            model=model,
            config=config,
            loader=open_data(config),
            num_images=24,
        )
        subject = extract(opened, ("norms_LxT", "image_HxWxC"), tmp_path / "out", OPTIONS)
        result = shuffled_patches.EXPERIMENT.run([subject], OPTIONS)
        stored = subject.store.read("image_HxWxC")[:20], subject.store.read("label")[:20]
        return result, model, *stored

    return measured


def test_the_accuracy_is_that_on_shuffled_images(measured):
    result, model, image_BxHxWxC, label_B = measured(positions="learned")
    (table,) = result.tables
    grid, rows = model.layout.patch_grid, table.rows
    assert [row[1] for row in rows] == ["unedited", *shuffles(grid)]
    first_B = None
    for _, how, count, top1, error, same in rows:
        pixels = image_BxHxWxC
        if how != "unedited":
            pixels = shuffle_pixels(pixels, shuffled_orders(grid, how, 20), model.model.patch_size)
        choice_B = _choices(model, pixels)
        first_B = choice_B if first_B is None else first_B
        share = (choice_B == label_B).mean()
        assert (count, top1, same) == pytest.approx((20, 100 * share, 100 * (choice_B == first_B).mean()))
        assert error == pytest.approx(100 * np.sqrt(share * (1 - share) / 20))
    assert len(result.pictures) == 1


def test_a_model_without_places_keeps_every_choice(measured):
    result, *_ = measured(positions="none")
    (table,) = result.tables
    assert [row[-1] for row in table.rows] == [100.0] * len(table.rows)
    assert len({row[3] for row in table.rows}) == 1
