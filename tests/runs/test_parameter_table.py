"""The table of parameters is that of clu."""

import jax
import numpy as np
import pytest

from vit_registers.config import Model
from vit_registers.models.params import abstract_model
from vit_registers.runs.parameter_table import parameter_table


def test_the_table_is_that_of_clu():
    overview = pytest.importorskip("clu.parameter_overview")
    model = Model(width=16, depth=11, num_heads=2, patch_size=4, image_size=(8, 8), num_registers=2)
    shapes = abstract_model(model)[1]
    for params in (
        {"vit": shapes, "a": {"b": jax.ShapeDtypeStruct((1,), np.dtype("bfloat16"))}},
        {"vit": shapes},
    ):
        assert parameter_table(params) == overview.get_parameter_overview(params, include_stats=False)
