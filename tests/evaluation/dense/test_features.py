"""What dense heads read: normed tokens, padding to whole patches, models without cls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_registers.config import Data, Model
from vit_registers.evaluation.dense.features import block_tokens, network_input
from vit_registers.models.vit import ViT

MODEL = {"width": 16, "depth": 3, "num_heads": 2, "patch_size": 4, "image_size": (8, 8), "channels": 1}


def build(**settings):
    return ViT(Model(**(MODEL | {"num_classes": 0} | settings)), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def image():
    return jax.random.normal(jax.random.key(1), (2, 8, 12, 1))


@pytest.mark.parametrize("is_normed", [True, False])
def test_the_tokens_are_those_of_the_model(image, is_normed):
    model = build(num_registers=2)
    found = block_tokens(model, image, blocks=(1, -1), is_normed=is_normed)
    want = model.intermediates(image, blocks=(1, 2), norm=is_normed)
    for i, tokens in enumerate(found):
        np.testing.assert_array_equal(tokens.patch_BxHxWxD, want.patches[i])
        np.testing.assert_array_equal(tokens.cls_BxD, want.prefix[i][:, 0])
    assert found[0].patch_BxHxWxD.shape == (2, 2, 3, 16)


def test_no_gradient_flows_into_the_backbone(image):
    graphdef, params = nnx.split(build(), nnx.Param)

    def total(params):
        tokens = block_tokens(nnx.merge(graphdef, params), image, blocks=(0,), is_normed=False)
        return tokens[0].patch_BxHxWxD.sum()

    assert not any(np.asarray(x).any() for x in jax.tree.leaves(jax.grad(total)(params)))


def test_models_without_cls_and_models_that_norm_later(image):
    model = build(use_cls=False, pooling="gap")
    (tokens,) = block_tokens(model, image, blocks=(-1,), is_normed=True)
    np.testing.assert_allclose(tokens.cls_BxD, tokens.patch_BxHxWxD.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    clip = build(use_norm_after_pool=True)  # the norm of cls is that of all tokens
    (tokens,) = block_tokens(clip, image, blocks=(-1,), is_normed=True)
    np.testing.assert_allclose(tokens.cls_BxD, clip(image).pooled, rtol=1e-5, atol=1e-5)


def test_padding_is_zero_after_normalisation():
    """512 px with patches of 14 px become 518, with 3 px on each side; an odd rest is right and below."""
    data = Data(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    image = jnp.full((1, 512, 512, 3), 200, jnp.uint8)
    found = np.asarray(network_input(image, jnp.array([[512, 400]]), data, patch_size=14))
    assert found.shape == (1, 518, 518, 3)
    inside = found[0, 3:515, 3:403]
    want = (200 / 255 - np.array(data.mean)) / np.array(data.std)
    np.testing.assert_allclose(inside, np.broadcast_to(want, inside.shape), rtol=1e-5)
    assert np.abs(found).sum() == pytest.approx(np.abs(inside).sum())
    odd = np.asarray(network_input(image[:, :5, :6], jnp.array([[5, 6]]), data, patch_size=4))
    assert odd.shape == (1, 8, 8, 3) and odd[0, 1:6, 1:7].all() and np.count_nonzero(odd) == 5 * 6 * 3
