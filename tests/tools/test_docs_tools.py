"""The tools that make pages and pictures of the documentation."""

import numpy as np
import pytest

from tests.fixtures.digits import make_config
from tools import docs_pages, draw_maps
from vit_registers.data.sources.digits import load_split
from vit_registers.errors import ConfigError


def cell(kind, source, outputs=()):
    return {"cell_type": kind, "source": [source], "outputs": list(outputs)}


def test_a_page_of_a_notebook_has_text_code_output_and_pictures_in_order():
    printed = [{"output_type": "stream", "text": [text]} for text in ("a\n", "b\n")]
    picture = {"output_type": "display_data", "data": {"image/png": "QUJD\n", "text/plain": ["<Figure>"]}}
    value = {"output_type": "execute_result", "data": {"text/plain": ["3"]}}
    cells = [
        cell("markdown", "# Title"),
        cell("code", "f()", [*printed, picture, value]),
        cell("code", "silent()"),
    ]
    assert docs_pages.notebook_markdown({"cells": cells}) == (
        "# Title\n\n```python\nf()\n```\n\n```text\na\nb\n```\n\n"
        "![Output of the cell above](data:image/png;base64,QUJD)\n\n```text\n3\n```\n\n"
        "```python\nsilent()\n```\n"
    )


def test_links_to_notebooks_become_links_to_their_pages():
    text = "[a](notebooks/x.ipynb) [b](y.ipynb) [c](https://example.org/z.ipynb)"
    expected = "[a](notebooks/x.md) [b](y.md) [c](https://example.org/z.ipynb)"
    assert docs_pages.on_page_markdown(text, None, None, None) == expected


@pytest.mark.slow
def test_maps_are_in_multiples_of_uniform_attention(untrained, tmp_path):
    untrained(tmp_path / "run", make_config(model={"num_registers": 2}))
    image_NxHxWx1, _ = load_split("test")
    columns = draw_maps.columns_of("run", str(tmp_path / "run"), image_NxHxWx1[:3])
    assert [title for title, _ in columns] == ["run: cls", "register 1", "register 2"]
    for _, maps in columns:
        assert maps.shape == (3, 2, 2)
        np.testing.assert_allclose(maps.mean(), 1, atol=0.2)  # nearly uniform at the start


def test_the_picture_of_the_maps_is_written(tmp_path, monkeypatch, capsys):
    maps = np.ones((draw_maps.NUM_IMAGES, 4, 4))
    monkeypatch.setattr(draw_maps, "columns_of", lambda name, path, image_BxHxWx1: [(f"{name}: cls", maps)])
    out = tmp_path / "maps.png"
    monkeypatch.setattr("sys.argv", ["draw_maps", str(out), "a=runs/a", "b=runs/b"])
    draw_maps.main()
    assert out.read_bytes().startswith(b"\x89PNG") and str(out) in capsys.readouterr().out


def test_runs_without_a_name_are_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["draw_maps", "x.png", "runs/digits"])
    with pytest.raises(ConfigError, match="NAME=RUN"):
        draw_maps.main()
