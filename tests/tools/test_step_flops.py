"""FLOPs of a step against closed forms."""

import dataclasses
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tools.step_flops import flops_per_image, product_flops, variants
from vit_registers.analysis.experiments.cost import forward_flops
from vit_registers.config import override
from vit_registers.models.vit import token_layout

CARD = Path(__file__).parents[2] / "configs/dino_digits.py"


@pytest.fixture
def config():
    return override(runpy.run_path(str(CARD))["get_config"](), {})


def test_products_in_loops_count_once_per_iteration():
    def many(x):
        return jax.lax.scan(lambda carry, _: (carry @ x, None), x, length=5)[0]

    jaxpr = jax.make_jaxpr(many)(jnp.ones((3, 3))).jaxpr
    assert product_flops(jaxpr) == 5 * 2 * 3**3


def test_products_of_a_loop_of_unknown_length_are_refused():
    def until(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="unknown length"):
        product_flops(jax.make_jaxpr(until)(jnp.ones((3, 3))).jaxpr)


def test_a_convolution_counts_its_kernel():
    def patches(images, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(images, kernel, (4, 4), "VALID", dimension_numbers=layout)

    jaxpr = jax.make_jaxpr(patches)(jnp.ones((2, 8, 8, 3)), jnp.ones((4, 4, 3, 5))).jaxpr
    assert product_flops(jaxpr) == 2 * (2 * 2 * 2 * 5) * (4 * 4 * 3)


def test_a_supervised_step_is_three_forward_passes(config):
    """Without the gradient with respect to the images, and with a second product for the attention logits,
    which the backward pass computes again."""
    supervised = variants(config)["supervised"]
    model, layout = supervised.model, token_layout(supervised.model)
    embed = 2 * layout.num_patches * model.width * model.channels * model.patch_size**2
    logits = 2 * layout.num_tokens**2 * model.width * model.depth
    want = 3 * forward_flops(model, layout) - embed + logits
    assert flops_per_image(supervised) == pytest.approx(want, rel=1e-6)


def test_heads_have_the_products_of_their_rows(config):
    """Of the MLP and the prototypes, for 2 rows of the teacher and 2 + L of the student per image, whose
    backward pass has twice the products of the forward pass."""
    settings = dataclasses.replace(config.objective.self_distillation, targets="centring", mask_share=0.0)
    objective = dataclasses.replace(config.objective, self_distillation=settings)
    config = dataclasses.replace(config, objective=objective)
    found = {name: flops_per_image(one) for name, one in variants(config).items()}
    width, hidden, narrow = config.model.width, settings.head_hidden, settings.head_bottleneck
    weights = width * hidden + hidden**2 + hidden * narrow + narrow * settings.num_prototypes
    rows = 2 + 3 * (2 + settings.num_locals)
    assert found["step"] - found["backbones"] == pytest.approx(2 * weights * rows, rel=0.01)
