"""Tensors of a file that are not loaded: heads of self-supervision, text towers, the state of training."""

import re
from collections.abc import Collection, Iterable, Mapping

# Patterns of names -> what the tensors are: inside the network that is loaded, and outside.
_UNUSED_INSIDE = {
    # Not head.mlp.fc1 and fc2, which are of SigLIP's attention pooling.
    r"(head|dino_head|ibot_head)\.(?!mlp\.fc)(mlp|last_layer|last_norm)2?\..*": "a self-supervision head",
    r"pooler\.dense\.(weight|bias)": "a pooler, which no classifier reads",
    r"local_cls_norm\.(weight|bias)": "a norm of local crops in training",  # of DINOv3
    r"lm_head\.(weight|bias)": "a self-supervision head",  # of EVA-02
    r"blocks\.\d+\.attn\.rope\.freqs_(cos|sin)": "a copy of the table of rotary positions",
    r"(embeddings\.)?position_ids": "a buffer that follows from the shapes",
    r"n_averaged|initted|decay|num_updates": "the state of training",
}
TEXT_TOWER = "the text tower"
IMAGE_PROJECTION = "the projection of images"  # of OpenCLIP, beside image towers of timm
_DECODER = {r"decoder_.*|mask_token|decoder\.(mask_token|decoder_.*)": "the decoder of a masked autoencoder"}
_PROJECTION = {r"head\.\d+\..*|predictor\..*|queue|queue_ptr": "a self-supervision head"}
TRAINING_STATE = {
    r"(optim\w*|\w*scheduler\w*|\w*scaler\w*|amp|loss|dino_loss|ibot_loss|callbacks|loops|\w*rng_state\w*)\..*|"
    r"(opt|chrono)/.*|best_acc1|epoch|step|global_step|iteration": "the state of training",
}
_UNUSED_BESIDE = {
    r"(head\.(mlp|last_layer|last_norm)2?|dino_head|ibot_head|dino_loss|ibot_patch_loss|koleo_loss)\..*": (
        "a self-supervision head or loss"
    ),
    r"(teacher|student|model|model_ema|state_dict|state_dict_ema)\..*": "another copy of the network",
    **TRAINING_STATE,
    r"(text_model|text|transformer|token_embedding|ln_final|text_projection)\..*|txt/.*": TEXT_TOWER,
    r"positional_embedding|text_projection|attn_mask|logit_scale|logit_bias|[tb]": TEXT_TOWER,
    r"input_resolution|context_length|vocab_size": TEXT_TOWER,
    r"visual\.head\.proj\.(weight|bias)": IMAGE_PROJECTION,
}
_RADIO = {
    r"(radio_model\.)?adaptors\..*|_(heads|feature_projections)\..*": "adaptor heads of teachers",
    r"(radio_model\.)?input_conditioner\.norm_(mean|std)": "the normalisation of images",
    r"(radio_model\.)?(inter_)?feature_normalizer\..*": "the normalisation of features",
    r"(radio_model\.)?summary_idxs": "the numbers of the summary tokens",
    r"(patch_generator\.video_embedder|embeddings\.video_patch_projection)\..*": "patch embeddings of videos",
}
_CONTRASTIVE = {"base_encoder", "momentum_encoder", "encoder_q", "encoder_k"}  # of MoCo


def unused_patterns(
    names: Iterable[str], prefix: str, parts: Collection[str], *, has_copies: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """Patterns of tensor names that are not loaded -> what they are: inside the network, and outside.

    `names` are all names of the file, `prefix` and its `parts` lead to the network, and `has_copies` says
    whether the file has other copies of it.
    """
    inside, beside = _RADIO | _UNUSED_INSIDE, _RADIO | _UNUSED_BESIDE
    if not prefix:
        inside |= TRAINING_STATE
    if any(re.search(r"(^|\.)decoder_(embed|blocks|layers)\.", name) for name in names):
        inside, beside = _DECODER | inside, _DECODER | beside
    if not _CONTRASTIVE.isdisjoint(parts) or (has_copies and "target_encoder" in parts):
        inside, beside = _PROJECTION | inside, _PROJECTION | beside
    return inside, beside


def search(patterns: Mapping[str, str], name: str) -> str | None:
    """What the first pattern that matches the whole name says it is; None if none does."""
    return next((what for pattern, what in patterns.items() if re.fullmatch(pattern, name)), None)
