"""Bytes by instruction of a program's text: by hand, and of a program that this process compiles."""

import jax
import jax.numpy as jnp
import pytest

from tools import hlo

PROGRAM = """
HloModule jit_step, is_scheduled=true

%fused_computation (p.0: bf16[8,4], p.1: f32[8]) -> f32[8,4] {
  %p.0 = bf16[8,4]{1,0} parameter(0)
  %p.1 = f32[8]{0} parameter(1)
  %c = f32[8,4]{1,0} convert(%p.0)
  ROOT %out = f32[8,4]{1,0} add(%c, %c)
}

%body (b.0: f32[8,4]) -> f32[8,4] {
  %b.0 = f32[8,4]{1,0} parameter(0)
  ROOT %copy.9 = f32[8,4]{0,1} copy(%b.0)
}

ENTRY %main (a: bf16[8,4], b: f32[8]) -> f32[8,4] {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %gemm.1 = (bf16[8,8]{1,0}, s8[33554432]{0}) custom-call(%a, %a), custom_call_target="__cublas$lt$matmul"
  %part = bf16[8,8]{1,0} get-tuple-element(%gemm.1), index=0
  %fusion.1 = f32[8,4]{1,0} fusion(%a, %b), kind=kLoop, calls=%fused_computation, metadata={op_name="add"}
  ROOT %while.1 = f32[8,4]{1,0} while(%fusion.1), condition=%cond, body=%body
}
"""


def test_by_hand():
    found = {one.name: one for one in hlo.instructions(PROGRAM)}
    assert set(found) == {"gemm.1", "fusion.1", "copy.9"}  # the body of the loop, once
    gemm, fusion = found["gemm.1"], found["fusion.1"]
    assert (gemm.kind, gemm.read_bytes, gemm.written_bytes) == ("__cublas$lt$matmul", 2 * 64, 128)
    assert (fusion.kind, fusion.read_bytes, fusion.written_bytes) == ("fusion", 64 + 32, 128)
    assert (fusion.num_fused, fusion.where) == (4, "add")
    assert hlo.by_kind(list(found.values())) == {
        "__cublas$lt$matmul": (1, 256),
        "copy": (1, 256),
        "fusion": (1, 224),
    }


def test_shapes_of_arrays_are_sorted_and_those_with_an_axis_twice_are_found():
    found = hlo.array_shapes(PROGRAM)
    assert found == ["s8[33554432]", "bf16[8,8]", "f32[8,4]", "bf16[8,4]", "f32[8]"]
    text = "f32[46,23] f32[23,3,64] f32[529]{0} pred[23,2,4,23] f32[] f32[23]"
    assert hlo.array_shapes(text, axis=23) == ["f32[46,23]", "pred[23,2,4,23]", "f32[529]"]


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]", 4),
        ("bf16[3,5]{1,0}", 30),
        ("(f32[2]{0}, s8[1000]{0})", 8),
        ("s8[10]{0}", 10),
        ("token[]", 0),
    ],
)
def test_bytes_of_shapes(shape, size):
    assert hlo.array_bytes(shape) == size


def test_a_compiled_product_reads_its_operands_and_writes_its_result():
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32)
    compiled = jax.jit(lambda x: x @ x.T).lower(x).compile()
    total = sum(one.bytes for one in hlo.instructions(compiled.as_text()))
    assert total >= 4 * (64 * 32 + 64 * 64)


PRODUCTS = """
ENTRY %main () -> bf16[2,6,3,8] {
  %a = bf16[16,12]{1,0} parameter(0)
  %b = bf16[12,8]{1,0} parameter(1)
  %i = bf16[4,32,32,3]{3,2,1,0} parameter(2)
  %k = bf16[5,8,8,3]{3,2,1,0} parameter(3)
  %q = bf16[2,6,3,8]{3,2,1,0} parameter(4)
  %CALL
  %c = bf16[2,6,3,8]{3,2,1,0} convert(%q)
}
"""


@pytest.mark.parametrize(
    ("call", "flops"),
    [
        (
            "d = bf16[16,8]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
            2 * 16 * 8 * 12,
        ),
        (
            'g = (bf16[16,8]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", '
            'backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}',
            2 * 16 * 8 * 12,
        ),
        (
            "v = (bf16[4,4,4,5]{3,2,1,0}, u8[0]{0}) custom-call(%i, %k), window={size=8x8 stride=8x8}, "
            'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"',
            2 * 4 * 4 * 4 * 5 * 8 * 8 * 3,
        ),
        (
            "f = (bf16[2,3,6,8]{3,1,2,0}, u8[0]{0}) custom-call(%q, %q, %q), "
            'custom_call_target="__cudnn$fmhaSoftmax"',
            2 * 2 * 2 * 3 * 6 * 6 * 8,
        ),
        (
            "f = (bf16[2,3,6,8]{3,1,2,0}, u8[0]{0}) custom-call(%q, %q, %q), "
            'custom_call_target="__cudnn$fmhaScaleBiasSoftmaxBackward"',
            2 * 2 * 2 * 2 * 3 * 6 * 6 * 8,
        ),
        ("n = bf16[16,12]{1,0} negate(%a)", 0),
    ],
)
def test_flops_of_products_by_hand(call, flops):
    assert hlo.product_flops(PRODUCTS.replace("CALL", call)) == flops


def test_flops_of_a_compiled_gradient():
    def loss(w, x):
        return jnp.einsum("bij,jk->bik", jnp.sin(x), w).sum()

    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((32, 16), (4, 8, 32))]
    text = jax.jit(jax.value_and_grad(loss)).lower(*arrays).compile().as_text()
    assert hlo.product_flops(text) in (2 * 4 * 8 * 32 * 16, 2 * 2 * 4 * 8 * 32 * 16)  # sums may replace one


def test_the_largest_float32_array_of_a_shape():
    assert hlo.float32_bytes("(f32[2,3]{1,0}, bf16[100]{0}, f32[5]{0})") == 24
    assert hlo.float32_bytes("bf16[100]{0}") == 0
