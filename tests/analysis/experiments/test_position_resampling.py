"""Weights of positions: against torch's autograd, differences, and cases worked by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from vit_registers.analysis.experiments.position_resampling import EXPERIMENT, counts, other_grid
from vit_registers.analysis.options import Options
from vit_registers.config import Model
from vit_registers.models.resampling import RESAMPLINGS, resample
from vit_registers.models.vit import token_layout

GRIDS = [((16, 16), (7, 7)), ((5, 8), (9, 3)), ((6, 6), (5, 11))]


@pytest.mark.parametrize("method", ["bicubic", "bicubic_aa", "bicubic_offset"])
@pytest.mark.parametrize(("source", "target"), GRIDS)
def test_it_is_the_gradient_that_torch_hands_back(source, target, method):
    torch = pytest.importorskip("torch")
    table = torch.zeros((1, 1, *source), dtype=torch.float64, requires_grad=True)
    if method == "bicubic_offset":
        size = {"scale_factor": tuple((t + 0.1) / s for s, t in zip(source, target, strict=True))}
    else:
        size = {"size": target, "antialias": method == "bicubic_aa"}
    resized = torch.nn.functional.interpolate(table, mode="bicubic", **size)
    assert tuple(resized.shape[2:]) == target
    resized.sum().backward()
    gradient = table.grad[0, 0].numpy()
    np.testing.assert_allclose(counts(source, target, method), gradient / gradient.mean(), atol=1e-9)


@pytest.mark.parametrize("method", RESAMPLINGS)
def test_it_is_what_raising_one_cell_adds_to_the_sum(method):
    source, target = (4, 5), (3, 7)
    table_Px1 = np.random.default_rng(0).normal(size=(20, 1))
    before = np.asarray(resample(table_Px1, source, target, method), np.float64).sum()
    added = []
    for cell in range(20):
        raised = table_Px1 + np.eye(20)[:, [cell]]
        added.append(np.asarray(resample(raised, source, target, method), np.float64).sum() - before)
    expected = np.reshape(added, source) / np.mean(added)
    np.testing.assert_allclose(counts(source, target, method), expected, atol=2e-5)


def test_linear_from_5_to_3_uses_every_other_cell():
    used = np.array([1, 0, 1, 0, 1])
    np.testing.assert_allclose(counts((5, 5), (3, 3), "linear"), np.outer(used, used) / 0.36, atol=1e-6)


def test_stripes_without_antialiasing_but_for_half_of_the_side():
    def spread(target, method):
        return counts((16, 16), (target, target), method).std()

    assert spread(8, "bicubic") < 1e-6
    assert spread(7, "bicubic") > 10 * spread(7, "bicubic_aa")


def test_the_other_grid():
    assert other_grid((16, 16), (16, 16)) == (7, 7)
    assert other_grid((16, 16), (37, 16)) == (37, 16)
    for side in range(3, 65):
        (new, _) = other_grid((side, side), (side, side))
        assert 2 <= new < side and 2 * new != side
        assert abs(new - 7 / 16 * side) <= 1.5


def _subject(name, *, shown=None, **settings):
    model = Model(patch_size=2, width=16, num_heads=2, depth=1, **settings)
    layout = SimpleNamespace(
        patch_grid=shown or token_layout(model).patch_grid, num_registers=0, num_summaries=0
    )
    return SimpleNamespace(name=name, model=model, layout=layout)


def test_own_method_first_and_models_of_one_kind_share_a_picture():
    square = {"image_size": (32, 32)}
    subjects = [
        _subject("dino", **square, position_resampling="bicubic_offset"),
        _subject("ours", **square),
        _subject("fixed", **square, positions="sincos2d"),
        _subject("larger", **square, shown=(20, 24)),
    ]
    result = EXPERIMENT.result(subjects, Options())
    (table,) = result.tables
    assert not result.gaps
    shown = [row[:5] for row in table.rows]
    small, own = ("16 x 16", "7 x 7"), ("bicubic_aa", "yes")
    assert shown == [
        ("dino", *small, "bicubic_offset", "yes"),
        ("dino", *small, "bicubic_aa", "no"),
        ("dino", *small, "bicubic", "no"),
        ("ours", *small, *own),
        ("ours", *small, "bicubic", "no"),
        ("fixed", *small, *own),
        ("fixed", *small, "bicubic", "no"),
        ("larger", "16 x 16", "20 x 24", *own),
        ("larger", "16 x 16", "20 x 24", "bicubic", "no"),
    ]
    weight_HxW = counts((16, 16), (7, 7), "bicubic")
    expected = (weight_HxW.std(), weight_HxW.min(), weight_HxW.max())
    assert table.rows[2][5:] == pytest.approx(expected)
    assert [p.caption.partition(":")[0] for p in result.pictures] == ["dino", "ours, fixed", "larger"]
    assert len({picture.name for picture in result.pictures}) == 3


def test_what_has_no_table_is_a_gap():
    square = {"image_size": (32, 32)}
    subjects = [
        _subject("bias", **square, positions="alibi2d"),
        _subject("none", **square, positions="none"),
        _subject("fixed", **square, positions="sincos2d", position_resampling="none"),
        _subject("tiny", image_size=(4, 4)),
    ]
    result = EXPERIMENT.result(subjects, Options())
    assert not result.tables and not result.pictures
    bias, none, fixed, tiny = result.gaps
    assert bias == "bias: model.positions='alibi2d' has no table"
    assert none == "none: model.positions='none' has no table"
    assert fixed.startswith("fixed: its table is computed for every size")
    assert tiny == "tiny: a grid of 2 x 2 cannot be made smaller"
