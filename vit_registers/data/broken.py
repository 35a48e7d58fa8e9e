"""What happens to an image that cannot be decoded: data.on_broken."""

import logging

from vit_registers.config import Config, lookup
from vit_registers.errors import DataError

POLICIES = {"stop": True, "skip": False}  # whether the run ends
_logger = logging.getLogger(__name__)


class BrokenImages:
    """Keeps the names of the images that were left out by this process."""

    def __init__(self, config: Config) -> None:
        self._is_stopping = lookup(POLICIES, config.data.on_broken, "data.on_broken")
        self._names: set[str] = set()

    @property
    def count(self) -> int:
        """How many different images were left out so far."""
        return len(self._names)

    def report(self, name: str) -> None:
        """Notes one broken image, with one log line for each name. Raises DataError with on_broken='stop'."""
        if self._is_stopping:
            raise DataError(
                f"{name} cannot be decoded as an image: mend or delete it, "
                "or set config.data.on_broken=skip to leave such images out"
            )
        if name not in self._names:
            self._names.add(name)
            _logger.warning("left out: %s cannot be decoded as an image", name)
