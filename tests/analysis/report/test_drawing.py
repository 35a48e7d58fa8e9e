"""Pictures from another process are those of this one, and so are its errors."""

import pytest
from matplotlib.figure import Figure

from vit_registers.analysis.report import drawing
from vit_registers.errors import DataError, UserError


def _figure(title="a $name$"):
    figure = Figure(figsize=(2, 1), layout="constrained")
    figure.subplots().plot([0, 1])
    figure.suptitle(title)
    return figure


def test_same_bytes(tmp_path):
    drawing.save_png(_figure(), tmp_path / "here.png")
    with drawing.in_background() as draw:
        for i in range(3):
            draw(_figure(), tmp_path / f"{i}.png")
    assert {(tmp_path / f"{i}.png").read_bytes() for i in range(3)} == {(tmp_path / "here.png").read_bytes()}


def test_a_folder_that_cannot_be_written_to(tmp_path):
    path = tmp_path / "missing" / "a.png"
    with pytest.raises(DataError, match="missing cannot be written to") as here:
        drawing.save_png(_figure(), path)
    with pytest.raises(DataError) as there, drawing.in_background() as draw:
        draw(_figure(), path)
    assert str(there.value) == str(here.value)


def test_an_error_of_this_process_ends_the_other(tmp_path):
    with pytest.raises(KeyboardInterrupt), drawing.in_background() as draw:
        draw(_figure(), tmp_path / "a.png")
        raise KeyboardInterrupt


def test_the_other_process_ends_early(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="ended with code 1"), drawing.in_background() as draw:
        draw(_figure(), tmp_path / "a.png")
