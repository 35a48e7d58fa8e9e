"""The policy for images that cannot be read or decoded, or lack a caption: data.on_broken. No TensorFlow."""

import logging
from collections.abc import Callable

import numpy as np

from vit_registers.config import Data, lookup
from vit_registers.data import pil_decoding
from vit_registers.data.sources.base import DataSource
from vit_registers.errors import DataError

POLICIES = {"stop": True, "skip": False}  # whether the run ends
_SKIP = "set config.data.on_broken=skip to leave such images out"
_logger = logging.getLogger(__name__)


class BrokenImages:
    """The names of the images that this process has left out."""

    def __init__(self, data: Data) -> None:
        """Raises ConfigError if data.on_broken is unknown."""
        self._is_stopping = lookup(POLICIES, data.on_broken, "data.on_broken")
        self._data = data.name
        self._names: set[str] = set()

    @property
    def names(self) -> frozenset[str]:
        """The names of the images that were left out so far."""
        return frozenset(self._names)

    def decode(
        self, source: DataSource, split: str, record: int, read: Callable[[int], bytes], *, channels: int
    ) -> np.ndarray | None:
        """The image uint8 HxWxC, or None after it was reported as broken; `read` is its image_reader."""
        try:
            return pil_decoding.decode_image(read(record), channels=channels)
        except OSError as error:
            self.report_unread(source.describe(split, record), error.strerror or str(error), split=split)
        except pil_decoding.BrokenImageError as error:
            self.report(source.describe(split, record), str(error))
        return None

    def report(self, name: str, reason: str = "") -> None:
        """Records and logs an image that cannot be decoded; raises DataError with on_broken='stop'."""
        what = f"cannot be decoded as an image{f' ({reason})' if reason else ''}"
        if self._is_stopping:
            raise DataError(f"{name} {what}: repair or delete it, or {_SKIP}")
        self._leave_out(name, what)

    def report_unread(self, name: str, reason: str, *, split: str) -> None:
        """Records an image of the split whose file cannot be read, as `report` does."""
        if self._is_stopping:
            raise DataError(
                f"reading split '{split}' of {self._data} failed: {name}; {reason}; see that all files of "
                f"data.data_dir are there and whole, or {_SKIP}"
            )
        self._leave_out(name, f"cannot be read: {reason}")

    def report_without_text(self, name: str) -> None:
        """Records and logs an image that has no caption, as `report` does."""
        if self._is_stopping:
            raise DataError(f"{name} has no caption: give it one, or {_SKIP}")
        self._leave_out(name, "has no caption")

    def _leave_out(self, name: str, what: str) -> None:
        if name not in self._names:
            self._names.add(name)
            _logger.warning("left out: %s %s", name, what)
