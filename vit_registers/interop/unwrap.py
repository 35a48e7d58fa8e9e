"""Which network of a file is read: what stands before its names, and what is left out."""

import re
from collections.abc import Mapping

from vit_registers.errors import CheckpointError
from vit_registers.interop.containers import Weights
from vit_registers.interop.values import refuse_quantised

SOURCES = ("dinov2", "deit", "dino", "clip", "open_clip", "timm", "transformers", "big_vision", "mup_vit")

# The patch embedding, which every family has, says whose names these are; what stands before it is a prefix.
PATCH_NAMES = {
    "patch_embed.proj.weight": ("timm", "dinov2", "deit", "dino"),
    "conv1.weight": ("clip", "open_clip"),
    "embeddings.patch_embeddings.projection.weight": ("transformers",),
    "embeddings.patch_embedding.weight": ("transformers",),
    "conv_proj.weight": ("mup_vit",),
    "patchifier.weight": ("mup_vit",),
    "embedding/kernel": ("big_vision",),
}
# Of several networks in one file, the first of these is taken: DINO evaluates its teacher, DeiT its model.
_PREFERRED = ("teacher", "model", "state_dict", "", "module", "student", "model_ema")

# Heads of transformers stand outside the prefix of the encoder.
HEADS = re.compile(r"(visual_projection|classifier|cls_classifier|distillation_classifier)\.(weight|bias)")

# What is left out, with what it is: inside the network that is loaded, and beside it.
_UNUSED_INSIDE = {
    r"(head|dino_head|ibot_head)\.(mlp|last_layer|last_norm)2?\..*": "a self-supervision head",
    r"pooler\.dense\.(weight|bias)": "a pooler, which no classifier reads",
    r"(embeddings\.)?position_ids": "a buffer that follows from the shapes",
}
_UNUSED_BESIDE = {
    r"(head|dino_head|ibot_head|dino_loss|ibot_patch_loss|koleo_loss)\..*": "a self-supervision head or loss",
    r"(teacher|student|model|model_ema|state_dict)\..*": "another copy of the network",
    r"(optimizer|lr_scheduler|scheduler|scaler|fp16_scaler|amp|loss|dino_loss|ibot_loss)\..*|"
    r"(opt|chrono)/.*|best_acc1|epoch|step": "the state of training",
    r"(text_model|text|transformer|token_embedding|ln_final|text_projection)\..*|txt/.*": "the text tower",
    r"positional_embedding|text_projection|attn_mask|logit_scale|logit_bias|[tb]": "the text tower",
    r"input_resolution|context_length|vocab_size": "the text tower",
}


def find_patch(weights: Weights) -> tuple[str, str]:
    """(name of the patch embedding, what stands before it)."""
    found: dict[str, str] = {}
    for name in weights.shapes:
        for patch in PATCH_NAMES:
            prefix = name.removesuffix(patch)
            is_at_border = prefix == "" or prefix[-1] in "./"
            if name.endswith(patch) and is_at_border and len(weights.shapes[name]) == 4:
                if patch == "conv1.weight" and prefix + "class_embedding" not in weights.shapes:
                    continue
                found[prefix] = patch
    if not found:
        refuse_quantised(weights.dtypes, weights.where)  # a packed patch embedding has another shape
        first = ", ".join(list(weights.shapes)[:3]) or "no tensors"
        raise CheckpointError(
            f"{weights.where} holds no Vision Transformer that is known: there is no patch embedding among "
            f"its {len(weights.shapes)} tensors ({first} ...); known are {', '.join(SOURCES)}"
        )
    order = {name: i for i, name in enumerate(_PREFERRED)}
    rank = lambda prefix: min(order.get(part, len(order)) for part in re.split(r"[./]", prefix[:-1]))  # noqa: E731
    prefix = min(found, key=lambda p: (rank(p), len(p)))
    return found[prefix], prefix


def strip(weights: Weights, prefix: str) -> tuple[dict[str, str], dict[str, str]]:
    """Plain names, without `prefix`, of its tensors and of the heads -> names; and what is left out.

    What is neither keeps its name, and is later refused as one that has no place.
    """
    plain: dict[str, str] = {}
    left_out: dict[str, str] = {}
    root = re.match(r"((teacher|student|model|state_dict|module)\.)*(params/|opt/target/)?", prefix).group()
    for name in weights.shapes:
        inner, outer = name.removeprefix(prefix), name.removeprefix(root)
        if name.startswith(prefix):
            what = _search(_UNUSED_INSIDE, inner)
        else:
            is_head = HEADS.fullmatch(outer)
            inner = outer if is_head else name
            what = None if is_head else _search(_UNUSED_BESIDE, outer) or _search(_UNUSED_BESIDE, name)
        if what:
            left_out[name] = what
        else:
            plain[inner] = name
    return _unchunked(plain), left_out


def _search(patterns: Mapping[str, str], name: str) -> str | None:
    return next((what for pattern, what in patterns.items() if re.fullmatch(pattern, name)), None)


def _unchunked(names: dict[str, str]) -> dict[str, str]:
    """blocks.<chunk>.<i>.x of DINOv2's training checkpoints as blocks.<i>.x; i counts all blocks."""
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): old for name, old in names.items()}
