"""The tensor names of text towers, and of what joins them to the image towers of the same files."""

import dataclasses
from collections.abc import Collection

import numpy as np

from vit_registers.config import Model, Text
from vit_registers.errors import CheckpointError
from vit_registers.interop.names.big_vision import big_vision_dense, big_vision_encoder
from vit_registers.interop.names.dinov2_timm_clip import CLIP, HF_CLIP, BigVisionNames, TorchNames
from vit_registers.interop.names.torch_map import torch_block, torch_linear, torch_norm
from vit_registers.interop.tensor_map import Arrays, TensorRule, fixed, same
from vit_registers.models.blocks import dims
from vit_registers.models.paths import Leaf
from vit_registers.models.text.tower import block_settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextNames:
    """The tensor names of one family. The defaults are OpenAI's and OpenCLIP's."""

    tokens: str = "token_embedding.weight"
    positions: str = "positional_embedding"
    position_axes: int = 2
    layers: TorchNames | BigVisionNames  # the blocks, and the norm after them
    projection: str = "text_projection"  # [outputs, width] if the name has {}, else [width, outputs]
    logit_scale: str = "logit_scale"
    logit_bias: str = "logit_bias"
    scalar_axes: int = 0  # of these two
    image_proj: str = "visual.head.proj.{}"  # beside image towers of timm; others have it as a head
    is_siglip: bool = False  # pools the last token, without a causal mask

    def within(self, module: str) -> "TextNames":
        """The names of the tower as a module of the model."""
        assert isinstance(self.layers, TorchNames)
        at = lambda name: f"{module}.{name}"  # noqa: E731
        layers = dataclasses.replace(self.layers, block=at(self.layers.block), norm=at(self.layers.norm))
        return dataclasses.replace(
            self,
            layers=layers,
            tokens=at(self.tokens),
            positions=at(self.positions),
            projection=at(self.projection),
        )

    def with_linear_projection(self) -> "TextNames":
        """The names with a layer as the projection, which may have a bias, instead of a matrix."""
        return dataclasses.replace(self, projection=self.projection + ".{}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joint:
    """What joins the two towers in a file, besides the scale, and is no head of the image tower."""

    has_logit_bias: bool = False
    image_width: int | None = None  # of what the projection of images reads; None: it has no place here
    has_image_proj_bias: bool = False


OPEN_CLIP = TextNames(layers=dataclasses.replace(CLIP, norm="ln_final.{}"))
_HF = TextNames(
    tokens="embeddings.token_embedding.weight",
    positions="embeddings.position_embedding.weight",
    layers=dataclasses.replace(HF_CLIP, norm="final_layer_norm.{}"),
    projection="head.{}",
).within("text_model")
HF_CLIP_TEXT = dataclasses.replace(_HF, projection="text_projection.{}")
HF_SIGLIP_TEXT = dataclasses.replace(_HF, scalar_axes=1, is_siglip=True)
BIG_VISION_TEXT = TextNames(
    tokens="txt/Embed_0/embedding",
    positions="txt/pos_embedding",
    position_axes=3,
    layers=BigVisionNames(encoder="txt/Encoder_0"),
    projection="txt/head",
    logit_scale="t",
    logit_bias="b",
    scalar_axes=1,
    is_siglip=True,
)
_SCANNED = dataclasses.replace(BIG_VISION_TEXT.layers, is_scanned=True)
# Numbers in OpenAI's files that follow from the settings.
_NUMBERS = ("input_resolution", "context_length", "vocab_size")


def recognize_text(family: str, names: Collection[str], where: str) -> TextNames:
    """The names of the text tower beside an image tower of that family. `names` are those of its tensors.

    Raises CheckpointError if there is no text tower, or one that is not known.
    """
    if family == "transformers/clip":
        found = HF_CLIP_TEXT
    elif family == "transformers/siglip":
        found = HF_SIGLIP_TEXT
    elif family == "big_vision":
        is_scanned = any(name.startswith("txt/Encoder_0/encoderblock/") for name in names)
        layers = _SCANNED if is_scanned else BIG_VISION_TEXT.layers
        found = dataclasses.replace(BIG_VISION_TEXT, layers=layers)
    else:
        is_module = any(name.startswith("text.") for name in names)
        found = OPEN_CLIP.within("text") if is_module else OPEN_CLIP
        if found.projection + ".weight" in names:
            # Of OpenCLIP's models, only SigLIP's have these biases.
            is_siglip = {found.projection + ".bias", found.logit_bias} <= set(names)
            found = dataclasses.replace(found.with_linear_projection(), is_siglip=is_siglip)
    if found.tokens not in names:
        what = (
            f"a text tower of another kind: it lacks '{found.tokens}', and has {sorted(names)[0]}"
            if names
            else "no text tower"
        )
        raise CheckpointError(f"{where} has {what}; vit_registers.load loads its image tower")
    return found


def text_map(names: TextNames, text: Text, joint: Joint, *, source: str) -> list[TensorRule]:
    """The rules for all parameters under "text", and for those of `joint`.

    Raises CheckpointError if the family `source` lacks a part of them.
    """
    model = block_settings(text)
    rules = [
        same(("token_embed", "embedding"), names.tokens),
        same(("pos_embed",), names.positions, lead=names.position_axes),
    ]
    if isinstance(names.layers, BigVisionNames):
        if not text.has_projection_bias:
            raise CheckpointError(f"'{source}' checkpoints have no place for a projection without bias")
        rules += big_vision_encoder(names.layers, dims(model).depth)
        rules += big_vision_dense(("proj",), names.projection)
    else:
        rules += _torch_tower(names, names.layers, text, model, source)
    rules = [
        dataclasses.replace(rule, leaves=tuple(("text", *leaf) for leaf in rule.leaves)) for rule in rules
    ]
    rules.append(_scalar(("logit_scale",), names.logit_scale, names.scalar_axes))
    if joint.has_logit_bias:
        rules.append(_scalar(("logit_bias",), names.logit_bias, names.scalar_axes))
    if joint.image_width is not None:
        leaf, width = ("image_proj",), joint.image_width
        rules += torch_linear(leaf, (names.image_proj,), inputs=width, has_bias=joint.has_image_proj_bias)
    return rules


def _torch_tower(
    names: TextNames, layers: TorchNames, text: Text, model: Model, source: str
) -> list[TensorRule]:
    sizes = dims(model)
    blocks = [torch_block(layers, model, i, source) for i in range(sizes.depth)]
    rules = [rule for block in blocks for rule in block] + torch_norm(("norm",), layers.norm)
    if "{}" in names.projection:
        return rules + torch_linear(
            ("proj",), (names.projection,), inputs=sizes.width, has_bias=text.has_projection_bias
        )
    if text.has_projection_bias:
        raise CheckpointError(f"'{source}' checkpoints have no place for a projection with bias")
    return [*rules, same(("proj", "kernel"), names.projection)]


def _scalar(leaf: Leaf, name: str, axes: int) -> TensorRule:
    """A number: the leaf has no axis, the tensor `axes` of size 1."""

    def dump(leaves: Arrays) -> Arrays:
        return [leaves[0].reshape((1,) * axes)]

    return TensorRule((leaf,), (name,), lambda arrays, shapes: [arrays[0].reshape(())], dump)


def openai_numbers(text: Text, image_size: tuple[int, int]) -> list[TensorRule]:
    """The rules of the numbers that OpenAI's files have beside the parameters."""
    values = (image_size[0], text.context, text.vocab_size)
    return [fixed(name, np.array(value)) for name, value in zip(_NUMBERS, values, strict=True)]
