"""The preprocessing of a model as files of exports say it: in our own words, transformers' and timm's."""

import dataclasses
import math
from typing import Any

from vit_registers.config import Data
from vit_registers.interop.shown import Resizing, resizing

_PROCESSORS = {"deit": "DeiTImageProcessor", "clip": "CLIPImageProcessor"}  # others: BitImageProcessor
# The nearest method of PIL; TensorFlow's "area" and "bilinear" have no equal there.
_NEAREST = {"pil_bilinear": "bilinear", "pil_bicubic": "bicubic", "bilinear": "bilinear", "area": "bilinear"}
_OF_PIL = {"bilinear": 2, "bicubic": 3}
_EXACT = (None, "pil_bilinear", "pil_bicubic")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How the images of a model are prepared."""

    data: Data  # its eval_ops, loader, mean and std
    image_size: tuple[int, int]

    @property
    def resizing(self) -> Resizing:
        """The Resizing of data.eval_ops; whole images for a chain that other libraries do not have."""
        return resizing(self.data.eval_ops) or Resizing(None, False, "bilinear")

    def is_exact_in(self, library: str) -> bool:
        """Whether `library`, transformers or timm, can resize and crop as this model's images are.

        transformers rounds the margin of a crop down, and timm to the even neighbour.
        """
        found = resizing(self.data.eval_ops)
        is_even = "half_even" in self.data.eval_ops
        if found is not None and found.is_cropped and is_even != (library == "timm"):
            return False
        is_by_pil = self.data.loader == "memory"  # whose "resize" is PIL's
        return found is not None and (found.method in _EXACT or is_by_pil)


def own_json(p: Preprocessing) -> dict[str, Any]:
    """The content of preprocessing.json, which interop/preprocessing.py reads again exactly."""
    return {
        "image_size": list(p.image_size),
        "loader": p.data.loader,
        "eval_ops": p.data.eval_ops,
        "rescale_factor": 1 / 255,
        "mean": list(p.data.mean),
        "std": list(p.data.std),
    }


def transformers_json(p: Preprocessing, kind: str) -> dict[str, Any]:
    """The preprocessor_config.json for a model of the family `kind` of transformers."""
    (height, width), made = p.image_size, p.resizing
    is_whole = made.shorter_side is None
    is_squashed = is_whole and not made.is_cropped
    name = "ViTImageProcessor" if is_squashed else _PROCESSORS.get(kind, "BitImageProcessor")
    values: dict[str, Any] = {
        "image_processor_type": name,
        "do_resize": not (is_whole and made.is_cropped),
        "size": {"height": height, "width": width} if is_whole else {"shortest_edge": made.shorter_side},
        "resample": _OF_PIL[_NEAREST[made.method or "pil_bilinear"]],
        "do_center_crop": made.is_cropped,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(p.data.mean),
        "image_std": list(p.data.std),
    }
    if not made.is_cropped:
        del values["crop_size"]
    return values | ({} if len(p.data.mean) == 3 else {"do_convert_rgb": False})


def timm_json(p: Preprocessing, num_classes: int) -> dict[str, Any]:
    """The pretrained_cfg of timm's config.json."""
    (height, width), made = p.image_size, p.resizing
    size = made.shorter_side or max(height, width)
    share = max(height, width) / size
    if math.floor(max(height, width) / share) != size:  # as timm computes it
        share = max(height, width) / (size + 0.5)
    return {
        "input_size": [len(p.data.mean), height, width],
        "interpolation": _NEAREST[made.method or "pil_bilinear"],
        "crop_pct": share,
        "crop_mode": "center" if made.is_cropped else "squash",
        "mean": list(p.data.mean),
        "std": list(p.data.std),
        "num_classes": num_classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
