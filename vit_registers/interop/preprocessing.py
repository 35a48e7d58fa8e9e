"""The preprocessing of images for a checkpoint: from its files, or the one of its authors."""

import math
from pathlib import Path
from typing import Any

from vit_registers.config import Data
from vit_registers.errors import CheckpointError
from vit_registers.interop.channels import adapt_statistics
from vit_registers.interop.opened import OpenedWeights
from vit_registers.interop.settings import read_json

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_SQUASHED = 0.0  # the whole image, of any aspect
# Mean and deviation; the size of the crop relative to the resized image; the method of resizing.
_BY_FAMILY = {
    "dinov2": (_IMAGENET, 7 / 8, "pil_bicubic"),
    "deit": (_IMAGENET, 1.0, "pil_bicubic"),  # DeiT-III; DeiT of 2020 has 7 / 8
    "dino": (_IMAGENET, 7 / 8, "pil_bicubic"),
    "clip": (_CLIP, 1.0, "pil_bicubic"),
    "open_clip": (_CLIP, 1.0, "pil_bicubic"),
    "timm": (_HALF, 0.9, "pil_bicubic"),  # augreg; the config.json of DeiT and DINOv2 has others
    "big_vision": (_HALF, 7 / 8, "area"),
    "mup_vit": (_HALF, 7 / 8, "pil_bilinear"),
    "transformers/dinov2": (_IMAGENET, 7 / 8, "pil_bicubic"),
    "transformers/vit": (_HALF, _SQUASHED, "pil_bilinear"),
    "transformers/deit": (_IMAGENET, 7 / 8, "pil_bicubic"),
    "transformers/clip": (_CLIP, 1.0, "pil_bicubic"),
}


def preprocessing(opened: OpenedWeights, path: Path) -> tuple[Data, str]:
    """(Data settings for evaluation, the origin of mean and standard deviation).

    Resizing and cropping are those of the family, at the image size of the model. Mean, deviation and timm's
    crop_pct are read from the files beside the weights if they have them. Raises CheckpointError.
    """
    said = _said(opened, path)
    found = opened.found
    (mean, std), share, method = _BY_FAMILY[found.family]
    origin, share = f"assumed for {found.source}", said.get("crop_pct", share)
    own_mean, own_std = said.get("mean", said.get("image_mean")), said.get("std", said.get("image_std"))
    if own_mean and own_std:
        try:
            mean, std = tuple(map(float, own_mean)), tuple(map(float, own_std))
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: the files beside the weights say mean {own_mean!r} and std {own_std!r}: "
                "give a number for each channel"
            ) from error
        origin = "from the files"
    if opened.native.channels != len(mean):
        mean, std, origin = *((0.5,) * opened.native.channels,) * 2, "assumed"
    if opened.model.channels != opened.native.channels:
        mean, std = (adapt_statistics(values, opened.model.channels) for values in (mean, std))
        origin += f" and made for {opened.model.channels} channels"
    ops = eval_ops(opened.model.image_size, share, method)
    return Data(mean=mean, std=std, eval_batch_size=64, batch_size=64, eval_ops=ops), origin


def eval_ops(image_size: tuple[int, int], share: float, method: str) -> str:
    """The operation string that resizes by `method` so that the crop is `share` of the longer side."""
    if share == _SQUASHED:
        return f"resize({method!r})"
    rounding = "" if method == "area" else "(rounding='half_even')"
    size = math.floor(max(image_size) / share)
    return f"resize_small({size}, {method!r}) | central_crop{rounding}"


def _said(opened: OpenedWeights, path: Path) -> dict[str, Any]:
    folder = path if path.is_dir() else path.parent
    file = folder / "preprocessor_config.json"
    if "model_type" in opened.found.settings and file.is_file():
        said = read_json(file)
        if not isinstance(said, dict):
            raise CheckpointError(f"{file} holds a {type(said).__name__}: it must hold settings by name")
        return said
    return opened.found.settings.get("pretrained_cfg", {}) | opened.found.settings.get("preprocess_cfg", {})
