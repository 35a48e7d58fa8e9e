"""Writes requirements.txt, the dependencies of pyproject.toml with the extras [data] and [text], for pip.

python -m tools.requirements
"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def requirements() -> str:
    """The text of requirements.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        "# All that the commands in README.md need. Made from pyproject.toml: python -m tools.requirements",
        *project["dependencies"],
        "# Extra [data]: data sets of TFDS, large image folders, TensorBoard.",
        *project["optional-dependencies"]["data"],
        "# Extra [text]: tokenizers of captions.",
        *project["optional-dependencies"]["text"],
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "requirements.txt").write_text(requirements())
