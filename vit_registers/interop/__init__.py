"""Other people's checkpoints, in and out."""

from vit_registers.interop.reading import from_state_dict
from vit_registers.interop.recognize import SOURCES

__all__ = ["SOURCES", "from_state_dict"]
