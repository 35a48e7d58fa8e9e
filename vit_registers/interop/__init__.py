"""Imports checkpoints of other code bases, and exports models to their formats."""

from vit_registers.interop.reading import from_state_dict
from vit_registers.interop.recognize import SOURCES

__all__ = ["SOURCES", "from_state_dict"]
