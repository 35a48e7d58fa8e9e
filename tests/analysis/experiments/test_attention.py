"""Attention maps, head by head, over steps and on average: what is drawn and tabled against plain numpy."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.fixtures.tiles import IMAGES, MAPS, cell_of, labels_of
from vit_registers.analysis.experiments import (
    attention_maps,
    attention_over_training,
    focus_over_training,
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

DEPTH = 6
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
    norms_BxLxT = rng.gamma(4, size=(images, 1 + DEPTH, tokens))
    norms = norms_BxLxT[:, -1, layout.patches]
    subject = SimpleNamespace(
        name=name,
        run=None if run is None else Path(run),
        step=step,
        layout=layout,
        store=Store(
            attention_NxExT=weights.astype(np.float32),
            center_T=rng.dirichlet(np.ones(tokens), images).astype(np.float32),
            norms_LxT=norms_BxLxT,
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
    picture, (table,) = result.pictures[0], result.tables
    assert labels_of(picture.figure) == (["image", *NAMES], ["step 3", "step 20", "step 100"])
    for column, subject in enumerate(sorted(subjects, key=lambda one: one.step)):
        mean_BxExP = patch_weights(subject).mean(1)
        for query in range(len(NAMES)):
            drawn = cell_of(picture.figure, MAPS, 1 + query, column, GRID)
            expected = LAYOUT.num_tokens * mean_BxExP[0, query].reshape(GRID)
            np.testing.assert_allclose(drawn, expected, rtol=1e-6)
            run, step, _, share, entropy, peak = table.rows[len(NAMES) * column + query]
            assert (run, step) == ("runs/a", subject.step)
            maps_BxP = mean_BxExP[:, query]
            assert share == pytest.approx(100 * maps_BxP.sum(1).mean(), rel=1e-6)
            assert entropy == pytest.approx(float(attention_entropy(maps_BxP)[1].mean()), rel=1e-6)
            assert peak == pytest.approx(LAYOUT.num_tokens * maps_BxP.max(1).mean(), rel=1e-6)


def test_pictures_show_where_artifacts_go_and_where_they_stay():
    """Image 1 has a peak that goes, image 2 one that stays, image 3 a smaller one in the middle only."""
    peak_XxN = np.array([[1, 9, 1, 1], [1, 8, 9.5, 4], [1, 1, 9.5, 1], [1.5, 1, 9.5, 1]])
    chosen = attention_over_training.choose_images(peak_XxN)
    assert chosen == {"first": 0, "removed": 1, "persistent": 2}
    subjects = make_run((1, 2, 3, 4), images=4)
    for subject, peak_N in zip(subjects, peak_XxN, strict=True):
        maps = subject.store["attention_NxExT"]
        maps[:, :, 0] = 0.01
        maps[:, :, 0, PATCHES.start + 5] = 0.05 * peak_N[:, None]
    pictures = attention_over_training.EXPERIMENT.result(subjects, Options()).pictures
    assert [picture.name for picture in pictures] == ["first-a", "removed-a", "persistent-a"]
    for image, picture in enumerate(pictures):
        for step in range(4):
            drawn = cell_of(picture.figure, MAPS, 1, step, GRID)
            assert drawn[1, 1] == pytest.approx(LAYOUT.num_tokens * 0.05 * peak_XxN[step, image], rel=1e-6)
        example = cell_of(picture.figure, IMAGES, 0, 2, (6, 8))
        np.testing.assert_array_equal(example, subjects[0].example_NxHxWxC[image])


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
    overlap, focus = focus_over_training.EXPERIMENT.result(subjects, Options()).tables
    for row, subject in zip(overlap.rows, subjects[::-1], strict=True):
        registers = patch_weights(subject).mean(1)[:, 1:4].reshape(BATCH, 3, *GRID)
        likeness_B = map_similarity(registers)
        assert row[:3] == ("runs/a", subject.step, "registers")
        assert row[3] == pytest.approx(likeness_B.mean(), rel=1e-6)
        assert row[4:9] == pytest.approx(np.percentile(likeness_B, [5, 25, 50, 75, 95]), rel=1e-6)
        mean_RxP = registers.mean(0).reshape(3, -1)
        correlation_RxR = np.corrcoef(mean_RxP)
        unit_RxP = mean_RxP / np.linalg.norm(mean_RxP, axis=1, keepdims=True)
        pairs = np.triu_indices(3, k=1)
        assert row[9] == pytest.approx((unit_RxP @ unit_RxP.T)[pairs].mean(), rel=1e-6)
        assert row[10] == pytest.approx(correlation_RxR[pairs].mean(), rel=1e-5)
    once = positional_focus.EXPERIMENT.result([subjects[1]], Options()).tables[0].rows
    assert [row[2:] for row in focus.rows[: len(NAMES) + 1]] == [row[1:5] for row in once]


def test_the_picture_of_overlap_has_each_run_and_maps_have_each_step():
    layout = TokenLayout(has_cls=True, num_registers=1, summary_grids=(), patch_grid=GRID)
    without = [make_subject(f"b@{step}", run="runs/b", step=step, layout=layout) for step in (1, 5)]
    subjects = make_run((7, 2, 4), images=5)
    result = focus_over_training.EXPERIMENT.result([*without, *subjects], Options())
    overlap, _, maps = result.pictures
    (axes,) = overlap.figure.axes
    (line,) = axes.lines
    assert line.get_label() == "a" and line.get_xdata().tolist() == [2, 4, 7]
    rows = [row for row in result.tables[0].rows if row[0] == "runs/a"]
    assert line.get_ydata().tolist() == [row[3] for row in rows]
    assert labels_of(maps.figure) == (NAMES, ["step 2", "step 4", "step 7"])
    mean = patch_weights(subjects[0]).mean(axis=(0, 1))[2].reshape(GRID)
    np.testing.assert_allclose(cell_of(maps.figure, MAPS, 2, 2, GRID), LAYOUT.num_tokens * mean, rtol=1e-5)
    assert result.finding.startswith("b@5: at step 5, there are fewer than two registers")


def test_norms_over_training_are_distributions_of_each_step_and_block():
    """At step s the norms of n patches are s times 1 .. n: quantile q is s (1 + q (n - 1))."""
    subjects = make_run((200, 100), images=25)
    for subject in subjects:
        norms_BxLxT = subject.store["norms_LxT"]
        for block in range(1, 1 + DEPTH):
            values = subject.step * block * np.random.default_rng(block).permutation(np.arange(1, 301))
            norms_BxLxT[:, block, PATCHES] = values.reshape(25, 12)
    result = over_training.EXPERIMENT.result(subjects, Options(rule="quantile:0.98"))
    over, by_block = result.tables
    fractions = np.array([0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1])
    quantiles = 1 + fractions * 299
    rows = [(step, block) for step in (100, 200) for block in (2, 3, 4, 6)]
    assert [row[1:3] for row in by_block.rows] == rows
    for row, (step, block) in zip(by_block.rows, rows, strict=True):
        assert row[3:] == pytest.approx(step * block * quantiles)
    std = np.sqrt((300**2 - 1) / 12)
    excess = -1.2 * (300**2 + 1) / (300**2 - 1)  # of a uniform distribution on n integers
    for row, step in zip(over.rows, (100, 200), strict=True):
        median, p99, largest = step * DEPTH * quantiles[[4, 7, 8]]
        expected = [median, p99, largest, std / 150.5, p99 / median, excess, 2.0]
        assert row[1:] == (step, *(pytest.approx(one) for one in expected))
    steps, blocks = result.pictures
    (panel,) = steps.figure.axes
    assert panel.get_title(loc="left") == "a" and panel.get_yscale() == "log"
    assert panel.lines[0].get_xydata().tolist() == [[100, over.rows[0][2]], [200, over.rows[1][2]]]
    assert len(panel.collections) == 4  # bands
    widest = panel.collections[0].get_paths()[0].vertices[:, 1]
    assert (widest.min(), widest.max()) == pytest.approx((600, 2 * 6 * 300 * 100))
    assert [axes.get_title(loc="left") for axes in blocks.figure.axes] == [f"block {n}" for n in (2, 3, 4, 6)]
