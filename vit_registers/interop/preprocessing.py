"""How the images of a family are prepared: what its files say, else what its authors did."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from vit_registers.config import Data
from vit_registers.interop.convert import Opened

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_BY_FAMILY = {
    "dinov2": _IMAGENET,
    "deit": _IMAGENET,
    "dino": _IMAGENET,
    "clip": _CLIP,
    "open_clip": _CLIP,
    "timm": _HALF,  # augreg; timm's DeiT and DINOv2 have ImageNet's, and say so in config.json
    "big_vision": _HALF,
    "mup_vit": _HALF,
    "transformers/dinov2": _IMAGENET,
    "transformers/vit": _HALF,
    "transformers/deit": _IMAGENET,
    "transformers/clip": _CLIP,
}


def preprocessing(opened: Opened, path: Path) -> tuple[Data, str]:
    """(the Data settings for evaluation, where its mean and standard deviation come from).

    Images are resized so that the middle 7/8 are the model's size, and cropped. Where a file beside the
    weights has a mean and deviation, those are taken.
    """
    mean, std, origin = _normalization(opened, path)
    height, width = opened.model.image_size
    data = Data(
        mean=mean,
        std=std,
        eval_batch_size=64,
        batch_size=64,
        eval_ops=f"resize_small({round(max(height, width) * 8 / 7)}) | central_crop",
    )
    if opened.model.channels != len(mean):
        half = (0.5,) * opened.model.channels
        data, origin = dataclasses.replace(data, mean=half, std=half), "assumed"
    return data, origin


def _normalization(opened: Opened, path: Path) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    folder = path if path.is_dir() else path.parent
    said: dict[str, Any] = opened.settings.get("pretrained_cfg", {})
    said = said | opened.settings.get("preprocess_cfg", {})
    if "model_type" in opened.settings and (folder / "preprocessor_config.json").is_file():
        said = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = said.get("mean", said.get("image_mean")), said.get("std", said.get("image_std"))
    if mean and std:
        return tuple(map(float, mean)), tuple(map(float, std)), "from the files"
    found = opened.found
    mean, std = _BY_FAMILY[f"transformers/{found.kind}" if found.kind else found.source]
    return mean, std, f"assumed for {found.source}"
