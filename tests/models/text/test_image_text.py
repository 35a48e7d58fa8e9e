"""Both towers as one model: its parameters, its logits, and the same values over 8 devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_registers.config import Mesh, Model, Text
from vit_registers.errors import ConfigError
from vit_registers.models.norm import unit
from vit_registers.models.text.image_text import ImageTextModel, build_image_text
from vit_registers.models.text.tower import TextTower
from vit_registers.models.vit import ViT
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training.sharding import parameter_shardings

IMAGE = Model(
    width=32,
    depth=2,
    num_heads=4,
    mlp_dim=64,
    patch_size=8,
    image_size=(16, 16),
    num_classes=0,
    num_registers=2,
    use_norm_pre=True,
    init="open_clip",
)
TEXT = Text(width=16, depth=2, num_heads=2, mlp_dim=32, vocab_size=40, context=6, embed_dim=24)


def make(model=IMAGE, text=TEXT, **settings):
    rngs = nnx.Rngs(0)
    settings = {"has_image_proj": True} | settings
    return ImageTextModel(ViT(model, rngs=rngs), TextTower(text, rngs=rngs), **settings, rngs=rngs)


def batch(size=8):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(size, 16, 16, 3)).astype(np.float32)
    return images, rng.integers(0, 40, (size, 6)).astype(np.int32)


def test_parameters_have_the_names_of_a_run_and_build_the_model_again():
    model = make(has_logit_bias=True)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert set(params) == {"vit", "text", "image_proj", "logit_scale", "logit_bias"}
    assert params["image_proj"]["kernel"].shape == (32, 24) and params["logit_scale"].shape == ()
    again = build_image_text(lambda rngs: ViT(IMAGE, rngs=rngs), TEXT, params, ImageTextModel)
    np.testing.assert_array_equal(again(*batch()), model(*batch()))
    assert set(nnx.to_pure_dict(nnx.state(make(), nnx.Param))) == set(params) - {"logit_bias"}


def test_logits_are_scaled_cosines_plus_the_bias():
    model = make(has_logit_bias=True)
    model.logit_scale[...], model.logit_bias[...] = jnp.float32(np.log(5.0)), jnp.float32(-2.0)
    images, tokens = batch()
    cosines = unit(model.embed_images(images)) @ unit(model.embed_texts(tokens)).T
    np.testing.assert_allclose(model(images, tokens), 5 * cosines - 2, atol=1e-5)


def test_what_does_not_fit_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"model.num_classes=5: .* must be 0"):
        make(dataclasses.replace(IMAGE, num_classes=5))
    with pytest.raises(ConfigError, match=r"text.embed_dim=24: must be the width 32 of the image tower"):
        make(has_image_proj=False)


@pytest.mark.parametrize("use_scan", [False, True])
def test_embeddings_and_gradients_over_8_devices_are_those_of_one(use_scan):
    image, text = (dataclasses.replace(one, use_scan=use_scan) for one in (IMAGE, TEXT))
    graph, state = nnx.split(make(image, text, has_logit_bias=True), nnx.Param)
    params, inputs = nnx.to_pure_dict(state), batch()

    def loss(params, images, tokens):
        return jnp.square(nnx.merge(graph, params)(images, tokens)).sum()

    alone = jax.jit(jax.value_and_grad(loss))(params, *inputs)
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    shardings = parameter_shardings(params, mesh)
    table = shardings["text"]["token_embed"]["embedding"].spec
    assert tuple(table) == (None, "fsdp") and tuple(shardings["image_proj"]["kernel"].spec) == ("fsdp", None)
    assert "tensor" in tuple(shardings["text"]["blocks"][0]["mlp"]["fc1"]["kernel"].spec)
    with jax.set_mesh(mesh):
        split = jax.jit(jax.value_and_grad(loss))(jax.device_put(params, shardings), *inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), alone, split)
