"""The preprocessing of images for a checkpoint: from its files, or the one of its authors."""

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from vit_registers.config import Data
from vit_registers.errors import CheckpointError
from vit_registers.interop.channels import adapt_statistics
from vit_registers.interop.export.preprocessing_files import Preprocessing, timm_json, transformers_json
from vit_registers.interop.folders import own_file
from vit_registers.interop.opened import OpenedWeights
from vit_registers.interop.radio import input_statistics
from vit_registers.interop.settings import read_json
from vit_registers.interop.shown import eval_ops_at

PREPROCESSING_FILE = "preprocessing.json"  # of our exports: data.loader, eval_ops, image_size, mean, std
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SQUASHED = 0  # the whole image, of any aspect
Share = float | Fraction  # of the crop, relative to the resized image


class _Usual(NamedTuple):
    statistics: tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation
    share: Share
    method: str  # of resizing


_BY_FAMILY = {
    "dinov2": _Usual(_IMAGENET, 7 / 8, "pil_bicubic"),
    "dinov3": _Usual(_IMAGENET, SQUASHED, "pil_bilinear"),
    "transformers/dinov3": _Usual(_IMAGENET, SQUASHED, "pil_bilinear"),
    "deit": _Usual(_IMAGENET, 1.0, "pil_bicubic"),  # DeiT-III; DeiT of 2020 has 7 / 8
    "dino": _Usual(_IMAGENET, 7 / 8, "pil_bicubic"),
    "clip": _Usual(_CLIP, 1.0, "pil_bicubic"),
    "open_clip": _Usual(_CLIP, 1.0, "pil_bicubic"),
    "timm": _Usual(_HALF, 0.9, "pil_bicubic"),  # augreg; the config.json of DeiT and DINOv2 has others
    "timm/eva": _Usual(_CLIP, 0.9, "pil_bicubic"),  # EVA-02
    "eva02": _Usual(_CLIP, 1.0, "pil_bicubic"),
    "pe": _Usual(_HALF, SQUASHED, "pil_bilinear"),
    "radio": _Usual(_CLIP, SQUASHED, "pil_bicubic"),
    "big_vision": _Usual(_HALF, 7 / 8, "area"),
    "mup_vit": _Usual(_HALF, 7 / 8, "pil_bilinear"),
    "transformers/dinov2": _Usual(_IMAGENET, 7 / 8, "pil_bicubic"),
    "transformers/vit": _Usual(_HALF, SQUASHED, "pil_bilinear"),
    "transformers/deit": _Usual(_IMAGENET, 7 / 8, "pil_bicubic"),
    "transformers/clip": _Usual(_CLIP, 1.0, "pil_bicubic"),
    "transformers/siglip": _Usual(_HALF, SQUASHED, "pil_bicubic"),
}
# By transformers' model_type, where it differs from the family of the layers.
_BY_TYPE = dict.fromkeys(("vit_mae", "vit_msn", "ijepa"), _Usual(_IMAGENET, 7 / 8, "pil_bicubic"))
_OF_PIL = {2: "pil_bilinear", 3: "pil_bicubic"}  # PIL's numbers, which transformers has
_OF_TIMM = {"bilinear": "pil_bilinear", "bicubic": "pil_bicubic"}


def preprocessing(opened: OpenedWeights, path: Path) -> tuple[Data, str]:
    """(Data settings for evaluation, the origin of mean and standard deviation).

    They are read from the files beside the weights where these have them: transformers'
    preprocessor_config.json, the config of timm or open_clip, and our own preprocessing.json, which is exact.
    The latter is not used if another file differs from it. The rest is that of the family. Images have the
    size of the model; a file gives the crop's share of them, and the method of resizing. Raises
    CheckpointError.
    """
    folder, model, family = path if path.is_dir() else path.parent, opened.model, opened.found.family
    is_pe = family == "timm/eva" and model.use_norm_pre
    usual = _BY_FAMILY["pe" if is_pe else family]
    usual = _BY_TYPE.get(opened.found.settings.get("model_type", ""), usual)
    said = _said(opened, folder)
    own = _own(path)
    if own is not None and not _agrees(own, said, family):
        own = None
    if own is not None:
        said = {"mean": own.data.mean, "std": own.data.std}
    (mean, std), origin = usual.statistics, f"assumed for {opened.found.source}"
    if (given := _statistics(said, folder)) is not None:
        (mean, std), origin = given, "from the files"
    if own is None and (given := input_statistics(opened.found.file)) is not None:
        (mean, std), origin = given, "from the tensors"  # of a model that normalises images itself
    if opened.native.channels != len(mean):
        mean, std, origin = *((0.5,) * opened.native.channels,) * 2, "assumed"
    if model.channels != opened.native.channels:
        mean, std = (adapt_statistics(values, model.channels) for values in (mean, std))
        origin += f" and made for {model.channels} channels"
    if own is not None:
        ops, loader = (
            eval_ops_at(own.data.eval_ops, old=own.image_size, new=model.image_size),
            own.data.loader,
        )
    else:
        share, method = _resizing(said, usual, family, folder)
        # transformers rounds the margin of a crop down, torchvision to the even neighbour.
        is_floor = family.startswith("transformers/") or method == "area"
        ops, loader = eval_ops(model.image_size, share, method, is_floor=is_floor), Data.loader
    data = Data(mean=mean, std=std, eval_batch_size=64, batch_size=64, eval_ops=ops, loader=loader)
    return data, origin


def eval_ops(image_size: tuple[int, int], share: Share, method: str, *, is_floor: bool) -> str:
    """The operation string that resizes by `method` so that the crop is `share` of the longer side.

    Half a pixel of margin is rounded down with `is_floor`, else to the even neighbour.
    """
    if share == SQUASHED:
        return f"resize({method!r})"
    rounding = "" if is_floor else "(rounding='half_even')"
    size = math.floor(max(image_size) / share)
    return f"resize_small({size}, {method!r}) | central_crop{rounding}"


def _own(path: Path) -> Preprocessing | None:
    """What preprocessing.json says, if the weights have one."""
    if (file := own_file(path, PREPROCESSING_FILE)) is None:
        return None
    own = _json_of(file)
    ops, sides, loader = own.get("eval_ops"), own.get("image_size"), own.get("loader")
    size = _edges(dict(zip(("height", "width"), sides, strict=False))) if isinstance(sides, list) else ()
    statistics = _statistics(own, file.parent)
    is_loader = loader in ("tfdata", "pil", "memory")
    if not isinstance(ops, str) or len(size) != 2 or not is_loader or statistics is None:
        raise CheckpointError(
            f"{file}: must have eval_ops, a text, image_size, [height, width], mean, std, and a loader: "
            "tfdata, pil or memory"
        )
    mean, std = statistics
    return Preprocessing(Data(eval_ops=ops, loader=str(loader), mean=mean, std=std), (size[0], size[1]))


def _agrees(own: Preprocessing, said: Mapping[str, Any], family: str) -> bool:
    """Whether the file of the other library, if there is one, is as it was written with ours."""
    if not said:
        return True
    is_hf = family.startswith("transformers/")
    written = transformers_json(own, family.partition("/")[2]) if is_hf else timm_json(own, 0)
    names = ("size", "resample", "do_resize", "do_center_crop", "crop_size", "do_normalize", "image_mean")
    names += ("image_std", "interpolation", "crop_pct", "crop_mode", "mean", "std")
    return all(said.get(name) == written[name] for name in names if name in written)


def _statistics(said: Mapping[str, Any], folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(mean, deviation) that files say, if they do."""
    mean, std = said.get("mean", said.get("image_mean")), said.get("std", said.get("image_std"))
    if not (mean and std):
        return None
    try:
        mean, std = tuple(map(float, mean)), tuple(map(float, std))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: the files beside the weights say mean {mean!r} and std {std!r}: "
            "give a number for each channel"
        ) from error
    if said.get("do_normalize") is False:
        return (0.0,) * len(mean), (1.0,) * len(std)
    return mean, std


def _resizing(said: Mapping[str, Any], usual: _Usual, family: str, folder: Path) -> tuple[Share, str]:
    """(share, method) that files say; those of the family where they say none that this project has."""
    if family.startswith("transformers/") or family == "radio":
        number = said.get("resample")
        method = _OF_PIL.get(number, usual.method) if isinstance(number, int) else usual.method
        if said.get("do_resize", True) is not True:
            return usual.share, method
        size, crop = (_edges(said.get(name)) for name in ("size", "crop_size"))
        if said.get("do_center_crop", bool(crop)) is not True:
            return (SQUASHED if len(size) == 2 else usual.share), method
        if len(size) == 1 and crop and size[0] >= max(crop):
            return Fraction(max(crop), size[0]), method
        return usual.share, method
    method = _OF_TIMM.get(str(said.get("interpolation")), usual.method)
    share = said.get("crop_pct", usual.share)
    if "crop_pct" in said and (not isinstance(share, int | float) or not share > 0):
        raise CheckpointError(f"{folder}: the files beside the weights say crop_pct {share!r}: must be > 0")
    is_squashed = said.get("resize_mode") == "squash" or (said.get("crop_mode") == "squash" and share == 1)
    return (SQUASHED if is_squashed else share), method


def _edges(size: Any) -> tuple[int, ...]:
    """The shortest edge, or height and width, of a size of transformers; () for any other."""
    if not isinstance(size, dict):
        return ()
    names = ("shortest_edge",) if "shortest_edge" in size else ("height", "width")
    edges = [edge for name in names if isinstance(edge := size.get(name), int) and edge > 0]
    return tuple(edges) if len(edges) == len(names) else ()


def _said(opened: OpenedWeights, folder: Path) -> Mapping[str, Any]:
    settings = opened.found.settings
    if "model_type" in settings and (said := _json_of(folder / "preprocessor_config.json")):
        return said
    return settings.get("pretrained_cfg", {}) | settings.get("preprocess_cfg", {})


def _json_of(file: Path) -> dict[str, Any]:
    """The settings in a JSON file; none if there is no file. Raises CheckpointError for anything else."""
    if not file.is_file():
        return {}
    said = read_json(file)
    if not isinstance(said, dict):
        raise CheckpointError(f"{file} holds a {type(said).__name__}: it must hold settings by name")
    return said
