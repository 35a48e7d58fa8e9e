"""Image complexity: its measures by closed forms, and correlations that are planted."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from vit_registers.analysis.experiments.image_complexity import EXPERIMENT, complexity
from vit_registers.analysis.measures.outliers import find
from vit_registers.analysis.options import Options

RNG = np.random.default_rng(0)


def _noise(deviation):
    return np.clip(RNG.normal(128, deviation, (16, 16, 3)), 0, 255).astype(np.uint8)


def _subject(images, norm_BxP, mass_B=None):
    groups = {"cls": slice(0, 1), "registers": slice(1, 2)} if mass_B is not None else {}
    mass = np.zeros((len(images), 2, 3, 3))
    if mass_B is not None:
        mass[:, -1, 0, 1], mass[:, -1, 2, 1] = 2 * mass_B, mass_B
    stored = {"image_HxWxC": images, "mass_LxGxG": mass}
    return SimpleNamespace(
        name="one",
        layout=SimpleNamespace(
            num_registers=len(groups) // 2, num_summaries=0, groups=groups | {"patches": slice(2, 6)}
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
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    found = {(row["of"], row["with"]): row for row in rows}
    assert found["outliers", "edges"]["Spearman"] == pytest.approx(1.0)
    for who in ("cls", "patches"):
        row = found[f"attention of {who} to registers", "edges"]
        assert row["Spearman"] == pytest.approx(-1.0) and row["Pearson"] < -0.9
    edges = [complexity(image)[2] for image in images]
    linear = stats.pearsonr(edges, np.arange(12))
    row = found["outliers", "edges"]
    assert row["Pearson"] == pytest.approx(linear.statistic) and row["Pearson p"] == linear.pvalue
    assert (row["Pearson low"], row["Pearson high"]) == pytest.approx(tuple(linear.confidence_interval()))
    assert all(row["images"] == 12 for row in rows) and not result.gaps
    assert "95 % interval" in result.finding
    points, correlations = (picture.figure for picture in result.pictures)
    assert len(points.axes[0].lines[0].get_xdata()) == 12
    bars = correlations.axes[0].containers[0]
    assert len(bars.lines[0].get_xdata()) == len(rows)
    names = [text.get_text() for text in correlations.axes[0].texts]
    assert names == list(dict.fromkeys(row["of"] for row in rows))


def test_images_beyond_those_that_are_stored_are_left_out():
    """Images are stored for the first ones only, and norms of all."""
    images = np.stack([_noise(4 * i + 1) for i in range(6)])
    norm_BxP = np.ones((9, 16))
    for i in range(9):
        norm_BxP[i, : i % 6] = 200
    result = EXPERIMENT.result([_subject(images, norm_BxP)], Options(rule="absolute:100"))
    assert {row[-1] for row in result.tables[0].rows} == {6}


def test_gaps():
    images = np.stack([_noise(30) for _ in range(6)])
    result = EXPERIMENT.result([_subject(images, np.ones((6, 16)))], Options(rule="absolute:100"))
    assert not result.tables and result.gaps[0] == (
        "one: 'outliers' is the same for all images, so nothing correlates with it"
    )
    few = EXPERIMENT.result([_subject(images[:3], np.ones((3, 16)))], Options(rule="absolute:100"))
    assert few.gaps == ["one: a correlation needs 4 images or more, not 3"]
    same = EXPERIMENT.result(
        [_subject(np.repeat(images[:1], 6, axis=0), RNG.uniform(90, 110, (6, 16)))],
        Options(rule="absolute:100"),
    )
    assert not same.tables and "one: 'JPEG bytes' is the same for all images" in same.gaps[0]
