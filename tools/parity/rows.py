"""The rows of the parity table: a model of another library, and how both give outputs. One line each in ROWS.

`transformers` and `timm` make a row of a class or of an architecture. Its model is tiny and random, is
written to a folder by its library, and is loaded from there. Outputs are compared by the names of `Outputs`:
all tokens, the pooled vector and the answer, as far as their model has them.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tools.parity import libraries
from tools.parity.dinov3_names import original
from vit_registers.interop import reading
from vit_registers.interop.hints import Hints
from vit_registers.models.vit import Outputs, ViT

Given = dict[str, np.ndarray]  # some of "tokens", "pooled" and "logits"
Size = tuple[int, int]
SIZES: tuple[Size, ...] = ((32, 32), (24, 56))  # of the positions in the file, and another


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A model of another library."""

    family: str
    source: str  # the library, as in vit_registers.load
    name: str  # of the class or architecture
    make: Callable[[], Any]
    write: Callable[[Any, Path], None]  # into a folder, as the library does
    run: Callable[[Any, np.ndarray], Given]  # their outputs for images_BxHxWxC
    hints: dict[str, Any] = dataclasses.field(default_factory=dict)
    sizes: tuple[Size, ...] = SIZES

    def load(self, theirs: Any) -> ViT:
        """Ours, from the folder that the library writes."""
        with tempfile.TemporaryDirectory() as folder:
            self.write(theirs, Path(folder))
            opened = reading.open_path(folder, source="auto", hints=Hints(**self.hints))
            return reading.load_opened(opened)


def images(size: Size, batch: int = 2) -> np.ndarray:
    """Normal noise as images_BxHxWxC."""
    return np.random.default_rng(0).normal(size=(batch, *size, 3)).astype(np.float32)


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def _forward(model: ViT, images: jax.Array) -> Outputs:
    return model(images)


def ours_at(model: ViT, size: Size) -> Given:
    """The outputs of ours."""
    outputs = _forward(model, jnp.asarray(images(size)))
    first = (None if outputs.cls is None else outputs.cls[:, None], outputs.registers, outputs.patches)
    given = {"tokens": np.concatenate([group for group in first if group is not None], axis=1)}
    given |= {"pooled": np.asarray(outputs.pooled)}
    return given if outputs.logits is None else given | {"logits": np.asarray(outputs.logits)}


def error(ours: Given, theirs: Given) -> float:
    """The largest difference of an output, relative to the largest of its numbers."""
    shares = [float(np.abs(ours[name] - array).max() / np.abs(array).max()) for name, array in theirs.items()]
    return max(shares)


def errors(row: Row) -> list[float]:
    """The errors of a row at its image sizes. Raises the errors of loading."""
    theirs = row.make()
    ours = row.load(theirs)
    return [error(ours_at(ours, size), row.run(theirs, images(size))) for size in row.sizes]


# --- how libraries write and run ---------------------------------------------------------------------------


def _arrays(**tensors: Any) -> Given:
    return {name: tensor.detach().numpy() for name, tensor in tensors.items() if tensor is not None}


def _channels_first(images: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2)


_TOWERS = ("dinov2", "dinov2_with_registers", "vit", "deit", "ijepa", "vision_model")  # within models


def _run_transformers(theirs: Any, images: np.ndarray) -> Given:
    """Tokens, CLIP's and SigLIP's pooled vector, and the answer of a classifier or projection."""
    import torch

    kind = theirs.config.model_type
    arguments = {} if "dino" in kind or kind in _WITHOUT_ARGUMENT else {"interpolate_pos_encoding": True}
    tower = next((getattr(theirs, name) for name in _TOWERS if hasattr(theirs, name)), theirs)
    if kind == "vit_mae":  # in the order of the noise, nothing is masked at mask_ratio=0
        count = images.shape[1] * images.shape[2] // theirs.config.patch_size**2
        arguments["noise"] = torch.arange(count).float().expand(len(images), -1)
    x = _channels_first(images)
    if kind == "radio":  # normalises images itself
        x = x * theirs.input_conditioner.norm_std + theirs.input_conditioner.norm_mean
    with torch.no_grad():
        encoded = tower(x, **arguments)
        is_pooled = any(part in kind for part in ("clip", "siglip"))
        given = _arrays(
            tokens=encoded.last_hidden_state,
            pooled=encoded.pooler_output if is_pooled else None,
            logits=theirs.visual_projection(encoded.pooler_output)
            if hasattr(theirs, "visual_projection")
            else None,
        )
        if hasattr(theirs, "classifier") or hasattr(theirs, "cls_classifier"):
            given |= _arrays(logits=theirs(x, **arguments).logits)
    return given


_WITHOUT_ARGUMENT = ("radio",)


def _run_timm(theirs: Any, images: np.ndarray) -> Given:
    import torch

    with torch.no_grad():
        features = theirs.forward_features(_channels_first(images))
        answer = theirs.forward_head(features) if theirs.num_classes else None
        if hasattr(theirs, "head_dist"):  # its pooled vectors are two
            return _arrays(tokens=features, logits=answer)
        pooled = theirs.forward_head(features, pre_logits=True)
    return _arrays(tokens=features, pooled=pooled, logits=answer)


def _write_transformers(theirs: Any, folder: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    theirs.save_pretrained(folder)


def transformers(family: str, kind: str, *, sizes: tuple[Size, ...] = SIZES, **settings: Any) -> Row:
    """A row of a class of transformers. `settings` are those of its config."""
    return Row(
        family=family,
        source="transformers",
        name=kind,
        make=lambda: libraries.hf_model(kind, **settings),
        write=_write_transformers,
        run=_run_transformers,
        sizes=sizes,
    )


def dinov3(family: str, **settings: Any) -> Row:
    """A row of a file by the names of DINOv3's code, whose layers are those of transformers' model."""
    sizes = {"num_attention_heads": 2, "num_register_tokens": 4}

    def write(theirs: Any, folder: Path) -> None:
        from safetensors.numpy import save_file

        state = {name: np.ascontiguousarray(array) for name, array in original(theirs).items()}
        save_file(state, folder / "model.safetensors")

    return dataclasses.replace(
        transformers(family, "DINOv3ViTModel", **sizes | settings),
        source="dinov3",
        name="DinoVisionTransformer",
        write=write,
        hints={"image_size": SIZES[0]},
    )


def timm(family: str, name: str, *, sizes: tuple[Size, ...] = SIZES, **arguments: Any) -> Row:
    """A row of an architecture of timm. `arguments` are those of its constructor, and are in config.json."""
    written = {"num_heads": 4, "img_size": 32} | arguments

    def write(theirs: Any, folder: Path) -> None:
        save = libraries.import_timm().models.save_for_hf
        save(theirs, folder, model_args=written, safe_serialization=True)

    return Row(
        family=family,
        source="timm",
        name=name,
        make=lambda: libraries.timm_model(name, **arguments),
        write=write,
        run=_run_timm,
        sizes=sizes,
    )


# --- the table ------------------------------------------------------------------------------------------

_MAE_DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
_RADIO = {"max_img_size": 64, "num_cls_tokens": 2, "num_registers": 3, "image_size": 64}
_RADIO |= {"sizes": ((64, 64), (24, 56))}

ROWS: tuple[Row, ...] = (
    transformers("ViT", "ViTModel"),
    transformers("ViT, classifier", "ViTForImageClassification", num_labels=5),
    transformers("DeiT, distilled", "DeiTForImageClassificationWithTeacher", num_labels=5),
    transformers("DINOv2", "Dinov2Model"),
    transformers("DINOv2, SwiGLU", "Dinov2Model", use_swiglu_ffn=True),
    transformers("DINOv2 with registers", "Dinov2WithRegistersModel", num_register_tokens=3),
    transformers("DINOv3", "DINOv3ViTModel", num_register_tokens=4),
    transformers(
        "DINOv3, gated", "DINOv3ViTModel", num_register_tokens=4, use_gated_mlp=True, hidden_act="silu"
    ),
    dinov3("DINOv3, own names"),
    dinov3("DINOv3, own names, gated", use_gated_mlp=True, hidden_act="silu"),
    transformers("CLIP", "CLIPVisionModelWithProjection"),
    transformers("CLIP, image tower", "CLIPModel"),
    transformers("SigLIP", "SiglipVisionModel"),
    transformers("SigLIP, image tower", "SiglipModel"),
    transformers("SigLIP 2 of one size", "SiglipVisionModel", image_size=24, sizes=((24, 24), (32, 48))),
    transformers("MetaCLIP 2", "MetaClip2VisionModelWithProjection"),
    transformers("MetaCLIP 2, image tower", "MetaClip2Model"),
    transformers("MAE", "ViTMAEModel", mask_ratio=0.0),
    transformers("MAE, encoder", "ViTMAEForPreTraining", mask_ratio=0.0, **_MAE_DECODER),
    transformers("MSN", "ViTMSNModel"),
    transformers("MSN, classifier", "ViTMSNForImageClassification", num_labels=5),
    transformers("I-JEPA", "IJepaModel"),
    transformers("I-JEPA, classifier", "IJepaForImageClassification", num_labels=5),
    transformers("RADIO", "RadioModel", **_RADIO),
    transformers("RADIO, SwiGLU", "RadioModel", use_swiglu_ffn=True, **_RADIO),
    timm("RADIO", "vit_base_patch16_radio_v3", num_classes=0),
    timm("InternViT 300M", "vit_intern300m_patch14_448", num_classes=0),
    timm("BEiT-3", "beit3_base_patch16_224"),
    timm("ViT (AugReg)", "vit_small_patch16_224"),
    timm("DeiT, distilled", "deit_small_distilled_patch16_224"),
    timm("DeiT-III", "deit3_small_patch16_224"),
    timm("DINOv2", "vit_small_patch14_dinov2", num_classes=0),
    timm("DINOv2 with registers", "vit_small_patch14_reg4_dinov2"),
    timm("DINOv2 with registers, giant", "vit_giant_patch14_reg4_dinov2"),
    timm("DINOv3", "vit_small_patch16_dinov3_qkvb", num_classes=0),
    timm("DINOv3, gated", "vit_small_plus_patch16_dinov3", num_classes=0),
    timm("CLIP", "vit_base_patch16_clip_224"),
    timm("CLIP, quick GELU", "vit_base_patch16_clip_quickgelu_224"),
    timm("SigLIP", "vit_base_patch16_siglip_224", num_classes=0),
    timm("registers, mean of patches", "vit_medium_patch16_reg4_gap_256"),
    timm("registers with positions", "vit_so150m_patch16_reg4_gap_256"),
    timm("registers, attention pooling", "vit_so150m_patch16_reg4_map_256"),
    timm("EVA", "eva_giant_patch14_224"),
    timm("EVA-02", "eva02_base_patch14_448"),
    timm("EVA-02, packed SwiGLU", "eva02_tiny_patch14_224"),
    timm("EVA-02 CLIP", "eva02_base_patch16_clip_224"),
    timm("Perception Encoder, core", "vit_pe_core_base_patch16_224"),
    timm("Perception Encoder, core, no cls", "vit_pe_core_gigantic_patch14_448"),
    timm("Perception Encoder, lang", "vit_pe_lang_large_patch14_448", num_classes=0),
    timm("Perception Encoder, spatial", "vit_pe_spatial_base_patch16_512", num_classes=0),
    timm("axial rotary positions", "vit_small_patch16_rope_224"),
    timm("axial rotary positions, table", "vit_small_patch16_rope_ape_224"),
    timm("learned rotary positions", "vit_small_patch16_rope_mixed_224"),
    timm("learned rotary positions, table", "vit_small_patch16_rope_mixed_ape_224"),
    timm("rotary positions, registers", "vit_betwixt_patch16_rope_reg4_gap_256"),
    timm("rotary positions, registers, no bias", "vit_mediumd_patch16_rope_reg1_gap_256"),
)
