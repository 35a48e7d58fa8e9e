"""What happens to an image that cannot be read or decoded: data.on_broken."""

import logging

from vit_registers.config import Config, lookup
from vit_registers.errors import DataError

POLICIES = {"stop": True, "skip": False}  # whether the run ends
_SKIP = "set config.data.on_broken=skip to leave such images out"
_logger = logging.getLogger(__name__)


class BrokenImages:
    """Keeps the names of the images that were left out by this process."""

    def __init__(self, config: Config) -> None:
        self._is_stopping = lookup(POLICIES, config.data.on_broken, "data.on_broken")
        self._data = config.data.name
        self._names: set[str] = set()

    @property
    def count(self) -> int:
        """How many different images were left out so far."""
        return len(self._names)

    def report(self, name: str, reason: str = "") -> None:
        """Notes one image that cannot be decoded, with one log line for each name.

        Raises DataError with on_broken='stop'.
        """
        what = f"cannot be decoded as an image{f' ({reason})' if reason else ''}"
        if self._is_stopping:
            raise DataError(f"{name} {what}: repair or delete it, or {_SKIP}")
        self._leave_out(name, what)

    def report_unread(self, name: str, reason: str, *, split: str) -> None:
        """The same for an image of the split whose file cannot be read."""
        if self._is_stopping:
            raise DataError(
                f"reading split '{split}' of {self._data} failed: {name}; {reason}; see that all files of "
                f"data.data_dir are there and whole, or {_SKIP}"
            )
        self._leave_out(name, f"cannot be read: {reason}")

    def _leave_out(self, name: str, what: str) -> None:
        if name not in self._names:
            self._names.add(name)
            _logger.warning("left out: %s %s", name, what)
