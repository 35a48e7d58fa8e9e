"""Image complexity: its measures by closed forms, and correlations that are planted."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vit_registers.analysis.experiments.image_complexity import EXPERIMENT, complexity
from vit_registers.analysis.measures.outliers import find
from vit_registers.analysis.options import Options

RNG = np.random.default_rng(0)


def _noise(deviation):
    return np.clip(RNG.normal(128, deviation, (16, 16, 3)), 0, 255).astype(np.uint8)


def _subject(images, norm_BxP, mass_B=None):
    groups = {"registers": slice(0, 1)} if mass_B is not None else {}
    mass = np.zeros((len(images), 2, 2, 2))
    if mass_B is not None:
        mass[:, -1, 1, 0] = mass_B
    stored = {"image_HxWxC": images, "mass_LxGxG": mass}
    return SimpleNamespace(
        name="one",
        layout=SimpleNamespace(
            num_registers=len(groups), num_summaries=0, groups=groups | {"patches": slice(1, 5)}
        ),
        store=SimpleNamespace(read=stored.__getitem__),
        patch_norms=lambda: norm_BxP,
        outliers=lambda rule: find(norm_BxP, rule),
    )


def test_a_flat_image_has_no_entropy_and_no_edges_and_halves_have_one_bit():
    flat = np.full((8, 8, 1), 7, np.uint8)
    assert complexity(flat)[1:] == (0.0, 0.0)
    halves = flat.copy()
    halves[:, 4:] = 107
    _, entropy, edges = complexity(halves)
    assert entropy == pytest.approx(1.0)
    # Sobel's kernel gives 4 x 100 in the two columns beside the border, and 0 elsewhere.
    assert edges == pytest.approx(400 * 2 / 8)


def test_bytes_are_those_of_a_file_of_pil(tmp_path):
    image = _noise(40)
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=90)
    assert complexity(image)[0] == (tmp_path / "a.jpg").stat().st_size


def test_planted_correlations_are_found():
    images = np.stack([_noise(4 * i + 1) for i in range(12)])
    norm_BxP = np.ones((12, 16))
    for i in range(12):
        norm_BxP[i, :i] = 200 + i
    result = EXPERIMENT.result([_subject(images, norm_BxP, -np.arange(12.0))], Options(rule="absolute:100"))
    (table,) = result.tables
    found = {row[1:3]: row[3] for row in table.rows}
    assert found["outliers", "edges"] == pytest.approx(1.0)
    assert found["attention of patches to registers", "edges"] == pytest.approx(-1.0)
    assert all(row[5] == 12 for row in table.rows) and not result.gaps
    assert "(rank correlation 1, p =" in result.finding or "(rank correlation -1, p =" in result.finding


def test_gaps():
    images = np.stack([_noise(30) for _ in range(6)])
    result = EXPERIMENT.result([_subject(images, np.ones((6, 16)))], Options(rule="absolute:100"))
    assert not result.tables and result.gaps == [
        "one: 'outliers' is the same for all images, so nothing correlates with it"
    ]
    few = EXPERIMENT.result([_subject(images[:3], np.ones((3, 16)))], Options(rule="absolute:100"))
    assert few.gaps == ["one: a correlation needs 4 images or more, not 3"]
