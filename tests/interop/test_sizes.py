"""The published models at full size, by the names and shapes of their tensors alone: nothing is read."""

import math

import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from vit_registers.interop import containers, reading
from vit_registers.interop.hints import Hints
from vit_registers.models.blocks import dims
from vit_registers.models.params import abstract_model
from vit_registers.models.paths import leaves_of


def both(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def stem(width, patch, cells, **more):
    """What DINOv2, DeiT-III and their kin begin and end with; `more` tensors besides."""
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, cells, width)} | both("norm", width)
    return shapes | both("patch_embed.proj", width, 3, patch, patch) | more


def timm_block(i, width, layers, scales):
    at = f"blocks.{i}."
    shapes = {f"{at}{name}": (width,) for name in scales}
    for name in ("norm1", "norm2"):
        shapes |= both(at + name, width)
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)} | layers
    for name, shape in layers.items():
        shapes |= both(at + name, *shape)
    return shapes


def dinov2(width, depth, registers=0, swiglu=None):
    layers = {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    if swiglu:
        layers = {"mlp.w12": (2 * swiglu, width), "mlp.w3": (width, swiglu)}
    more = {"mask_token": (1, width)}
    more |= {"register_tokens": (1, registers, width)} if registers else {}
    shapes = stem(width, 14, 1 + 37 * 37, **more)
    for i in range(depth):
        shapes |= timm_block(i, width, layers, ("ls1.gamma", "ls2.gamma"))
    return shapes


def deit3(width, depth, patch, registers=0):
    layers = {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    more = both("head", 1000, width) | ({"reg_tokens": (1, registers, width)} if registers else {})
    shapes = stem(width, patch, (224 // patch) ** 2, **more)
    for i in range(depth):
        shapes |= timm_block(i, width, layers, ("gamma_1", "gamma_2"))
    return shapes


def clip(width, depth, heads, hidden, patch, size, out):
    cells = (size // patch) ** 2
    shapes = {"visual.conv1.weight": (width, 3, patch, patch), "visual.class_embedding": (width,)}
    shapes |= {"visual.positional_embedding": (1 + cells, width), "visual.proj": (width, out)}
    shapes |= both("visual.ln_pre", width) | both("visual.ln_post", width)
    for i in range(depth):
        at = f"visual.transformer.resblocks.{i}."
        shapes |= {f"{at}attn.in_proj_weight": (3 * width, width), f"{at}attn.in_proj_bias": (3 * width,)}
        shapes |= (
            both(f"{at}attn.out_proj", width, width) | both(f"{at}ln_1", width) | both(f"{at}ln_2", width)
        )
        shapes |= both(f"{at}mlp.c_fc", hidden, width) | both(f"{at}mlp.c_proj", width, hidden)
    return shapes


def big_vision(pre_logits=False, width=384, depth=12, hidden=1536, head=(6, 64)):
    """S/16 with fixed positions, which are not in the file."""
    layers = {"embedding": (16, 16, 3, width), "head": (width, 1000)}
    layers |= {"pre_logits": (width, width)} if pre_logits else {}
    norms = ["Transformer/encoder_norm"]
    for i in range(depth):
        at = f"Transformer/encoderblock_{i}"
        attention, mlp = f"{at}/MultiHeadDotProductAttention_0", f"{at}/MlpBlock_0"
        layers |= {f"{attention}/out": (*head, width)}
        layers |= {f"{mlp}/Dense_0": (width, hidden), f"{mlp}/Dense_1": (hidden, width)}
        layers |= {f"{attention}/{part}": (width, *head) for part in ("query", "key", "value")}
        norms += [f"{at}/LayerNorm_0", f"{at}/LayerNorm_1"]
    shapes = {f"{name}/kernel": shape for name, shape in layers.items()}
    shapes |= {
        f"{name}/bias": shape[1:] if shape[1:] == head else shape[-1:] for name, shape in layers.items()
    }
    return shapes | {f"{name}/{part}": (width,) for name in norms for part in ("scale", "bias")}


def clip_count(width, depth, heads, hidden, patch, size, out):
    """Parameters of CLIP's image tower, summed by hand."""
    attention = 4 * width * width + 4 * width
    mlp = 2 * width * hidden + hidden + width
    blocks = depth * (attention + mlp + 4 * width)
    return blocks + 3 * patch**2 * width + width * (2 + (size // patch) ** 2) + 4 * width + width * out


# name -> (width, depth, heads, MLP, patch, image side, outputs), as published
CLIPS = {
    "CLIP B/32": (768, 12, 12, 3072, 32, 224, 512),
    "CLIP B/16": (768, 12, 12, 3072, 16, 224, 512),
    "CLIP L/14": (1024, 24, 16, 4096, 14, 224, 768),
    "CLIP L/14 336 px": (1024, 24, 16, 4096, 14, 336, 768),
    "OpenCLIP H/14": (1280, 32, 1280 // 80, 5120, 14, 224, 1024),
    "OpenCLIP g/14": (1408, 40, 1408 // 88, int(1408 * 4.3637), 14, 224, 1024),
    "OpenCLIP bigG/14": (1664, 48, 1664 // 104, int(1664 * 4.9231), 14, 224, 1280),
}
# name -> (source, tensors, parameters, (width, depth, heads, MLP, patch, image side)), as published
PUBLISHED = {
    "DINOv2 S/14": ("dinov2", dinov2(384, 12), 22_056_576, (384, 12, 6, 1536, 14, 518)),
    "DINOv2 S/14 reg4": ("dinov2", dinov2(384, 12, 4), 22_058_112, (384, 12, 6, 1536, 14, 518)),
    "DINOv2 B/14": ("dinov2", dinov2(768, 12), 86_580_480, (768, 12, 12, 3072, 14, 518)),
    "DINOv2 B/14 reg4": ("dinov2", dinov2(768, 12, 4), 86_583_552, (768, 12, 12, 3072, 14, 518)),
    "DINOv2 L/14": ("dinov2", dinov2(1024, 24), 304_368_640, (1024, 24, 16, 4096, 14, 518)),
    "DINOv2 L/14 reg4": ("dinov2", dinov2(1024, 24, 4), 304_372_736, (1024, 24, 16, 4096, 14, 518)),
    "DINOv2 g/14": ("dinov2", dinov2(1536, 40, 0, 4096), 1_136_480_768, (1536, 40, 24, 4096, 14, 518)),
    "DINOv2 g/14 reg4": ("dinov2", dinov2(1536, 40, 4, 4096), 1_136_486_912, (1536, 40, 24, 4096, 14, 518)),
    "DeiT-III Ti/16": ("deit", deit3(192, 12, 16), 5_721_832, (192, 12, 3, 768, 16, 224)),
    "DeiT-III S/16": ("deit", deit3(384, 12, 16), 22_059_496, (384, 12, 6, 1536, 16, 224)),
    "DeiT-III S/16 reg4": ("deit", deit3(384, 12, 16, 4), 22_061_032, (384, 12, 6, 1536, 16, 224)),
    "DeiT-III B/16": ("deit", deit3(768, 12, 16), 86_585_320, (768, 12, 12, 3072, 16, 224)),
    "DeiT-III L/16": ("deit", deit3(1024, 24, 16), 304_374_760, (1024, 24, 16, 4096, 16, 224)),
    "DeiT-III H/14": ("deit", deit3(1280, 32, 14), 632_126_440, (1280, 32, 16, 5120, 14, 224)),
    "big_vision S/16": ("big_vision", big_vision(), 21_974_632, (384, 12, 6, 1536, 16, 224)),
    "big_vision S/16 MLP head": ("big_vision", big_vision(True), 22_122_472, (384, 12, 6, 1536, 16, 224)),
}
for _name, _sizes in CLIPS.items():
    _source = "open_clip" if _name.startswith("Open") else "clip"
    PUBLISHED[_name] = (_source, clip(*_sizes), clip_count(*_sizes), _sizes[:-1])


@pytest.fixture
def opened(monkeypatch):
    """opened(source, shapes, settings, **hints): the OpenedWeights of tensors that must not be read."""

    def refuse(weights, name):
        raise AssertionError(f"{name} was read")

    def opened(source, shapes, settings=None, **hints):
        state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
        weights = containers.from_arrays(state)
        monkeypatch.setattr(containers.Weights, "__getitem__", refuse)
        return reading.understand(weights, source=source, hints=Hints(**hints), settings=settings)

    return opened


@parametrize_quick("name", PUBLISHED)
def test_published_models_are_inferred_at_full_size(name, opened):
    source, shapes, published, expected = PUBLISHED[name]
    hints = {"image_size": (224, 224)} if source == "big_vision" else {}  # sincos2d: not in the tensors
    model = opened(source, shapes, **hints).model
    sizes = dims(model)
    found = (sizes.width, sizes.depth, sizes.num_heads, sizes.mlp_dim, model.patch_size, model.image_size[0])
    assert found == expected and model.image_size[1] == model.image_size[0]
    assert sizes.mlp == ("swiglu" if "g/14" in name and "DINOv2" in name else "mlp")
    assert model.num_registers == (4 if "reg4" in name else 0)
    leaves = leaves_of(abstract_model(model)[1]).values()
    assert sum(math.prod(leaf.shape) for leaf in leaves) == published
    assert sum(math.prod(shape) for shape in shapes.values()) == published


@pytest.mark.parametrize("name", CLIPS)
def test_clip_has_as_many_parameters_in_transformers(name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    width, depth, heads, hidden, patch, size, out = CLIPS[name]
    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=hidden,
        patch_size=patch,
        image_size=size,
        projection_dim=out,
    )
    with torch.device("meta"):
        tower = transformers.CLIPVisionModelWithProjection(config)
    assert sum(parameter.numel() for parameter in tower.parameters()) == clip_count(*CLIPS[name])


@pytest.mark.parametrize("name", [name for name in CLIPS if name.startswith("Open")])
def test_the_config_of_open_clip_has_the_same_heads(name, opened):
    width, _, heads, *others, out = CLIPS[name]
    vision = {"image_size": 224, "layers": 1, "width": width, "head_width": width // heads, "patch_size": 14}
    settings = {"model_cfg": {"embed_dim": out, "vision_cfg": vision}}
    found = opened("auto", clip(width, 1, heads, *others, out), settings)
    assert (found.found.source, found.model.num_heads) == ("open_clip", heads)
