"""One more token, to make their number even for a back end, changes nothing that a model returns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.fixtures.quick import parametrize_quick
from vit_registers.models import stack

CASES = {
    "cls": {},
    "registers, ALiBi": {"num_registers": 2, "positions": "alibi2d"},
    "fractal mask": {"summary_factor": 2, "use_cls": False, "pooling": "gap", "mask": "fractal"},
    "loop": {"use_scan": True, "depth": 3},
    "recomputed": {"remat": "block"},
    "rotated": {"positions": "rope2d"},
    "rotated by learned angles": {"positions": "rope2d(learned=True)", "use_scan": True, "depth": 2},
}


@parametrize_quick("changes", CASES.values(), number=3, ids=CASES)
def test_outputs_taps_and_gradients_are_those_without_it(build, images, monkeypatch, changes):
    model = build(**changes)
    graphdef, params = nnx.split(model, nnx.Param)

    def loss(params):
        outputs = nnx.merge(graphdef, params)(images())
        return jnp.square(outputs.logits).sum() + jnp.square(outputs.patches).mean(), outputs

    def results():
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    expected = results()
    lengths = []
    apply = stack.Block.__call__
    monkeypatch.setattr(stack, "_EVEN", ("xla",))
    monkeypatch.setattr(
        stack.Block,
        "__call__",
        lambda self, x, *args, **kwargs: (lengths.append(x.shape[1]), apply(self, x, *args, **kwargs))[1],
    )
    found = results()
    num_tokens = expected[0][1].taps["resid"][0].shape[1]
    assert num_tokens % 2 and set(lengths) == {num_tokens + 1}
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), found, expected)


def test_models_with_an_even_number_of_tokens_are_left_alone(build, images, monkeypatch):
    monkeypatch.setattr(stack, "_EVEN", ("xla",))
    monkeypatch.setattr(stack, "_with_unseen", pytest.fail)
    assert build(num_registers=1)(images()).logits is not None
