"""Train steps of ViT-S/16 as compiled for a CPU, an H200 and a TPU v5p: what a block adds. Nothing is timed.

A block's share is half of what a step of 4 blocks has more than one of 2. EXPECTED holds its ratios to what a
block cannot avoid, as MEASURED_WITH compiled it. A change for the better by more than the tolerance fails
too, so that the numbers follow it. For other versions of jax they are upper limits, with more room.
"""

import dataclasses
import importlib.util
import runpy
from pathlib import Path

import jax
import pytest

from tools import hlo
from tools.aot_price import Figures, compile_step, figures, products
from vit_registers.config import override
from vit_registers.models.blocks import dims
from vit_registers.models.vit import token_layout

pytestmark = pytest.mark.slow

CONFIG_FILE = Path(__file__).parents[2] / "configs/vit_s16_i1k.py"
MEASURED_WITH = "0.10.2"  # jax
TOLERANCE = 0.03 if jax.__version__ == MEASURED_WITH else 0.25

REGISTERS, FRACTAL = "registers=4", "k=2,mask=fractal"
REQUIRED = {"h200": "jax_cuda12_plugin", "v5p:2x2x1": "libtpu"}
NUM_DEVICES = {"cpu": 1, "h200": 1, "v5p:2x2x1": 4}
SETTINGS = {
    "cpu": {"data.batch_size": 8},
    "h200": {"data.batch_size": 1024, "model.dtype": "bfloat16", "model.attention": "cudnn"},
    "v5p:2x2x1": {"data.batch_size": 1024, "model.dtype": "bfloat16"},
}

# (device, argument of the config): the results of `shares`.
EXPECTED = {
    ("cpu", ""): {"bytes": 2.702, "temporaries": 1.181, "large fusions": 38},
    ("cpu", REGISTERS): {"bytes": 2.700, "temporaries": 1.181, "large fusions": 38},
    ("cpu", FRACTAL): {"bytes": 2.785, "temporaries": 1.169, "large fusions": 40},
    ("h200", ""): {"bytes": 1.999, "temporaries": 0.752, "large fusions": 5},
    ("h200", REGISTERS): {"bytes": 1.999, "temporaries": 0.752, "large fusions": 5},
    ("h200", FRACTAL): {"bytes": 2.008, "temporaries": 0.755, "large fusions": 5},
    ("v5p:2x2x1", ""): {"bytes": 2.090, "temporaries": 0.794, "large fusions": 18},
}


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled train step, per device."""

    figures: Figures
    kernels: list[hlo.Instruction]
    product_flops: int  # of the products in its text
    model_flops: int  # of the products of the model, forward and backward
    block_logits_flops: int  # of q k^T of a block
    stream_bytes: int  # of an array BxTxD
    weights_bytes: int  # of an array BxNxTxT
    block_parameters: int  # in the matrices of a block
    itemsize: int  # of an operand of a product

    @property
    def large_fusions(self):
        """The fusions that write as much as an array BxTxD."""
        return [one for one in self.kernels if one.num_fused and one.written_bytes >= self.stream_bytes]


def compiled(device, argument, depth):
    get_config = runpy.run_path(str(CONFIG_FILE))["get_config"]
    config = override(get_config(argument), SETTINGS[device] | {"model.depth": depth})
    program = compile_step(config, device)
    text, sizes, tokens = program.as_text(), dims(config.model), token_layout(config.model).num_tokens
    batch = config.data.batch_size // NUM_DEVICES[device]
    itemsize = 2 if config.model.dtype == "bfloat16" else 4
    return Step(
        figures=figures(program),
        kernels=hlo.instructions(text),
        product_flops=hlo.product_flops(text),
        model_flops=3 * batch * products(config.model),
        block_logits_flops=2 * batch * tokens**2 * sizes.width,
        stream_bytes=batch * tokens * sizes.width * itemsize,
        weights_bytes=batch * sizes.num_heads * tokens**2 * itemsize,
        block_parameters=4 * sizes.width**2 + 2 * sizes.width * sizes.mlp_dim,
        itemsize=itemsize,
    )


@pytest.fixture(scope="module", params=EXPECTED, ids=" ".join)
def case(request):
    """(device, argument, the step of 2 blocks, the step of 4 blocks)."""
    device, argument = request.param
    if device in REQUIRED and not importlib.util.find_spec(REQUIRED[device]):
        pytest.skip(f"requires {REQUIRED[device]}")
    with pytest.MonkeyPatch.context() as patch, jax.default_matmul_precision("default"):
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no TPU is used that others could want
        # On a CPU it changes LLVM's part only, and not what is counted here.
        jax.config.update("jax_disable_most_optimizations", device == "cpu")
        steps = [compiled(device, argument, depth) for depth in (2, 4)]
        jax.config.update("jax_disable_most_optimizations", True)  # as in conftest.py
    return device, argument, *steps


def shares(device, two, four):
    """What a block adds to a step.

    Bytes are compared with the operands and results of its products, three times over for the backward pass,
    and the seven arrays of AdamW; temporaries with the inputs of its products and activation, and the
    gradients. With cuDNN no attention weights are in memory.
    """
    stream, weights = two.stream_bytes, two.weights_bytes * (device != "h200")
    moved = 3 * (20 * stream + 2 * weights + two.block_parameters * two.itemsize)
    moved += 7 * 4 * two.block_parameters
    stored = 16 * stream + weights + 4 * two.block_parameters
    return {
        "bytes": (four.figures.accessed_bytes - two.figures.accessed_bytes) / 2 / moved,
        "temporaries": (four.figures.temporary_bytes - two.figures.temporary_bytes) / 2 / stored,
        "large fusions": (len(four.large_fusions) - len(two.large_fusions)) / 2,
    }


def test_a_block_moves_and_stores_what_it_did(case):
    device, argument, two, four = case
    found, expected = shares(device, two, four), EXPECTED[device, argument]
    if jax.__version__ == MEASURED_WITH:
        assert found == pytest.approx(expected, rel=TOLERANCE)
    assert all(found[name] <= expected[name] * (1 + TOLERANCE) for name in expected), (found, expected)


def test_a_block_computes_the_products_of_the_model_and_little_else(case):
    device, _, two, four = case
    expected = four.model_flops - two.model_flops
    if device == "v5p:2x2x1":  # the text of a TPU's program does not tell the FLOPs of products
        expected += 2 * two.block_logits_flops  # computed twice, rather than stored in float32
    else:
        # 1 %: cuDNN's lengths are even.
        assert four.product_flops - two.product_flops == pytest.approx(expected, rel=0.01)
    assert four.figures.flops - two.figures.flops == pytest.approx(expected, rel=0.02)


def test_no_fusion_reads_the_chain_of_residual_gradients(case):
    device, _, two, four = case
    # The gradient of the activation reads two arrays of the width of the MLP, and writes one: 12 of BxTxD.
    # On a GPU it also writes the activations, which it computes again.
    arrays = 16 if device == "h200" else 12
    for step in (two, four):
        assert max(one.bytes for one in step.large_fusions) < (arrays + 0.1) * step.stream_bytes
    most_fused = [max(one.num_fused for one in step.large_fusions) for step in (two, four)]
    assert most_fused[0] == most_fused[1]  # at any depth


def test_where_products_are_bfloat16_a_block_writes_no_large_float32_array(case):
    device, _, two, four = case
    if device == "cpu":
        pytest.skip("products are float32")
    # TPUs write arrays BxTxD in float32, but no logits.
    limit = two.weights_bytes if device == "v5p:2x2x1" else two.stream_bytes
    wide = [
        [one.shape for one in step.kernels if hlo.float32_bytes(one.shape) > limit] for step in (two, four)
    ]
    assert wide[0] == wide[1]  # those outside the blocks


@pytest.mark.parametrize("case", [("cpu", "")], indirect=True, ids=["cpu"])
def test_on_a_cpu_work_is_linear_in_depth(case):
    device, argument, two, four = case
    eight = compiled(device, argument, 8)
    for name in ("flops", "accessed_bytes", "temporary_bytes"):
        a, b, c = (getattr(step.figures, name) for step in (two, four, eight))
        assert (c - b) / 4 == pytest.approx((b - a) / 2, rel=0.01), name
