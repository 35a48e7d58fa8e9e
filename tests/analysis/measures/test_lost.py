"""LOST against a restatement in plain Python, hand-worked grids, and CorLoc worked by hand on photographs."""

import itertools
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vit_registers.analysis.measures.lost import (
    CorLoc,
    SweepCell,
    choose_by_halves,
    corloc,
    count_hits,
    find_hits,
    iou,
    summarize_sweep,
    sweep_cells,
)
from vit_registers.data.sources.boxes import open_voc
from vit_registers.errors import ConfigError, DataError

RACCOONS = Path(__file__).parents[4] / "shared" / "data" / "raccoon-voc.zip"
ARRAYS = ("degree", "seed_similarity", "expansion", "mask", "box_xyxy_px")


def discover(feature_PxD, grid, *, use_center=False, use_norm=False, bias=0.0, **where):
    """What LOST finds with one setting."""
    for cell, found in sweep_cells({("k", 1): feature_PxD}, grid, biases=[bias], **where):
        if (cell.use_center, cell.use_norm) == (use_center, use_norm):
            return found


def restated(features, grid, *, patch, size, center=False, norm=False, bias=0, k=100):
    """The nine steps on lists of numbers of any kind, such as exact fractions."""
    rows, columns = grid
    cells = list(itertools.product(range(rows), range(columns)))
    if center:
        means = [sum(column) / len(features) for column in zip(*features, strict=True)]
        features = [[x - m for x, m in zip(row, means, strict=True)] for row in features]
    if norm:
        lengths = [sum(x * x for x in row) ** 0.5 for row in features]
        features = [[x / length for x in row] for row, length in zip(features, lengths, strict=True)]
    similarity = [[sum(map(lambda x, y: x * y, f, g)) + bias for g in features] for f in features]
    degrees = [sum(a > 0 for j, a in enumerate(row) if j != i) for i, row in enumerate(similarity)]
    order = sorted(range(len(cells)), key=lambda i: (degrees[i], i))
    seed = order[0]
    seeds = [s for s in order[:k] if similarity[seed][s] > 0]
    m = [sum(similarity[s][j] for s in seeds) for j in range(len(cells))]
    found, front = {cells[seed]}, [cells[seed]] if m[seed] > 0 else []
    while front:
        y, x = front.pop()
        for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if near in cells and near not in found and m[cells.index(near)] > 0:
                found.add(near)
                front.append(near)
    ys, xs = zip(*found, strict=True)
    box = [min(xs) * patch, min(ys) * patch, min((max(xs) + 1) * patch, size[1])]
    box.append(min((max(ys) + 1) * patch, size[0]))
    mask = [cell in found for cell in cells]
    return degrees, cells[seed], similarity[seed], m, mask, box, m[seed] <= 0


def check(found, expected, grid, **tolerance):
    degrees, seed, similarity, m, mask, box, is_fallback = expected
    np.testing.assert_array_equal(found.degree, np.reshape(degrees, grid))
    assert found.seed == seed
    np.testing.assert_allclose(found.seed_similarity, np.reshape(similarity, grid).astype(float), **tolerance)
    np.testing.assert_allclose(found.expansion, np.reshape(m, grid).astype(float), **tolerance)
    np.testing.assert_array_equal(found.mask, np.reshape(mask, grid))
    assert found.box_xyxy_px.tolist() == box
    assert found.is_fallback is is_fallback


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("bias", [0, -2, 1.5])
@pytest.mark.parametrize("k", [1, 5, 100])
def test_integers_with_ties_exactly(center, bias, k):
    """Sixteen patches, so that the mean is exact in binary; degrees tie and similarities are exactly 0."""
    rng = np.random.default_rng(int(10 * bias) + k + 100)
    num_ties = 0
    for grid, size in (((4, 4), (16, 13)), ((2, 8), (7, 32)), ((16, 1), (61, 2))) * 4:
        feature_PxD = rng.integers(-2, 3, (16, 3))
        exact = [[Fraction(int(x)) for x in row] for row in feature_PxD]
        expected = restated(exact, grid, patch=4, size=size, center=center, bias=Fraction(bias), k=k)
        found = discover(
            feature_PxD,
            grid,
            patch_size_px=4,
            image_size_px=size,
            use_center=center,
            bias=bias,
            num_candidates=k,
        )
        check(found, expected, grid, rtol=0, atol=0)
        num_ties += expected[0].count(min(expected[0])) > 1
    assert num_ties > 0


@pytest.mark.parametrize("k", [3, 40])
def test_many_ties(k):
    """Enough patches for sorting algorithms that are not stable to show it."""
    feature_PxD = np.random.default_rng(k).integers(-1, 2, (256, 2))
    expected = restated(feature_PxD.tolist(), (16, 16), patch=2, size=(32, 32), bias=-1, k=k)
    found = discover(
        feature_PxD, (16, 16), patch_size_px=2, image_size_px=(32, 32), bias=-1, num_candidates=k
    )
    check(found, expected, (16, 16), rtol=0, atol=0)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bias", [0.0, 0.05, -0.4, -1.5])
def test_random_features(center, norm, bias):
    rng = np.random.default_rng(7)
    grid, size = (5, 7), (76, 112)
    for _ in range(5):
        feature_PxD = rng.standard_normal((35, 6)).astype(np.float32) + np.float32(0.3)
        options = {"patch": 16, "size": size, "center": center, "norm": norm, "bias": bias, "k": 12}
        expected = restated(feature_PxD.astype(float).tolist(), grid, **options)
        found = discover(
            feature_PxD,
            grid,
            patch_size_px=16,
            image_size_px=size,
            use_center=center,
            use_norm=norm,
            bias=bias,
            num_candidates=12,
        )
        check(found, expected, grid, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grid", [(1, 127), (16, 16), (29, 29)])
def test_counts_of_large_grids(grid):
    """All rows are similar to each other, and there are more of them than a byte can count."""
    num_patches = grid[0] * grid[1]
    feature_PxD = np.random.default_rng(num_patches).integers(-1, 3, (num_patches, 4))
    for bias in (0, 40, -3):
        similar_PxP = feature_PxD @ feature_PxD.T + bias > 0
        np.fill_diagonal(similar_PxP, False)
        found = discover(feature_PxD, grid, patch_size_px=1, image_size_px=grid, bias=bias)
        np.testing.assert_array_equal(found.degree, similar_PxP.sum(1).reshape(grid))
    assert similar_PxP.sum(1).max() < num_patches - 1


@pytest.mark.parametrize("value", [2.0, 0.0])
def test_one_patch(value):
    """An image smaller than a patch: the box is the image, whatever is done to the feature."""
    cells = list(
        sweep_cells({("k", 1): np.array([[value, 0]])}, (1, 1), patch_size_px=16, image_size_px=(5, 7))
    )
    assert len(cells) == 4
    for cell, found in cells:
        assert found.box_xyxy_px.tolist() == [0, 0, 7, 5]
        assert found.degree.tolist() == [[0]] and found.seed == (0, 0)
        assert found.is_fallback is (value == 0 or cell.use_center)


def one_hot(grid_of_digits):
    """Patches with the same digit have similarity 1, others 0."""
    digits = np.array([list(map(int, row)) for row in grid_of_digits])
    return np.eye(10)[digits.ravel()], digits.shape


def test_a_diagonal_neighbour_is_no_part_of_the_object():
    feature_PxD, grid = one_hot(["110", "001", "000"])
    found = discover(feature_PxD, grid, patch_size_px=10, image_size_px=(30, 30))
    assert found.degree.tolist() == [[2, 2, 5], [5, 5, 2], [5, 5, 5]]
    assert found.seed == (0, 0)
    assert found.expansion.tolist() == [[3, 3, 0], [0, 0, 3], [0, 0, 0]]
    assert found.mask.tolist() == [[True, True, False], [False] * 3, [False] * 3]
    assert found.box_xyxy_px.tolist() == [0, 0, 20, 10]


def test_the_box_ends_with_the_unpadded_image():
    feature_PxD, grid = one_hot(["0000", "0000", "0011"])
    found = discover(feature_PxD, grid, patch_size_px=14, image_size_px=(29, 55))
    assert found.seed == (2, 2)
    assert found.box_xyxy_px.tolist() == [28, 28, 55, 29]


def test_expansion_is_not_clipped_and_has_its_diagonal():
    feature_PxD = np.array([[1, -2], [1, 0], [1, 2]])  # A = 5 1 -3 | 1 1 1 | -3 1 5
    options = {"patch_size_px": 1, "image_size_px": (1, 3)}
    found = discover(feature_PxD, (1, 3), **options)
    assert found.degree.tolist() == [[1, 2, 1]] and found.seed == (0, 0)
    assert found.seed_similarity.tolist() == [[5, 1, -3]]
    assert found.expansion.tolist() == [[6, 2, -2]]  # rows 0 and 1; clipped, the last would be 1
    assert found.mask.tolist() == [[True, True, False]]
    few = discover(feature_PxD, (1, 3), **options, num_candidates=2)  # patches 0 and 2, which are dissimilar
    assert few.expansion.tolist() == [[5, 1, -3]]
    biased = discover(feature_PxD, (1, 3), **options, bias=2.5)  # A = 7.5 3.5 -.5 | 3.5 3.5 3.5 | -.5 3.5 7.5
    assert biased.expansion.tolist() == [[11, 7, 3]]
    assert biased.box_xyxy_px.tolist() == [0, 0, 3, 1]


def test_a_seed_that_is_background_stands_alone():
    feature_PxD = np.array([[0.2], [1], [1], [1]])
    found = discover(feature_PxD, (2, 2), patch_size_px=8, image_size_px=(16, 16), bias=-0.5)
    assert found.degree.tolist() == [[0, 2], [2, 2]]
    assert found.is_fallback
    assert found.mask.tolist() == [[True, False], [False, False]]
    assert found.box_xyxy_px.tolist() == [0, 0, 8, 8]
    assert not discover(feature_PxD, (2, 2), patch_size_px=8, image_size_px=(16, 16)).is_fallback


def test_a_zero_feature_can_be_normalised():
    """It is similar to nothing, so it is the seed, and background."""
    feature_PxD = np.array([[3.0, 4], [0, 0], [6, 8], [1, 1]])
    found = discover(feature_PxD, (2, 2), patch_size_px=1, image_size_px=(2, 2), use_norm=True)
    assert found.seed == (0, 1) and found.is_fallback
    assert found.seed_similarity.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(DataError, match="not finite"):
        discover(np.array([[1.0], [value]]), (1, 2), patch_size_px=1, image_size_px=(1, 2))


def test_no_candidates_are_refused():
    with pytest.raises(ConfigError, match="num_candidates=0: must be >= 1"):
        discover(np.ones((2, 1)), (1, 2), patch_size_px=1, image_size_px=(1, 2), num_candidates=0)


def test_iou():
    boxes = [[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [2, 2, 4, 7], [-5, -5, 15, 15], [3, 3, 3, 9]]
    found = iou([0, 0, 10, 10], boxes)
    np.testing.assert_allclose(found, [1, 1 / 3, 0, 0.1, 0.25, 0])
    assert iou([1, 1, 1, 1], [[1, 1, 1, 1]]).tolist() == [0]
    assert iou([0, 0, 1, 1], np.zeros((0, 4))).shape == (0,)


def test_iou_counts_pixels():
    rng = np.random.default_rng(0)
    for _ in range(50):
        low = rng.integers(0, 8, (5, 2))
        boxes = np.concatenate([low, low + rng.integers(1, 6, (5, 2))], axis=1)
        painted = np.zeros((5, 14, 14), bool)
        for image, (x0, y0, x1, y1) in zip(painted, boxes, strict=True):
            image[y0:y1, x0:x1] = True
        overlap = (painted[:1] & painted).sum((1, 2)) / (painted[:1] | painted).sum((1, 2))
        np.testing.assert_allclose(iou(boxes[0], boxes), overlap, rtol=1e-14)


def test_corloc_counts_images_without_truth_apart():
    box, none = np.array([0, 0, 2, 2]), np.zeros((0, 4))
    truths = [none, np.array([[5, 5, 6, 6], [0, 0, 2, 2]]), np.array([[5.0, 5, 6, 6]]), none]
    assert corloc([box] * 4, truths) == CorLoc(percent=50, num_hits=1, num_images=2, num_skipped=2)
    with pytest.raises(DataError, match="none of 2 images has a ground-truth box"):
        corloc([box] * 2, [none] * 2)
    with pytest.raises(ValueError, match="longer"):
        corloc([box], truths)


@pytest.fixture(scope="module")
def raccoons(tmp_path_factory):
    if not RACCOONS.exists():
        pytest.skip(f"{RACCOONS.name} is not there: CorLoc on photographs is tested only where they are")
    root = tmp_path_factory.mktemp("raccoons")
    zipfile.ZipFile(RACCOONS).extractall(root)
    return {record.name: record for record in open_voc(root)}


def test_corloc_of_five_photographs_by_hand(raccoons):
    boxes = {
        # truth 80 87 522 408, 442 x 321; this is its left half, and misses where 1 is not taken off
        "raccoon-1": (80, 87, 301, 408),
        # truth 59 50 462 499 is 180,947 px of 800 x 573 = 458,400: 0.395
        "raccoon-2": (0, 0, 800, 573),
        # truth 0 0 720 476 in 720 x 480: 0.992
        "raccoon-3": (0, 0, 720, 480),
        # truths 73 106 280 290 (38,088 px) and 226 92 403 298; this holds both, 67,980 px: 0.56
        "raccoon-63": (73, 92, 403, 298),
        # truth 94 59 167 118, 73 x 59; one patch of 16 px lies inside: 256 / 4,307
        "raccoon-17": (96, 64, 112, 80),
    }
    truths = [raccoons[name].box_xyxy_px for name in boxes]
    assert corloc([np.array(box) for box in boxes.values()], truths) == CorLoc(60, 3, 5, 0)
    assert iou(boxes["raccoon-1"], truths[0]).tolist() == [0.5]
    np.testing.assert_allclose(iou(boxes["raccoon-2"], truths[1]), [180_947 / 458_400])
    np.testing.assert_allclose(iou(boxes["raccoon-63"], truths[3]), [38_088 / 67_980, 36_462 / 67_980])


def test_a_planted_object_is_found_in_its_patches(raccoons):
    """Features of the real boxes: patches whose centre is inside share one direction, the others another."""
    boxes, truths, patch = [], [], 16
    for record in raccoons.values():
        (x0, y0, x1, y1), *others = record.box_xyxy_px
        width, height = int(x1) + 40, int(y1) + 30
        grid = (-(-height // patch), -(-width // patch))
        y, x = (np.arange(n) * patch + patch / 2 for n in grid)
        is_inside = ((y0 <= y) & (y < y1))[:, None] & (x0 <= x) & (x < x1)
        if others or 2 * is_inside.sum() >= is_inside.size or min(x1 - x0, y1 - y0) < 4 * patch:
            continue
        feature_PxD = np.eye(2)[is_inside.ravel().astype(int)]
        found = discover(feature_PxD, grid, patch_size_px=patch, image_size_px=(height, width))
        np.testing.assert_array_equal(found.mask, is_inside)
        assert np.abs(found.box_xyxy_px - (x0, y0, x1, y1)).max() <= patch / 2
        boxes.append(found.box_xyxy_px)
        truths.append(record.box_xyxy_px)
    assert len(boxes) > 20
    assert corloc(boxes, truths).percent == 100


def test_sweep_is_discover_for_each_cell_once():
    rng = np.random.default_rng(3)
    features = {("k", 11): rng.standard_normal((12, 4)), ("v", 12): rng.integers(-1, 2, (12, 4))}
    where = {"patch_size_px": 8, "image_size_px": (20, 30)}
    biases = [0.0, -0.5, 0.05, 0.0]
    cells = list(sweep_cells(features, (3, 4), **where, biases=biases, num_candidates=6))
    assert [cell for cell, _ in cells] == [
        SweepCell(*name, *options)
        for name, *options in itertools.product(features, (False, True), (False, True), biases[:3])
    ]
    for cell, found in cells:
        options = {"use_center": cell.use_center, "use_norm": cell.use_norm, "bias": cell.bias}
        alone = discover(features[cell[:2]], (3, 4), **where, **options, num_candidates=6)
        assert (found.seed, found.is_fallback) == (alone.seed, alone.is_fallback)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(found, name), getattr(alone, name), err_msg=name)


def test_summary_has_the_best_and_the_original():
    def result(num_hits):
        return CorLoc(10.0 * num_hits, num_hits, 10, 1)

    original, other = SweepCell("k", 12, False, False, 0.0), SweepCell("v", 12, False, False, 0.0)
    biased, centred = SweepCell("k", 12, False, False, -0.2), SweepCell("k", 11, True, True, 0.05)
    table = {biased: result(4), centred: result(6), original: result(3), other: result(6)}
    assert summarize_sweep(table, feature="k", block=12) == (centred, original)
    assert summarize_sweep(table, feature="v", block=12) == (other, other)  # of equal cells the original
    with pytest.raises(ConfigError, match="lacks 'k' of block 11 with bias 0, neither centred nor norm"):
        summarize_sweep(table, feature="k", block=11)
    with pytest.raises(ConfigError, match="lacks 'q'"):
        summarize_sweep(table, feature="q", block=12)
    with pytest.raises(ConfigError, match="lacks 'k'"):
        summarize_sweep({}, feature="k", block=12)


def test_the_setting_is_chosen_on_the_other_half():
    """A cell that is right on half 1 only, one on half 2 only, one on three images of four, by hand."""
    mixed = np.random.default_rng(5).permutation(40)
    first, second = mixed[:20], mixed[20:]
    plain, one, two, both = (
        SweepCell("k", 1, use_center=False, use_norm=False, bias=b) for b in (0, 1, 2, 3)
    )
    hits = {cell: np.zeros(40, bool) for cell in (plain, one, two, both)}
    hits[one][first] = hits[two][second] = True
    hits[both][first[:15]] = hits[both][second[:14]] = True
    on_first, on_second = choose_by_halves(hits, first=plain, seed=5)
    assert on_first == (two, CorLoc(0.0, 0, 20, 0))  # 20 hits on half 2, none on half 1
    assert on_second == (one, CorLoc(0.0, 0, 20, 0))
    del hits[one], hits[two]
    assert choose_by_halves(hits, first=plain, seed=5) == [
        (both, CorLoc(75.0, 15, 20, 0)),
        (both, CorLoc(70.0, 14, 20, 0)),
    ]
    hits[plain][:] = True
    assert [cell for cell, _ in choose_by_halves(hits | {one: hits[plain]}, first=plain)] == [plain, plain]


def test_halves_of_few_images():
    cell = SweepCell("k", 1, use_center=False, use_norm=False, bias=0.0)
    assert choose_by_halves({cell: np.array([True])}, first=cell) == []
    three = choose_by_halves({cell: np.array([True, True, True])}, first=cell)
    assert [one.num_images for _, one in three] == [2, 1]


def test_hits_leave_out_images_without_boxes():
    boxes = [np.array([0, 0, 2, 2])] * 3
    is_hit_B = find_hits(boxes, [np.array([[0, 0, 2, 2]]), np.zeros((0, 4)), np.array([[5, 5, 6, 6]])])
    assert is_hit_B.tolist() == [True, False]
    assert count_hits(is_hit_B, num_images=3) == CorLoc(50.0, 1, 2, 1)
