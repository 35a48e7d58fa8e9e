"""The tensor names of RADIO and C-RADIO: of NVlabs/RADIO, of its models on the Hub, of transformers 5.24."""

import dataclasses
from collections.abc import Collection

from vit_registers.interop.names.dinov2_timm_clip import TorchNames


@dataclasses.dataclass(frozen=True, kw_only=True)
class RadioNames(TorchNames):
    """The tensor names of one variant. The tensor `cls` holds registers too, and `patch` has two axes."""

    cls_axes: int = 2


_RADIO = RadioNames(
    patch="patch_generator.embedder.{}",
    cls="patch_generator.cls_token.token",
    positions="patch_generator.pos_embed",
    mask_token="mask_token",  # of models that began as DINOv2
    head=None,
)
_IN_MEMORY = dataclasses.replace(  # of transformers, whose files have the names above
    _RADIO,
    patch="embeddings.patch_projection.{}",
    cls="embeddings.cls_register_token",
    positions="embeddings.position_embedding",
    block="encoder.layer.{}.",
    qkv=tuple(f"attention.{x}_proj.{{}}" for x in "qkv"),
    out="attention.o_proj.{}",
)
RADIO_PATCHES = tuple(table.patch.format("weight") for table in (_RADIO, _IN_MEMORY))
_SCALES = (("ls1.grandma", "ls2.grandma"), ("layer_scale1.lambda1", "layer_scale2.lambda1"))
_GATED = ((("mlp.w12.{}",), "mlp.w3.{}"), (("mlp.gate_proj.{}", "mlp.up_proj.{}"), "mlp.down_proj.{}"))


def radio_names(names: Collection[str]) -> RadioNames:
    """The names of the variant that the tensors `names` are of."""
    table = _IN_MEMORY if RADIO_PATCHES[1] in names else _RADIO
    block = table.block.format(0)
    for scale in _SCALES:
        if block + scale[0] in names:
            table = dataclasses.replace(table, layer_scale=scale)
    for first, last in _GATED:
        if block + first[0].format("weight") in names:
            table = dataclasses.replace(table, w12=first, w3=last)
    return table
