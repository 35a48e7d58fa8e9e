"""background-variance: planted features in boxes, gaps, and the patches of a real model."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from vit_registers.analysis.experiments.background_variance import EXPERIMENT
from vit_registers.analysis.features import compute
from vit_registers.analysis.options import Options
from vit_registers.config import Model
from vit_registers.data.sources.boxes import BoxImage
from vit_registers.models.vit import ViT

PATCH = 4


def _image(size, boxes, *, name="one"):
    stream = io.BytesIO()
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(stream, "PNG")
    box_xyxy_px = np.array(boxes, np.float64).reshape(-1, 4)
    return BoxImage(name=name, path=None, encoded=stream.getvalue(), box_xyxy_px=box_xyxy_px)


def _planted(image_HxWx3, num_blocks):
    """Features of a grid of 4 x 4: +-1 in the upper half, +-2 below, and 60 in the last patch."""
    assert num_blocks == 0
    rows, columns = (-(-side // PATCH) for side in image_HxWx3.shape[:2])
    sign = np.where(np.arange(rows * columns) % 2, 1.0, -1.0)
    size = np.where(np.arange(rows * columns) < rows * columns // 2, 1.0, 2.0)
    feature_Px1 = (10 + sign * size)[:, None]
    feature_Px1[-1] = 60.0
    return {("patches", 3): feature_Px1}, (rows, columns)


def _subject(native=_planted, told=None):
    told = [] if told is None else told
    return SimpleNamespace(
        name="m",
        model=SimpleNamespace(patch_size=PATCH),
        layout=SimpleNamespace(num_registers=0, num_summaries=0),
        native=native,
        progress=lambda *what: told.append(what),
    )


def _tables(result):
    return [[dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in result.tables]


def test_planted_variances_with_and_without_the_outlier():
    records = [_image((16, 16), [(0, 0, 16, 8)], name="a"), _image((16, 16), [], name="b")]
    records.append(_image((16, 16), [(0, 0, 8, 8), (8, 0, 16, 8)], name="c"))
    result = EXPERIMENT.result([_subject()], Options(boxes=records, rule="absolute:30"))
    assert result.gaps == ["1 of 3 images have no box and are left out"]
    variance, outliers = _tables(result)
    found = {(row["region"], row["of"]): row for row in variance}
    for which in ("all patches", "without outliers"):
        row = found["inside", which]
        assert (row["patches"], row["variance"], row["within images"]) == (16, 1.0, 1.0)
        assert row["variance / mean squared norm, %"] == pytest.approx(100 / 101)
    low, high = 8.0, 12.0  # four and three of each, and 60, in each image
    for which, values in (
        ("all patches", [low] * 4 + [high] * 3 + [60.0]),
        ("without outliers", [low] * 4 + [high] * 3),
    ):
        row = found["outside", which]
        assert row["patches"] == 2 * len(values) and row["variance"] == pytest.approx(np.var(values))
        assert row["variance / mean squared norm, %"] == pytest.approx(
            100 * np.var(values) / np.mean(np.square(values))
        )
    assert [(row["outliers"], row["absolute:30, %"]) for row in outliers] == [(0, 0.0), (2, 12.5)]
    assert {(row["images"], row["images without boxes"]) for row in outliers} == {(2, 1)}
    assert "12.5 % of the patches outside and 0 % of those inside" in result.finding
    (picture,) = result.pictures
    assert len(picture.figure.axes[0].patches) == 4


def test_the_rule_is_applied_to_the_patches_of_all_images():
    """One of 32 patches: mean + 3 deviations of one image alone would not flag it in the other."""
    seen = []

    def native(image, num_blocks):
        features, grid = _planted(image, num_blocks)
        seen.append(image.shape)
        if image.shape[1] == 12:  # the second image has no outlier
            features["patches", 3][-1] = 12.0
        return features, grid

    records = [_image((16, 16), [(0, 0, 8, 8)]), _image((16, 12), [(0, 0, 8, 8)])]
    result = EXPERIMENT.result([_subject(native)], Options(boxes=records, rule="std:3"))
    assert [row["outliers"] for row in _tables(result)[1]] == [0, 1]
    assert seen == [(16, 16, 3), (16, 12, 3)] * 2


def test_gaps():
    run = lambda **options: EXPERIMENT.result([_subject()], Options(**options)).gaps  # noqa: E731
    assert run() == ["no images with boxes were given: --boxes=DIR of PASCAL VOC, or NAME:SPLIT of TFDS"]
    assert run(boxes=[_image((8, 8), [])]) == ["none of the 1 images has a box: nothing can be judged"]
    assert run(boxes=[_image((8, 8), [(0, 0, 8, 8)])]) == ["m: no patch has its centre outside of the boxes"]
    assert run(boxes=[_image((8, 8), [(1, 1, 2, 2)])]) == ["m: no patch has its centre inside of the boxes"]
    assert "m: no outliers by absolute:99" in run(boxes=[_image((8, 8), [(0, 0, 4, 4)])], rule="absolute:99")


def test_the_patches_are_those_that_the_last_block_leaves():
    settings = Model(
        width=8, depth=2, num_heads=2, mlp_dim=16, patch_size=4, image_size=(8, 8), num_registers=2
    )
    model = ViT(settings, rngs=nnx.Rngs(0))
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    features, grid = compute.native(model, mean=(0.0,) * 3, std=(1.0,) * 3)(image, 0)
    ((name, value_PxD),) = features.items()
    assert name == ("patches", 2) and grid == (2, 2)
    taps = model(image[None].astype(np.float32) / 255).taps
    np.testing.assert_allclose(value_PxD, taps["resid"][-1][0, 3:], rtol=1e-4, atol=1e-5)
