"""Tiny models of transformers and timm with random weights. Torch is imported by the functions.

The tests of importers and the parity table use the same models.
"""

import contextlib
import importlib.machinery
import importlib.util
import re
import sys
import types
import warnings
from typing import Any

_NORMS = re.compile(r"norm.*weight|layrnorm.*weight|lambda1|gamma|\bln_\w+\.weight")


def randomise(module: Any) -> Any:
    """The torch module with noise on every parameter: biases, norms, tokens and LayerScale included."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            centre = 1.0 if _NORMS.search(name) else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TEXT |= {"vocab_size": 50, "bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 1}


def hf_model(kind: str, *, arguments: dict | None = None, **settings: Any) -> Any:
    """A tiny model of transformers, of the class `kind`, for images of 32 px; all parameters are random.

    `settings` are those of its config; of a model of images and texts, those of the image tower.
    """
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"image_size": 32, "patch_size": 8}
    ratios = {"Dinov2": 2, "RadioM": 2.0}  # those of the others are sizes
    sizes |= {"mlp_ratio": ratios[kind[:6]]} if kind[:6] in ratios else {"intermediate_size": 48}
    model = getattr(transformers, kind)
    if kind in ("CLIPModel", "MetaClip2Model", "SiglipModel"):
        settings = {"vision_config": sizes | settings, "text_config": dict(TEXT)}
        if kind == "SiglipModel":  # both towers give embeddings of their own widths
            settings["text_config"] |= {"hidden_size": 32, "projection_size": 32}
        else:
            settings["projection_dim"] = 16
    elif kind.startswith(("CLIP", "MetaClip2")):
        settings = sizes | {"projection_dim": 16} | settings
    else:
        settings = sizes | settings
    return randomise(model(model.config_class(**settings), **(arguments or {})))


def timm_model(name: str, **settings: Any) -> Any:
    """A tiny model of timm, named as there, for images of 32 px; all parameters are random."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    sizes |= {"num_classes": 5, "dynamic_img_size": True}
    return randomise(import_timm().create_model(name, **(sizes | settings)))


# --- timm imports torchvision, which cannot be installed beside every torch -----------------------------


class _AnyClass(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Stub(types.ModuleType):
    """A module that has every name, as an empty class: enough for annotations and isinstance."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyClass(name, (), {})


_TORCHVISION = ("torchvision", *(f"torchvision.{part}" for part in ("ops", "transforms", "datasets")))
_TORCHVISION += ("torchvision.ops.misc", "torchvision.transforms.functional", "torchvision.datasets.folder")


@contextlib.contextmanager
def stubbed_torchvision():
    """Where torchvision is missing, stubs replace it, inside this context only.

    Others, transformers among them, ask whether there is a torchvision.
    """
    is_missing = importlib.util.find_spec("torchvision") is None
    for name in _TORCHVISION if is_missing else ():
        sys.modules[name] = stub = _Stub(name)
        stub.__spec__, stub.__path__ = importlib.machinery.ModuleSpec(name, None, is_package=True), []
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, stub)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in _TORCHVISION if is_missing else ():
            del sys.modules[name]


def import_timm() -> types.ModuleType:
    """timm, imported with stubs for torchvision where this is missing."""
    with stubbed_torchvision():
        import timm
        import timm.models.deit
        import timm.models.vision_transformer
    return timm
