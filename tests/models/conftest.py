"""What the model tests share: a small configuration, models without zeros, images, a forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_registers.config import Model
from vit_registers.models.vit import Outputs, ViT

TINY = {
    "width": 32,
    "depth": 1,
    "num_heads": 4,
    "mlp_dim": 64,
    "patch_size": 4,
    "image_size": (16, 16),
    "num_classes": 5,
}


def _tiny(**settings) -> Model:
    return Model(**(TINY | settings))


def _build(**settings) -> ViT:
    rng = np.random.default_rng(1)

    def noise(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        centre = float(path[-1].key in ("scale", "gamma"))
        return jnp.asarray(centre + rng.normal(0, 0.15, leaf.shape), jnp.float32)

    graph, shapes = nnx.split(nnx.eval_shape(lambda: ViT(_tiny(**settings), rngs=nnx.Rngs(0))))
    return nnx.merge(graph, jax.tree_util.tree_map_with_path(noise, nnx.to_pure_dict(shapes)))


def _images(batch: int = 2, size: tuple[int, int] = (16, 16), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, *size, 3)).astype(np.float32)


@jax.jit
def _forward(model: ViT, images: jax.Array, drop_key: jax.Array | None = None) -> Outputs:
    return model(images, drop_key=drop_key)


@pytest.fixture(scope="session")
def tiny():
    """tiny(**settings): the configuration of a model of one block of width 32 on 4 x 4 patches."""
    return _tiny


@pytest.fixture(scope="session")
def build():
    """build(**settings): that model, all parameters random, so that nothing hides behind a zero."""
    return _build


@pytest.fixture(scope="session")
def images():
    """images(batch, size, seed): normal noise as images_BxHxWxC."""
    return _images


@pytest.fixture(scope="session")
def forward():
    """forward(model, images, drop_key): the Outputs, compiled."""
    return _forward
