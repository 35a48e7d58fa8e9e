"""Norms by size: numbers against numpy, the order, and what the picture shows."""

from types import SimpleNamespace

import numpy as np

from vit_registers.analysis.experiments.norms_by_size import EXPERIMENT
from vit_registers.analysis.measures.outliers import find
from vit_registers.analysis.options import Options

RNG = np.random.default_rng(0)


def _subject(name, num_parameters, norm_BxP):
    return SimpleNamespace(
        name=name,
        num_parameters=num_parameters,
        layout=SimpleNamespace(num_registers=0, num_summaries=0),
        patch_norms=lambda: norm_BxP,
        outliers=lambda rule: find(norm_BxP, rule),
    )


def _ends(axes, place):
    """The lowest and highest norm of the shape at a place."""
    vertices = axes.collections[3 * place].get_paths()[0].vertices
    wide = vertices[np.abs(vertices[:, 0] - place) > 1e-9, 1]
    return wide.min(), wide.max()


def test_smallest_first_with_the_numbers_of_numpy():
    plain, heavy = RNG.lognormal(3, 0.2, (40, 16)), RNG.lognormal(3, 0.2, (40, 16))
    heavy[3, 5] = 400.0
    result = EXPERIMENT.result(
        [_subject("large", 300, heavy), _subject("small", 20, plain)], Options(rule="absolute:100")
    )
    (table,) = result.tables
    assert [row[:2] for row in table.rows] == [("small", 20), ("large", 300)]
    for row, norms in zip(table.rows, (plain, heavy), strict=True):
        expected = (np.median(norms), np.percentile(norms, 99), norms.max(), 100 * (norms > 100).mean())
        np.testing.assert_allclose(row[2:], expected, rtol=1e-12)
    assert not result.gaps

    (axes,) = result.pictures[0].figure.axes
    for place, norms in enumerate((plain, heavy)):  # a single large norm among 640 is drawn
        np.testing.assert_allclose(_ends(axes, place), (norms.min(), norms.max()), rtol=0.06)


def test_one_size_is_a_gap_and_zeros_are_drawn():
    zeros = _subject("zeros", 20, np.zeros((2, 4)))
    result = EXPERIMENT.result([zeros], Options())
    assert result.tables[0].rows == [("zeros", 20, 0.0, 0.0, 0.0, 0.0)]
    assert result.gaps == ["all models are of one size; give models of several with --checkpoint"]
