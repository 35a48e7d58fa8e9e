"""Operations against those that XLA counts, and parameters against those of a model that is built."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from vit_registers.analysis.experiments.cost import EXPERIMENT, energy, forward_flops
from vit_registers.analysis.options import Options
from vit_registers.config import Model
from vit_registers.models.vit import ViT, token_layout

MODEL = Model(
    width=128, depth=2, num_heads=4, patch_size=8, image_size=(64, 64), num_classes=10, pooling="cls"
)


def _shapes(model):
    return nnx.eval_shape(lambda: ViT(model, rngs=nnx.Rngs(0)))


def _count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(_shapes(model), nnx.Param)))


def _subject(model, name="model"):
    return SimpleNamespace(name=name, model=model, layout=token_layout(model), num_parameters=_count(model))


@pytest.mark.parametrize(
    "change", [{}, {"num_registers": 16}, {"mlp": "swiglu"}, {"summary_factor": 2, "mask": "fractal"}]
)
def test_operations_are_those_of_xla_but_for_what_is_no_matrix_product(change):
    model = dataclasses.replace(MODEL, **change)
    graph, params = nnx.split(_shapes(model))
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    compiled = jax.jit(lambda p, x: nnx.merge(graph, p)(x).logits).lower(params, image).compile()
    counted = compiled.cost_analysis()["flops"]
    assert 0.9 < forward_flops(model, token_layout(model)) / counted <= 1.0


@pytest.mark.parametrize("contents", ["learned", "zeros"])
def test_parameters_are_those_of_models_that_are_built(contents):
    model = dataclasses.replace(MODEL, num_registers=4, registers=contents)
    (table,) = EXPERIMENT.result([_subject(model)], Options()).tables
    for _, count, _, more, parameters in table.rows:
        assert parameters == _count(dataclasses.replace(model, num_registers=count))
        assert (more == 0) == (count == 0)


def test_energy_worked_by_hand():
    assert energy(1320, 400, 1.2, 0.4) == pytest.approx((633.6, 253.44))
    assert energy(1, 1000, 1, 0) == (1, 0)


def test_energy_has_a_table_only_where_its_factors_are_given():
    subject = _subject(MODEL)
    plain = EXPERIMENT.result([subject], Options())
    given = EXPERIMENT.result([subject], Options(energy=(1320, 400, 1.2, 0.4)))
    assert [table.title for table in plain.tables] == ["Cost of registers"]
    assert "kWh" not in plain.definition and "/ 1000" in given.definition
    _, table = given.tables
    (row,) = table.rows
    assert dict(zip(table.columns, row, strict=True)) == pytest.approx(
        {"hours": 1320, "watts": 400, "PUE": 1.2, "kg CO2 per kWh": 0.4, "kWh": 633.6, "kg CO2": 253.44}
    )
