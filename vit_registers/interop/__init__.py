"""Imports checkpoints of other code bases, and exports models to their formats."""

from vit_registers.interop.export.image_text import image_text_state_dict
from vit_registers.interop.image_text import image_text_from_state_dict
from vit_registers.interop.reading import from_state_dict
from vit_registers.interop.recognize import SOURCES

__all__ = ["SOURCES", "from_state_dict", "image_text_from_state_dict", "image_text_state_dict"]
