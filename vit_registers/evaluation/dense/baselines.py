"""What features of a model are compared with: no image at all, and parameters that were never trained."""

from typing import Any

import jax
import jax.numpy as jnp

from vit_registers.config import Model
from vit_registers.evaluation.dense.training import Features
from vit_registers.models.params import abstract_model, init_params
from vit_registers.training.sharding import parameter_shardings

POSITION, RANDOM = "position only", "random backbone"  # the names of their rows


def random_backbone(model: Model, mesh: jax.sharding.Mesh, *, seed: int) -> Any:
    """New parameters by the model's initializers, over the mesh."""
    layout = parameter_shardings(abstract_model(model)[1], mesh)
    return jax.jit(lambda key: init_params(model, key=key), out_shardings=layout)(jax.random.key(seed))


def position_features(features: Features, backbone: Any, *, grid: tuple[int, int] | None = None) -> Features:
    """Features that say only which patch of the window it is: one-hot, BxHxWx(HW), of any images.

    The grid is that of `features`, which are not computed. With `grid`, (rows, columns), they are one-hot on
    that grid, and interpolated where that of `features` is another one.
    """

    def positions(_: Any, image_BxHxWxC: jax.Array, size_Bx2: jax.Array) -> jax.Array:
        number, rows, columns, _ = jax.eval_shape(features, backbone, image_BxHxWxC, size_Bx2).shape
        own_rows, own_columns = grid or (rows, columns)
        place_HxWxC = jnp.eye(own_rows * own_columns).reshape(own_rows, own_columns, -1)
        if (own_rows, own_columns) != (rows, columns):
            shape = (rows, columns, own_rows * own_columns)
            place_HxWxC = jax.image.resize(place_HxWxC, shape, "bilinear", antialias=False)
        return jnp.broadcast_to(place_HxWxC[None], (number, *place_HxWxC.shape))

    return positions
