"""Our ViT against live models of `transformers` with random weights, copied over parameter by parameter."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
OURS = {"width": 32, "depth": 3, "num_heads": 4, "mlp_dim": 128, "image_size": (32, 32), "patch_size": 8}
TOLERANCE = 2e-5  # absolute; about 5e-6 is measured


def randomised(model):
    """`model` with noise on every parameter, biases, norms and tokens included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if re.search(r"norm.*weight|lambda1", name) else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def linear(weights, name):
    return {"kernel": weights.pop(f"{name}.weight").T, "bias": weights.pop(f"{name}.bias")}


def norm(weights, name):
    return {"scale": weights.pop(f"{name}.weight"), "bias": weights.pop(f"{name}.bias")}


def attention(weights, name, num_heads=4):
    """q, k, v as one kernel DxQxNxK, and the output projection NxKxD."""
    parts = [linear(weights, f"{name}.{part}_proj") for part in "qkv"]
    kernel_DxQxD = np.stack([part["kernel"] for part in parts], axis=1)
    bias_QxD = np.stack([part["bias"] for part in parts])
    out = linear(weights, f"{name}.o_proj")
    width = len(out["kernel"])
    return {
        "qkv": {
            "kernel": kernel_DxQxD.reshape(width, 3, num_heads, -1),
            "bias": bias_QxD.reshape(3, num_heads, -1),
        },
        "out": {"kernel": out["kernel"].reshape(num_heads, -1, width), "bias": out["bias"]},
    }


def mlp(weights, name):
    if f"{name}.fc1.weight" in weights:
        return {"fc1": linear(weights, f"{name}.fc1"), "fc2": linear(weights, f"{name}.fc2")}
    gate, value = linear(weights, f"{name}.gate_proj"), linear(weights, f"{name}.up_proj")
    w12 = {key: np.concatenate([gate[key], value[key]], axis=-1) for key in gate}
    return {"w12": w12, "w3": linear(weights, f"{name}.down_proj")}


def embeddings(weights, name):
    position = weights.pop(f"{name}.position_embeddings")
    projection = f"{name}.patch_embeddings.projection"
    return {
        "patch_embed": {
            "kernel": weights.pop(f"{projection}.weight").transpose(2, 3, 1, 0),
            "bias": weights.pop(f"{projection}.bias"),
        },
        "cls_token": weights.pop(f"{name}.cls_token"),
        "cls_pos": position[:, :1],
        "pos_embed": position[:, 1:],
    }


def load(model, params):
    """Puts `params` into `model`; every parameter must be there, and none besides."""
    want = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert shapes(params) == shapes(want)
    nnx.update(model, params)


def shapes(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tuple(tree.shape)}
    return {path: shape for key in tree for path, shape in shapes(tree[key], f"{prefix}/{key}").items()}


def vit_params(theirs):
    weights = {name: value.numpy() for name, value in theirs.state_dict().items()}
    params = embeddings(weights, "vit.embeddings")
    params["blocks"] = {
        i: {
            "norm1": norm(weights, f"vit.layers.{i}.layernorm_before"),
            "attn": attention(weights, f"vit.layers.{i}.attention"),
            "norm2": norm(weights, f"vit.layers.{i}.layernorm_after"),
            "mlp": mlp(weights, f"vit.layers.{i}.mlp"),
        }
        for i in range(3)
    }
    params |= {"norm": norm(weights, "vit.layernorm"), "head": linear(weights, "classifier")}
    assert not weights, list(weights)
    return params


def dinov2_params(theirs):
    weights = {name: value.numpy() for name, value in theirs.state_dict().items()}
    params = embeddings(weights, "embeddings")
    params["registers"] = weights.pop("embeddings.register_tokens")
    del weights["embeddings.mask_token"]
    params["blocks"] = {
        i: {
            "norm1": norm(weights, f"encoder.layer.{i}.norm1"),
            "attn": attention(weights, f"encoder.layer.{i}.attention"),
            "ls1": {"gamma": weights.pop(f"encoder.layer.{i}.layer_scale1.lambda1")},
            "norm2": norm(weights, f"encoder.layer.{i}.norm2"),
            "mlp": mlp(weights, f"encoder.layer.{i}.mlp"),
            "ls2": {"gamma": weights.pop(f"encoder.layer.{i}.layer_scale2.lambda1")},
        }
        for i in range(3)
    }
    params["norm"] = norm(weights, "layernorm")
    assert not weights, list(weights)
    return params


def as_torch(images_BxHxWxC):
    return torch.from_numpy(images_BxHxWxC).permute(0, 3, 1, 2)


def assert_close(ours, theirs):
    theirs = theirs.detach().numpy()
    print("largest difference", np.abs(np.asarray(ours) - theirs).max(), "of", np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("theirs_name", "name"),
    [("gelu", "gelu"), ("quick_gelu", "quick_gelu"), ("gelu_pytorch_tanh", "gelu_tanh")],
)
def test_vit_for_image_classification(build, images, forward, theirs_name, name):
    config = transformers.ViTConfig(
        **SIZES, intermediate_size=128, num_labels=5, hidden_act=theirs_name, layer_norm_eps=1e-12
    )
    theirs = randomised(transformers.ViTForImageClassification(config))
    ours = build(**OURS, num_classes=5, activation=name, norm_eps=1e-12)
    load(ours, vit_params(theirs))
    x = images(2, (32, 32))
    outputs = forward(ours, x)
    with torch.no_grad():
        tokens_BxTxD = theirs.vit(as_torch(x)).last_hidden_state
        assert_close(outputs.logits, theirs(as_torch(x)).logits)
    assert_close(outputs.cls, tokens_BxTxD[:, 0])
    assert_close(outputs.patches, tokens_BxTxD[:, 1:])
    assert outputs.registers is None
    assert outputs.summaries is None


@pytest.mark.parametrize(
    ("use_swiglu", "size"), [(False, (32, 32)), (False, (48, 48)), (False, (24, 40)), (True, (32, 32))]
)
def test_dinov2_with_registers(build, images, forward, use_swiglu, size):
    config = transformers.Dinov2WithRegistersConfig(
        **SIZES, mlp_ratio=4, num_register_tokens=3, use_swiglu_ffn=use_swiglu
    )
    theirs = randomised(transformers.Dinov2WithRegistersModel(config))
    mlp_settings = {"mlp": "swiglu", "mlp_dim": 88} if use_swiglu else {}
    ours = build(**(OURS | mlp_settings), num_classes=0, num_registers=3, layer_scale_init=1.0)
    load(ours, dinov2_params(theirs))
    x = images(2, size)
    outputs = forward(ours, x)
    with torch.no_grad():
        tokens_BxTxD = theirs(as_torch(x)).last_hidden_state
    assert outputs.logits is None
    assert_close(outputs.cls, tokens_BxTxD[:, 0])
    assert_close(outputs.registers, tokens_BxTxD[:, 1:4])
    assert_close(outputs.patches, tokens_BxTxD[:, 4:])
    in_order = jnp.concatenate([outputs.cls[:, None], outputs.registers, outputs.patches], axis=1)
    assert_close(in_order, tokens_BxTxD)


def test_hidden_states_are_our_residual_taps(build, images, forward):
    config = transformers.Dinov2WithRegistersConfig(**SIZES, mlp_ratio=4, num_register_tokens=3)
    theirs = randomised(transformers.Dinov2WithRegistersModel(config))
    ours = build(**OURS, num_classes=0, num_registers=3, layer_scale_init=1.0)
    load(ours, dinov2_params(theirs))
    taps = forward(ours, images(2, (32, 32))).taps["resid"]
    with torch.no_grad():
        states = theirs(as_torch(images(2, (32, 32))), output_hidden_states=True).hidden_states
    assert len(taps) == len(states) == 4
    for tap, state in zip(taps, states, strict=True):
        assert_close(tap, state)
