"""Writes docs/settings.md, the reference of all settings, from the comments in vit_registers/config/.

python -m tools.settings_page
"""

from pathlib import Path

from vit_registers.config.reference import settings_markdown

PAGE = Path(__file__).parents[1] / "docs/settings.md"

if __name__ == "__main__":
    PAGE.write_text(settings_markdown())
