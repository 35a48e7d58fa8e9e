"""LOST as an experiment: planted objects, images of all sizes, what is said of data that cannot be judged."""

import csv
import functools
import io
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from scipy import ndimage

from vit_registers.analysis.experiments import lost as module
from vit_registers.analysis.experiments.lost import EXPERIMENT
from vit_registers.analysis.features import compute
from vit_registers.analysis.measures.lost import sweep_cells
from vit_registers.analysis.options import Options
from vit_registers.config import Model
from vit_registers.data.sources.boxes import BoxImage, open_voc, read_image
from vit_registers.errors import ConfigError, DataError
from vit_registers.models.vit import ViT

PATCH = 4
SIDES = ("xmin", "ymin", "xmax", "ymax")


def discover(feature_PxD, grid, *, use_center=False, use_norm=False, bias=0.0, **where):
    """What LOST finds with one setting."""
    for cell, found in sweep_cells({("k", 1): feature_PxD}, grid, biases=[bias], **where):
        if (cell.use_center, cell.use_norm) == (use_center, use_norm):
            return found


def looked_at(image_HxWx3, num_blocks, *, depth=3, scale=1.0):
    """Stands for a model: keys of block 3 tell patches with white from others; all else is the same."""
    height, width = image_HxWx3.shape[:2]
    padded = np.pad(image_HxWx3[..., 0], ((0, -height % PATCH), (0, -width % PATCH)))
    rows, columns = (side // PATCH for side in padded.shape)
    is_white_P = padded.reshape(rows, PATCH, columns, PATCH).max((1, 3)).ravel() > 127
    same_PxD = np.full((rows * columns, 2), scale)
    values = {}
    for block in range(max(depth - num_blocks, 0) + 1, depth + 1):
        values |= {("q", block): same_PxD, ("k", block): same_PxD, ("v", block): same_PxD}
    return values | {("k", depth): scale * np.eye(2)[is_white_P.astype(int)]}, (rows, columns)


def fake(name="fake", native=looked_at, told=None, scale=None):
    native = native if scale is None else functools.partial(native, scale=scale)
    told = [] if told is None else told
    return SimpleNamespace(
        name=name,
        model=SimpleNamespace(patch_size=PATCH),
        layout=SimpleNamespace(num_registers=0, num_summaries=0),
        native=native,
        progress=lambda *what: told.append(what),
    )


def image_with(size, box=None, *, truths=None, name="one"):
    """A black image with a white box; its true boxes are `truths`, or that box."""
    pixels = np.zeros((*size, 3), np.uint8)
    if box is not None:
        pixels[box[1] : box[3], box[0] : box[2]] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    truths = ([] if box is None else [box]) if truths is None else truths
    boxes = np.array(truths, np.float64).reshape(-1, 4)
    return BoxImage(name=name, path=None, encoded=stream.getvalue(), box_xyxy_px=boxes)


def rows_of(result, name="fake"):
    return list(csv.DictReader(io.StringIO(result.files[f"boxes-{name}.csv"])))


def table_of(result, place=0):
    table = result.tables[place]
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_planted_objects(monkeypatch):
    """The box is exact; a true box half as wide is a hit, one pixel less is none; images are read once."""
    box = (8, 4, 24, 12)
    truths = {"whole": [box], "half": [(8, 4, 16, 12)], "less": [(8, 4, 15, 12)], "none": []}
    records = [image_with((31, 47), box, truths=these, name=name) for name, these in truths.items()]
    reads, told = [], []
    read = module.read_image
    monkeypatch.setattr(module, "read_image", lambda record: reads.append(record.name) or read(record))
    result = EXPERIMENT.result([fake(told=told)], Options(boxes=records, num_examples=2))
    assert reads == list(truths)
    assert told == [("lost", i, 4) for i in range(1, 5)]
    assert result.gaps == []

    rows = [row for row in rows_of(result) if row["cell"] == "no sweep"]
    assert [row["image"] for row in rows] == list(truths)
    assert {tuple(row[side] for side in SIDES) for row in rows} == {("8", "4", "24", "12")}
    assert [row["iou"] for row in rows] == ["1.0", "0.5", "0.4375", ""]
    assert [row["hit"] for row in rows] == ["1", "1", "0", ""]

    cells = {row["cell"]: row for row in table_of(result)}
    assert list(cells) == [
        "best of the sweep",
        "no sweep",
        "fixed bias",
        "no sweep, values",
        "fixed bias, values",
        "best of half 2, on half 1",
        "best of half 1, on half 2",
        "whole image",
    ]
    assert cells["whole image"]["CorLoc, %"] == 0.0 and cells["whole image"]["images"] == 3
    best, plain = cells["best of the sweep"], cells["no sweep"]
    assert (plain["cell"], plain["of"], plain["block"], plain["bias"]) == ("no sweep", "k", 3, 0.0)
    assert plain["CorLoc, %"] == pytest.approx(200 / 3)
    assert (plain["images"], plain["without boxes"], plain["seed in background"]) == (3, 1, 0)
    assert best["CorLoc, %"] == plain["CorLoc, %"]
    every = table_of(result, 1)
    assert len(every) == 3 * 2 * 2 * 6
    assert {row["CorLoc, %"] for row in every if row["of"] == "v"} == {0.0}  # the box is all of the image


def test_the_picture_has_the_proportions_of_the_images():
    sizes = {"wide": (8, 80), "plain": (30, 41), "tall": (60, 12)}
    records = [image_with(size, (4, 4, 8, 8), name=name) for name, size in sizes.items()]
    result = EXPERIMENT.result([fake()], Options(boxes=[*records, records[0]], num_examples=3))
    picture, _ = result.pictures
    axes = np.array(picture.figure.axes).reshape(3, 4)
    for row, (height, width) in zip(axes, sizes.values(), strict=True):
        for one in row:
            assert (one.get_xlim(), one.get_ylim()) == ((0, width), (height, 0))
            assert one.get_aspect() == 1
        assert [part.get_bbox().bounds for part in row[0].patches[::2]] == [(4, 4, 4, 4)] * 2
        assert row[1].lines[0].get_xydata().tolist() == [[6, 6]]  # the seed, the middle of its patch


def test_biases_are_those_given_and_each_is_a_point_of_the_picture():
    records = [image_with((24, 24), (4, 4, 12, 12), name=str(i)) for i in range(3)]
    result = EXPERIMENT.result([fake(scale=0.2)], Options(boxes=records, lost_biases=(0.0, 0.5, -0.01)))
    every = table_of(result, 1)
    assert {row["bias"] for row in every} == {0.0, 0.5, -0.01}
    assert not any("fixed" in row["cell"] for row in table_of(result))
    axes = result.pictures[1].figure.axes[0]
    assert len(axes.lines) == 7
    whole, *lines = axes.lines
    assert whole.get_label() == "whole image" and set(whole.get_ydata()) == {0.0}
    for line in lines:
        of, kind = line.get_label().split(", ")
        assert line.get_xdata().tolist() == [-0.01, 0.0, 0.5]
        switches = {"raw": "no", "normalised": "yes"}[kind]
        found = {
            row["bias"]: row["CorLoc, %"]
            for row in every
            if (row["of"], row["centred"], row["normalised"]) == (of[0], switches, switches)
        }
        assert line.get_ydata().tolist() == [found[bias] for bias in (-0.01, 0.0, 0.5)]
    assert {line.get_ydata()[2] for line in lines if "raw" in line.get_label()} == {0.0}
    only = EXPERIMENT.result([fake()], Options(boxes=records, lost_biases=(0.0,)))
    assert [picture.name for picture in only.pictures] == ["lost-fake"]


@pytest.mark.parametrize("size", [(30, 50), (52, 31), (40, 40), (11, 90)])
def test_a_centre_crop_against_plain_numpy(size):
    """The released protocol, with boxes that follow the crop: a restatement of LOST on what the model saw."""
    side, (height, width) = 24, size
    rng = np.random.default_rng(height)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    middle = np.array([width / 2, height / 2])
    truths = np.array([[*(middle - 4), *(middle + 4)], [0, 0, 2, 2], [0, 0, width, height]], np.float64)
    records = [BoxImage(name="one", path=None, encoded=stream.getvalue(), box_xyxy_px=truths)]
    seen = []

    def native(image, num_blocks):
        seen.append(image)
        patches = image.reshape(6, PATCH, 6, PATCH, 3).transpose(0, 2, 1, 3, 4).reshape(36, -1)
        feature_PxD = patches[:, ::7].astype(float) - 120
        return {(name, 3): feature_PxD for name in "qkv"}, (6, 6)

    result = EXPERIMENT.result([fake(native=native)], Options(boxes=records, lost_size_px=side))
    scale = side / min(size)
    grown = Image.fromarray(pixels).resize((int(width * scale + 1e-9), int(height * scale + 1e-9)), 2)
    x0, y0 = (round((one - side) / 2) for one in grown.size)
    np.testing.assert_array_equal(seen[0], np.asarray(grown)[y0 : y0 + side, x0 : x0 + side])

    feature_PxD = native(seen[0], 1)[0]["k", 3]
    gram = feature_PxD @ feature_PxD.T
    order = np.argsort(((gram > 0) & ~np.eye(36, dtype=bool)).sum(1), kind="stable")
    seed = order[0]
    labels, _ = ndimage.label((gram[[s for s in order[:100] if gram[seed, s] > 0]].sum(0) > 0).reshape(6, 6))
    rows, columns = np.where(labels == labels.flat[seed])
    box = [columns.min() * PATCH, rows.min() * PATCH, (columns.max() + 1) * PATCH, (rows.max() + 1) * PATCH]
    (row,) = (row for row in rows_of(result) if row["cell"] == "no sweep")
    assert [int(row[name]) for name in SIDES] == box

    ratio = np.array(grown.size) / (width, height)
    moved = (truths.reshape(3, 2, 2) * ratio - (x0, y0)).clip(0, side)
    areas = (moved[:, 1] - moved[:, 0]).prod(1)
    assert areas[0] > 0 and areas[2] == side**2
    overlaps = np.clip(np.minimum(moved[:, 1], box[2:]) - np.maximum(moved[:, 0], box[:2]), 0, None).prod(1)
    own = (box[2] - box[0]) * (box[3] - box[1])
    assert float(row["iou"]) == pytest.approx((overlaps / (areas + own - overlaps)).max())
    gone = int((areas == 0).sum())
    line = f"{gone} true boxes lie outside of the centre crop of 24 px, and are left out"
    assert result.gaps == [line] * (gone > 0)
    assert gone == (size != (40, 40))


def test_no_box_in_the_crop():
    records = [image_with((8, 80), (0, 0, 8, 8))]
    result = EXPERIMENT.result([fake()], Options(boxes=records, lost_size_px=8))
    assert not result.tables
    assert result.gaps == ["no true box is left in the centre crops of 8 px (--lost_size)"]


def test_blocks_vary_too():
    records = [image_with((24, 24), (4, 4, 12, 12))]
    result = EXPERIMENT.result([fake()], Options(boxes=records, num_blocks=2))
    assert result.gaps == []
    assert {(row["of"], row["block"]) for row in table_of(result, 1)} == {
        (of, block) for of in "qkv" for block in (2, 3)
    }
    assert [row["block"] for row in table_of(result)] == [*[3] * 5, None]  # of one image there are no halves
    result = EXPERIMENT.result([fake()], Options(boxes=records, num_blocks=9))
    assert result.gaps == ["fake: the model has 3 of the 9 blocks asked for"]
    assert {row["block"] for row in table_of(result, 1)} == {1, 2, 3}


def test_seeds_that_are_background_are_counted():
    def native(image, num_blocks=1):  # small features, which biases outdo, and large ones
        return looked_at(image, num_blocks, scale=0.2 if len(image) < 30 else 1)

    records = [image_with((height, 24), (4, 4, 12, 12)) for height in (24, 28, 32)]
    result = EXPERIMENT.result([fake(native=native)], Options(boxes=records))
    counts = set()
    for row in table_of(result, 1):
        options = {"use_center": row["centred"] == "yes", "use_norm": row["normalised"] == "yes"}
        found = []
        for values, grid in (native(read_image(record)) for record in records):
            where = {"patch_size_px": PATCH, "image_size_px": (grid[0] * PATCH, 24), "bias": row["bias"]}
            found.append(discover(values[row["of"], 3], grid, **where, **options))
        assert row["seed in background"] == sum(one.is_fallback for one in found), row
        counts.add(row["seed in background"])
    assert counts >= {0, 2, 3}


def test_without_boxes_nothing_is_computed():
    told = []
    for records, gap in (
        ((), "no images with boxes were given: --boxes="),
        ([image_with((8, 8)), image_with((9, 9))], "none of the 2 images has a box"),
    ):
        result = EXPERIMENT.result([fake(told=told)], Options(boxes=records))
        assert len(result.gaps) == 1 and result.gaps[0].startswith(gap)
        assert not (result.tables or result.files or result.pictures or told)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 4)])
def test_images_of_one_patch(size):
    truth = (0, 0, size[1], size[0])
    result = EXPERIMENT.result([fake()], Options(boxes=[image_with(size, truth)]))
    assert {row["CorLoc, %"] for row in table_of(result, 1)} == {100.0}
    assert {row["CorLoc, %"] for row in table_of(result) if row["cell"] == "whole image"} == {100.0}
    for row in rows_of(result):
        assert tuple(int(row[side]) for side in SIDES) == truth


def test_boxes_over_the_edge_are_counted():
    box = (8, 8, 16, 16)
    truths = ([box], [(8, 8, 17, 16)], [(-1, 8, 16, 16)], [(8, 8, 16, 16.5), box])
    records = [image_with((16, 16), box, truths=these) for these in truths]
    result = EXPERIMENT.result([fake("a"), fake("b")], Options(boxes=records))
    (gap,) = result.gaps  # for both models once
    assert gap.startswith("3 of 4 images: a true box goes over the edge")
    rows = [row for row in rows_of(result, "b") if row["cell"] == "no sweep"]
    assert [float(row["iou"]) for row in rows] == pytest.approx([1, 64 / 72, 64 / 136, 1])


@pytest.mark.parametrize("size", [(100, 150), (1, 900), (900, 1), (90, 5000), (5000, 90), (64, 16)])
def test_large_images_are_shrunk(size, monkeypatch):
    monkeypatch.setattr(module, "MAX_PATCHES", 64)
    seen = []

    def native(image, num_blocks):
        seen.append(image.shape[:2])
        return looked_at(image, num_blocks)

    height, width = size
    box = (0, 0, -(-width // 2), -(-height // 2))
    result = EXPERIMENT.result([fake(native=native)], Options(boxes=[image_with(size, box)]))
    ((h, w),) = seen
    num_patches = -(-h // PATCH) * -(-w // PATCH)
    is_shrunk = -(-height // PATCH) * -(-width // PATCH) > 64
    assert num_patches <= 64 and (h <= height and w <= width)
    assert num_patches > 32 and ((h, w) != size) == is_shrunk
    assert result.gaps == ["fake: 1 of 1 images had to be shrunk to 64 patches"] * is_shrunk
    for row in rows_of(result):
        x0, y0, x1, y1 = (int(row[side]) for side in SIDES)
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        if row["cell"] == "no sweep":  # right to a patch of the small image
            assert abs(x1 - box[2]) <= -(-PATCH * width // w) and abs(y1 - box[3]) <= -(-PATCH * height // h)


def test_a_model_that_refuses_the_sizes_leaves_the_others():
    def refuse(image, num_blocks):
        raise ConfigError("position_resampling='none': no")

    records = [image_with((24, 24), (4, 4, 12, 12))]
    result = EXPERIMENT.result([fake("bad", refuse), fake("good")], Options(boxes=records))
    assert result.gaps == ["bad: cannot be shown images of their own size: position_resampling='none': no"]
    assert {row["model"] for row in table_of(result)} == {"good"}
    result = EXPERIMENT.result([fake("bad", refuse)], Options(boxes=records))
    assert len(result.gaps) == 1 and not result.tables


def test_a_folder_with_an_image_that_breaks_off(tmp_path):
    for folder in ("images", "annotations"):
        (tmp_path / folder).mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for name in "ab":
        Image.fromarray(noise).save(tmp_path / "images" / f"{name}.png")
        sides = "".join(f"<{side}>{n}</{side}>" for side, n in zip(SIDES, "1199", strict=True))
        text = f"<annotation><object><bndbox>{sides}</bndbox></object></annotation>"
        (tmp_path / "annotations" / f"{name}.xml").write_text(text)
    records = open_voc(tmp_path)
    path = tmp_path / "images" / "b.png"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"b.png cannot be decoded as an image"):
        EXPERIMENT.result([fake()], Options(boxes=records))


TINY = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "patch_size": PATCH, "image_size": (8, 8)}
MODELS = {
    "registers": Model(**TINY, num_registers=2),
    "grey": Model(**TINY, channels=1, use_cls=False, pooling="gap"),
    "fractal": Model(**TINY, summary_factor=2, mask="fractal", num_registers=1),
}


@pytest.mark.parametrize(
    ("kind", "size"), [("registers", (10, 7)), ("registers", (1, 3)), ("grey", (9, 8)), ("fractal", (5, 13))]
)
def test_native_is_the_model_on_the_image_padded_with_zeros(kind, size):
    settings = MODELS[kind]
    mean, std = ((0.4,), (0.3,)) if settings.channels == 1 else ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    model = ViT(settings, rngs=nnx.Rngs(0))
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    shown = np.asarray(Image.fromarray(image).convert("L"))[..., None] if settings.channels == 1 else image
    grid = tuple(-(-side // PATCH) for side in size)
    padded = np.zeros((1, *(PATCH * n for n in grid), settings.channels), np.float32)
    padded[0, : size[0], : size[1]] = (shown / 255 - np.array(mean)) / np.array(std)
    taps = nnx.jit(lambda model, padded: {name: model(padded).taps[name] for name in "qkv"})(model, padded)
    start = model.layout.num_tokens - model.layout.num_patches

    found, shape = compute.native(model, mean=mean, std=std)(image, 9)
    assert shape == grid
    assert list(found) == [(name, block) for block in (1, 2) for name in "qkv"]
    for (name, block), value_PxD in found.items():
        expected = np.asarray(taps[name][block - 1])[0, start:].reshape(grid[0] * grid[1], -1)
        np.testing.assert_allclose(value_PxD, expected, rtol=1e-4, atol=1e-5)


def test_the_last_block_alone_and_sizes_of_one_grid_compiled_once():
    model = ViT(MODELS["registers"], rngs=nnx.Rngs(0))
    native = compute.native(model, mean=(0.5,) * 3, std=(0.2,) * 3)
    found, _ = native(np.zeros((10, 6, 3), np.uint8), 1)
    assert list(found) == [("q", 2), ("k", 2), ("v", 2)]
    with jax.no_tracing():
        native(np.zeros((9, 5, 3), np.uint8), 1)
