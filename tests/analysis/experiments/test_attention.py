"""Attention maps, head by head, over steps and on average: what is drawn and tabled against plain numpy."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.fixtures.tiles import IMAGES, MAPS, cell_of, labels_of
from vit_registers.analysis.experiments import (
    attention_maps,
    attention_over_training,
    over_training,
    positional_focus,
)
from vit_registers.analysis.experiments.over_training import by_run
from vit_registers.analysis.experiments.positional_focus import MIDDLE
from vit_registers.analysis.measures.focus import map_similarity
from vit_registers.analysis.measures.outliers import find
from vit_registers.analysis.measures.severity import attention_entropy
from vit_registers.analysis.options import Options
from vit_registers.analysis.subject import Subject
from vit_registers.models.tokens import TokenLayout

GRID, HEADS, BATCH = (3, 4), 3, 300  # more images than are read at a time
LAYOUT = TokenLayout(has_cls=True, num_registers=3, summary_grids=((1, 1),), patch_grid=GRID)
PATCHES = slice(5, 17)


class Store(dict):
    """Features in memory."""

    def read(self, name):
        return self[name]

    def num_read(self):
        return len(self["attention_NxExT"])


def make_subject(name="model", *, layout=LAYOUT, images=BATCH, run=None, step=None, seed=0):
    rng = np.random.default_rng(seed)
    tokens, queries = layout.num_tokens, layout.summaries.stop
    weights = rng.dirichlet(np.ones(tokens), (images, HEADS, queries))
    norms = rng.gamma(4, size=(images, layout.num_patches))
    subject = SimpleNamespace(
        name=name,
        run=None if run is None else Path(run),
        step=step,
        layout=layout,
        store=Store(
            attention_NxExT=weights.astype(np.float32),
            center_T=rng.dirichlet(np.ones(tokens), images).astype(np.float32),
        ),
        example_NxHxWxC=rng.integers(0, 256, (6, 6, 8, 3), dtype=np.uint8),
        patch_norms=lambda: norms,
        outliers=lambda rule: find(norms, rule),
    )
    subject.tokens = lambda: Subject.tokens(subject)
    return subject


def patch_weights(subject):
    return subject.store["attention_NxExT"].astype(np.float64)[..., PATCHES]


NAMES = ["cls", "register 0", "register 1", "register 2", "summary 0"]


def test_the_picture_of_heads_has_each_head_of_each_query():
    subject = make_subject()
    result = attention_maps.EXPERIMENT.result([subject], Options())
    assert [picture.name for picture in result.pictures] == ["maps-model", "heads-model"]
    figure = result.pictures[1].figure
    assert labels_of(figure) == (NAMES, [f"head {head}" for head in range(HEADS)])
    most = 0.0
    for query in range(len(NAMES)):
        for head in range(HEADS):
            values = subject.store["attention_NxExT"][0, head, query, PATCHES].reshape(GRID)
            drawn = cell_of(figure, MAPS, query, head, GRID)
            np.testing.assert_allclose(drawn, LAYOUT.num_tokens * values, rtol=1e-6)
            most = max(most, float(drawn.max()))
    assert figure.axes[0].images[MAPS].get_clim() == (0, pytest.approx(most))


def test_the_picture_of_means_and_its_table():
    subject = make_subject()
    result = attention_maps.EXPERIMENT.result([subject], Options(num_examples=2))
    weights = patch_weights(subject)
    figure = result.pictures[0].figure
    assert labels_of(figure)[0] == ["image", *NAMES]
    expected = LAYOUT.num_tokens * weights[1, :, 2].mean(0).reshape(GRID)
    np.testing.assert_allclose(cell_of(figure, MAPS, 3, 1, GRID), expected, rtol=1e-6)
    assert cell_of(figure, MAPS, 0, 1, GRID) is None  # the row of images
    np.testing.assert_array_equal(cell_of(figure, IMAGES, 3, 1, (6, 8)), subject.example_NxHxWxC[1])
    (table,) = result.tables
    share_NxE = weights.sum(-1).mean(0)
    part_NxE = weights.max(-1).mean(0) / share_NxE
    for i, row in enumerate(table.rows):
        expected = [100 * f(x[:, i]) for x in (share_NxE, part_NxE) for f in (np.mean, np.min, np.max)]
        assert row[2:] == pytest.approx(expected, rel=1e-5)
    assert [row[1] for row in table.rows] == NAMES


def test_models_share_the_scale_of_their_maps():
    found = [make_subject("a"), make_subject("b", seed=1)]
    first, _, second, _ = attention_maps.EXPERIMENT.result(found, Options(num_examples=2)).pictures
    most = max(patch_weights(one)[:2].mean(1).max() for one in found)
    for picture in (first, second):
        limits = picture.figure.axes[0].images[MAPS].get_clim()
        assert limits == (0, pytest.approx(LAYOUT.num_tokens * most))


def test_fewer_images_than_examples_are_drawn_as_they_are():
    result = attention_maps.EXPERIMENT.result([make_subject(images=2)], Options(num_examples=6))
    cell_of(result.pictures[0].figure, MAPS, 1, 1, GRID)
    with pytest.raises(AssertionError):
        cell_of(result.pictures[0].figure, MAPS, 1, 2, GRID)


def test_a_model_with_summaries_only_has_maps():
    layout = TokenLayout(has_cls=False, num_registers=0, summary_grids=((1, 1), (1, 2)), patch_grid=GRID)
    result = attention_maps.EXPERIMENT.result([make_subject(layout=layout, images=2)], Options())
    assert [row[1] for row in result.tables[0].rows] == ["summary 0", "summary 1", "summary 2"]


def test_focus_has_the_middle_patch_and_registers_are_compared_without_it():
    subject = make_subject()
    center = np.zeros((BATCH, LAYOUT.num_tokens), np.float32)
    center[:, PATCHES.start + 4 * 2 + 1] = 0.75  # row 2, column 1
    center[:, 0] = 0.25
    subject.store["center_T"] = center
    result = positional_focus.EXPERIMENT.result([subject], Options())
    (table,) = result.tables
    assert [row[1] for row in table.rows] == [*NAMES, MIDDLE]
    assert table.rows[-1][2:] == (0.0, "2.00, 1.00", pytest.approx(np.hypot(1, 0.5)), None)
    mean = patch_weights(subject).mean(axis=(0, 1))
    for row, values in zip(table.rows, mean, strict=False):
        assert row[2] == pytest.approx(float(attention_entropy(values)[1]), rel=1e-6)
    of_registers = map_similarity(patch_weights(subject).mean(1)[:, 1:4].reshape(BATCH, 3, *GRID)).mean()
    assert [row[5] for row in table.rows] == [None, *[pytest.approx(of_registers, rel=1e-6)] * 3, None, None]
    drawn = cell_of(result.pictures[0].figure, MAPS, 0, len(NAMES), GRID)
    assert np.argwhere(drawn).tolist() == [[2, 1]]
    assert drawn.max() == pytest.approx(0.75 * LAYOUT.num_tokens)


def test_summaries_are_compared_with_each_other():
    layout = TokenLayout(has_cls=True, num_registers=1, summary_grids=((1, 2),), patch_grid=GRID)
    subject = make_subject(layout=layout)
    (table,) = positional_focus.EXPERIMENT.result([subject], Options()).tables
    maps = subject.store["attention_NxExT"].astype(np.float64)[..., layout.patches].mean(1)[:, 2:4]
    alike = pytest.approx(map_similarity(maps.reshape(BATCH, 2, *GRID)).mean(), rel=1e-6)
    assert [row[5] for row in table.rows] == [None, None, alike, alike, None]


def test_focus_without_registers_has_a_gap():
    layout = TokenLayout(has_cls=True, num_registers=0, summary_grids=(), patch_grid=GRID)
    result = positional_focus.EXPERIMENT.result([make_subject(layout=layout, images=4)], Options())
    assert [row[1] for row in result.tables[0].rows] == ["cls", MIDDLE]
    assert "fewer than two registers" in result.gaps[0]


def make_run(steps, run="runs/a", **settings):
    return [make_subject(f"a@{step}", run=run, step=step, seed=step, **settings) for step in steps]


def test_runs_are_grouped_and_sorted_and_gaps_name_the_others():
    alone, weights = make_subject("b@5", run="runs/b", step=5, images=1), make_subject("weights", images=1)
    given = [weights, *make_run((20, 100, 3), images=1), alone]
    experiment = attention_over_training.EXPERIMENT
    found = [experiment.measure(one, Options()) for one in given if one is not weights]
    assert {run: [one.values.step for one in steps] for run, steps in by_run(found).items()} == {
        "runs/a": [3, 20, 100],
        "runs/b": [5],
    }
    result = experiment.result(given, Options())
    assert [gap.partition(":")[0] for gap in result.gaps] == ["weights", "runs/b"]
    (first, *_), (last, *_) = ([row for row in result.tables[0].rows if row[1] == step] for step in (3, 100))
    assert result.finding == (
        "a@100: the share of attention that the first query sends to patches changes from "
        f"{first[3]:.3g} % at step 3 to {last[3]:.3g} % at step 100, over 3 steps (n = 1 image)."
    )


def test_steps_of_a_run_are_rows_of_its_grid():
    subjects = make_run((20, 100, 3), images=2)
    result = attention_over_training.EXPERIMENT.result(
        [*subjects, make_subject("b@5", run="runs/b", step=5)], Options()
    )
    assert result.gaps == ["runs/b: one step only; RUN@all shows all that are kept"]
    (picture,), (table,) = result.pictures, result.tables
    assert labels_of(picture.figure) == (["image", *NAMES], ["step 3", "step 20", "step 100"])
    for column, subject in enumerate(sorted(subjects, key=lambda one: one.step)):
        first_ExP = patch_weights(subject)[0].mean(0)
        for query in range(len(NAMES)):
            drawn = cell_of(picture.figure, MAPS, 1 + query, column, GRID)
            expected = LAYOUT.num_tokens * first_ExP[query].reshape(GRID)
            np.testing.assert_allclose(drawn, expected, rtol=1e-6)
            run, step, _, share, entropy = table.rows[len(NAMES) * column + query]
            assert (run, step) == ("runs/a", subject.step)
            assert share == pytest.approx(100 * first_ExP[query].sum(), rel=1e-6)
            assert entropy == pytest.approx(float(attention_entropy(first_ExP[query])[1]), rel=1e-6)


def test_long_runs_are_thinned_in_the_picture_and_whole_in_the_table():
    layout = TokenLayout(has_cls=True, num_registers=0, summary_grids=(), patch_grid=(1, 2))
    result = attention_over_training.EXPERIMENT.result(
        make_run(range(1, 26), images=1, layout=layout), Options()
    )
    shown = labels_of(result.pictures[0].figure)[1]
    assert len(shown) == 10 and (shown[0], shown[-1]) == ("step 1", "step 25")
    assert len(result.tables[0].rows) == 25


def test_one_step_has_no_table_and_no_picture():
    result = attention_over_training.EXPERIMENT.result(make_run((7,)), Options())
    assert result.gaps and not result.tables and not result.pictures


def test_registers_over_training_are_compared_on_all_images():
    subjects = make_run((2, 1))
    (table,) = over_training.EXPERIMENT.result(subjects, Options()).tables
    for row, subject in zip(table.rows, subjects[::-1], strict=True):
        registers = patch_weights(subject).mean(1)[:, 1:4].reshape(BATCH, 3, *GRID)
        assert row[1] == subject.step
        assert row[-1] == pytest.approx(map_similarity(registers).mean(), rel=1e-6)
