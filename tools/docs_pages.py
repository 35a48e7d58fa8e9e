"""A hook of mkdocs: pages of the notebooks, with their stored outputs, and of files outside of docs/.

Links to NAME.ipynb, which a git host shows, become links to the page of the notebook.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # tests use this file, and mkdocs is not among their requirements
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

TOP = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """The files of the site, with the generated pages."""
    from mkdocs.structure.files import File

    root, docs = Path(config.config_file_path).parent, Path(config.docs_dir)
    for path in sorted(docs.glob("notebooks/*.ipynb")):
        place = path.relative_to(docs).with_suffix(".md").as_posix()
        files.append(File.generated(config, place, content=notebook_markdown(json.loads(path.read_text()))))
    for source, place in TOP.items():
        files.append(File.generated(config, place, content=(root / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """The page with links to notebooks as links to their pages."""
    return re.sub(r"\]\(((?:notebooks/)?\w+)\.ipynb\)", r"](\1.md)", markdown)


def notebook_markdown(notebook: dict[str, Any]) -> str:
    """The Markdown of a notebook in Jupyter's format 4: its text, code, printed lines and pictures."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source:
            parts.append(f"```python\n{source}\n```")
            parts += _outputs(cell["outputs"])
    return "\n\n".join(parts) + "\n"


def _outputs(outputs: list[dict[str, Any]]) -> list[str]:
    """Pictures and texts; texts that follow each other are one."""
    parts, text = [], ""
    for output in outputs:
        data = output.get("data", {})
        if "image/png" not in data:
            text += "".join(output.get("text", data.get("text/plain", "")))
            continue
        parts.append(_block(text))
        encoded, text = "".join(data["image/png"]).replace("\n", ""), ""
        parts.append(f"![Output of the cell above](data:image/png;base64,{encoded})")
    return [part for part in (*parts, _block(text)) if part]


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
