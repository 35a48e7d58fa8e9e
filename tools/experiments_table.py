"""Writes the table of experiments in docs/experiments.md from the catalog.

python -m tools.experiments_table
"""

import re
import sys
from pathlib import Path

from vit_registers.analysis.experiments.catalog import markdown_table

ROOT = Path(__file__).parents[1]
HEAD = "| name | asks | answers |"


def main() -> None:
    """Replaces the table."""
    path = ROOT / "docs" / "experiments.md"
    text, count = re.subn(
        rf"^{re.escape(HEAD)}\n(\|.*\n)+",
        lambda match: markdown_table(),
        path.read_text(),
        flags=re.MULTILINE,
    )
    if count != 1:
        sys.exit(f"error: {path} has {count} tables that begin with {HEAD}: it must have one")
    path.write_text(text)


if __name__ == "__main__":
    main()
