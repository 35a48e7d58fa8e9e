"""The back ends for GPUs and TPUs: what they refuse, what they lower to, and how a mesh splits them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_registers.config import Mesh
from vit_registers.errors import ConfigError
from vit_registers.models.attention import cudnn, splash
from vit_registers.models.attention.api import BACKENDS
from vit_registers.models.attention.mesh import over_mesh, platform
from vit_registers.runtime.mesh import make_mesh

BFLOAT16 = jnp.bfloat16


def shapes(*, batch=2, length=197, heads=2, size=64, dtype=BFLOAT16, sharding=None):
    return [jax.ShapeDtypeStruct((batch, length, heads, size), dtype, sharding=sharding)] * 3


def loss(name, **extra):
    return lambda q, k, v: BACKENDS[name](q, k, v, **extra).astype(jnp.float32).sum()


@pytest.mark.parametrize(
    ("name", "where", "settings", "extra", "says"),
    [
        ("cudnn", "cpu", {}, {}, "runs on NVIDIA GPUs, and this is a cpu: use model.attention='xla'"),
        ("cudnn", "gpu", {"dtype": jnp.float32}, {}, "requires 16-bit floats, not float32: set model.dtype"),
        ("cudnn", "gpu", {"size": 60}, {}, "multiple of 8 and at most 128, not 60 .* set model.num_heads"),
        ("cudnn", "gpu", {"size": 136}, {}, "multiple of 8 and at most 128, not 136"),
        ("cudnn", "gpu", {}, {}, "cuDNN is not detected. Use model.attention='xla'"),
        ("splash", "cpu", {}, {}, "runs on TPUs, and this is a cpu: use model.attention='xla'"),
        (
            "splash",
            "tpu",
            {},
            {"bias_NxTxT": np.zeros((2, 197, 197), np.float32)},
            "supports no attention bias",
        ),
    ],
)
def test_what_cannot_be_done_is_said_when_tracing(monkeypatch, name, where, settings, extra, says):
    for module in (cudnn, splash):
        monkeypatch.setattr(module, "platform", lambda: where)
    with pytest.raises(ConfigError, match=says):
        jax.eval_shape(loss(name, **extra), *shapes(**settings))


@pytest.mark.parametrize("extra", ["plain", "mask", "bias"])
def test_cudnn_lowers_to_its_kernels_for_cuda_forward_and_backward(monkeypatch, extra):
    # JAX asks the installed cuDNN for its version; here there is none.
    inner = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(inner, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "platform", lambda: "gpu")
    settings = {
        "plain": {},
        "mask": {"mask_TxT": np.tri(197, dtype=bool)},
        "bias": {"bias_NxTxT": np.zeros((2, 197, 197), np.float32)},
    }[extra]
    gradient = jax.jit(jax.grad(loss("cudnn", **settings), argnums=(0, 1, 2)))
    text = gradient.trace(*shapes()).lower(lowering_platforms=("cuda",)).as_text()
    bias = "" if extra == "plain" else "ScaleBias"
    assert text.count(f"@__cudnn$fmha{bias}Softmax(") == 1
    assert text.count(f"@__cudnn$fmha{bias}SoftmaxBackward(") == 1
    assert "x198x2x64xbf16" in text  # JAX refuses to differentiate odd lengths


@pytest.fixture
def mesh():
    with jax.set_mesh(make_mesh(Mesh(data=2, fsdp=2, tensor=2))):
        yield


def assert_same_on_a_mesh(attend, bias_NxTxT):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(4, 21, 2, 8)).astype(np.float32) for _ in range(3))

    def both(attend):
        return jax.jit(jax.value_and_grad(lambda *qkv: (attend(*qkv) ** 2).sum(), argnums=(0, 1, 2)))(q, k, v)

    split = both(lambda q, k, v: over_mesh(attend, q, k, v, bias_NxTxT))
    whole = both(lambda q, k, v: attend(q, k, v, bias_NxTxT))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), split, whole)


def test_a_mesh_splits_examples_heads_and_the_bias_of_heads(mesh):
    rng = np.random.default_rng(1)
    mask_TxT = np.tri(21, dtype=bool)
    attend = functools.partial(cudnn.attend_even, mask_TxT=mask_TxT, implementation="xla")
    assert_same_on_a_mesh(attend, rng.normal(size=(2, 21, 21)).astype(np.float32))


def test_a_mesh_splits_the_splash_kernel(mesh):
    mask_TxT = np.tri(21, dtype=bool)
    assert_same_on_a_mesh(
        functools.partial(splash.attend_blocks, mask_TxT=mask_TxT, is_interpreted=True), None
    )


@pytest.mark.parametrize(("batch", "heads"), [(2, 2), (4, 3)])
def test_a_mesh_that_does_not_divide_examples_or_heads_is_refused(mesh, batch, heads):
    attend = functools.partial(over_mesh, lambda q, k, v, bias: v, bias_NxTxT=None)
    with pytest.raises(ConfigError, match=f"{batch} examples and {heads} heads do not divide"):
        jax.eval_shape(attend, *shapes(batch=batch, heads=heads))


@pytest.mark.parametrize(("length", "size"), [(197, 64), (201, 80)])
def test_splash_compiles_for_tpus_ahead_of_time(monkeypatch, length, size):
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no TPU is used that others could want
    devices = topologies.get_topology_desc("v5p:2x2x1", platform="tpu").devices
    mesh = make_mesh(Mesh(data=2, fsdp=1, tensor=2), devices=devices)
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"), None, "tensor"))
    mask_TxT = np.tri(length, dtype=bool)
    # The tests' precision of float32 is none that Mosaic has for bfloat16.
    with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
        assert platform() == "tpu"
        gradient = jax.jit(jax.grad(loss("splash", mask_TxT=mask_TxT), argnums=(0, 1, 2)))
        text = gradient.lower(*shapes(length=length, size=size, sharding=spec)).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2  # forward, backward
    assert "all-" not in text
