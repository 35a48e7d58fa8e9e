"""A checkpoint of another code base that has been recognized, and whose tensors are not read yet."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_registers.config import Model
from vit_registers.interop.recognize import RecognizedWeights
from vit_registers.interop.tensor_map import TensorRule


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedWeights:
    """A checkpoint that has been recognized; its tensors are not read yet."""

    found: RecognizedWeights
    native: Model  # at the image size and channels of the tensors
    model: Model  # at the requested image size and channels
    tensor_map: tuple[TensorRule, ...]
    settings: Mapping[str, Any]  # of config.json
