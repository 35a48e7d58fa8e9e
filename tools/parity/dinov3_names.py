"""DINOv3 by the names of its own code, from a model of transformers, which has the same layers."""

from typing import Any

import numpy as np


def _periods(theirs: Any) -> np.ndarray:
    """The periods of the rotation, which files of the original code have."""
    return (1 / theirs.rope_embeddings.inv_freq).numpy()


_OWN = {"embeddings.register_tokens": "storage_tokens", "embeddings.cls_token": "cls_token"}
_OWN |= {"embeddings.mask_token": "mask_token"}
_PARTS = {
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.gate_proj": "mlp.w1",
}


def original(theirs: Any) -> dict[str, np.ndarray]:
    """The tensors of a model of transformers by the names of DINOv3's own code, with its masked bias."""
    state = {name.removeprefix("model."): value.numpy() for name, value in theirs.state_dict().items()}
    is_gated = theirs.config.use_gated_mlp
    parts = _PARTS | ({"mlp.up_proj": "mlp.w2", "mlp.down_proj": "mlp.w3"} if is_gated else {})
    parts |= {} if is_gated else {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}
    there = {"rope_embed.periods": _periods(theirs)}
    for name, value in state.items():
        if name in _OWN:
            there[_OWN[name]] = value[0] if "mask" in name else value
        elif name.startswith("layer."):
            if not any(f".{x}_proj." in name and "attention" in name for x in "qkv"):
                for old, new in parts.items():
                    name = name.replace(old, new)
                there[name.replace("layer.", "blocks.", 1)] = value
        else:
            there[name.replace("embeddings.patch_embeddings", "patch_embed.proj")] = value
    for i in range(theirs.config.num_hidden_layers):
        at = f"layer.{i}.attention."
        there[f"blocks.{i}.attn.qkv.weight"] = np.concatenate([state[f"{at}{x}_proj.weight"] for x in "qkv"])
        if theirs.config.query_bias:
            query, value = (state[f"{at}{x}_proj.bias"] for x in "qv")
            key = np.random.default_rng(i).normal(size=query.shape).astype(np.float32)  # which the mask hides
            there[f"blocks.{i}.attn.qkv.bias"] = np.concatenate([query, key, value])
            mask = np.concatenate([np.ones_like(query), np.zeros_like(key), np.ones_like(value)])
            there[f"blocks.{i}.attn.qkv.bias_mask"] = mask
    return there
