"""Every experiment on parameters that are not finite or all zero, and on a single image."""

import csv
import io
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.fixtures.digits import make_config
from vit_registers.analysis import opening
from vit_registers.analysis.experiments import probe_global
from vit_registers.analysis.experiments.catalog import EXPERIMENTS
from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.features.extract import extract
from vit_registers.analysis.features.finite import NotFiniteError
from vit_registers.analysis.features.interventions import Intervention
from vit_registers.analysis.options import Options
from vit_registers.analysis.report import drawing
from vit_registers.analysis.report.result import Rows, number
from vit_registers.analysis.run import analyze
from vit_registers.data.loaders import open_data
from vit_registers.data.sources.boxes import BoxImage
from vit_registers.models.edits import Edits
from vit_registers.models.vit import ViT
from vit_registers.runs.checkpoints import Checkpoints
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training.sharding import batch_sharding
from vit_registers.training.state import TrainState

NUM_IMAGES = 12


def _box_image(seed):
    encoded = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)).save(encoded, "png")
    box = np.array([[0.0, 0.0, 8.0, 8.0]])
    return BoxImage(name=f"{seed}", path=None, encoded=encoded.getvalue(), box_xyxy_px=box)


BOXES = (_box_image(0), _box_image(1))
OPTIONS = Options(rule="quantile:0.9", num_edited=NUM_IMAGES, num_examples=2, boxes=BOXES)
FEATURES = dict.fromkeys(name for experiment in EXPERIMENTS.values() for name in experiment.features)
CONFIG = make_config(
    model={
        "width": 32,
        "num_heads": 4,
        "mlp_dim": 32,
        "patch_size": 2,
        "num_registers": 2,
        "summary_factor": 2,
        "mask": "fractal",
        "pooling": "cls",
    },
    data={"mean": (0.0,), "std": (1.0,), "eval_batch_size": 8},
)
MODEL = CONFIG.model
INDEPENDENT = ("mask", "position-resampling", "cost")  # of the parameters' values
FLAWED = re.compile(r"hold values that are not finite \((\d+) of (\d+) images\)$")


def _model(kind, images_BxHxWx1):
    model = ViT(MODEL, rngs=nnx.Rngs(0))
    if kind in ("broken", "zero"):
        graph, parameters = nnx.split(model)
        value = jnp.nan if kind == "broken" else 0.0
        model = nnx.merge(graph, jax.tree.map(lambda leaf: jnp.full_like(leaf, value), parameters))
    if kind == "overflowing":  # float32 cannot hold the squared norms of the brightest patches
        patches = images_BxHxWx1.reshape(-1, 4, 2, 4, 2).sum((2, 4), np.float64).max((1, 2)) / 255
        at = np.sqrt(np.finfo(np.float32).max / 32) / np.median(patches) * 1.001
        model.patch_embed.kernel[...] = jnp.full_like(model.patch_embed.kernel[...], at)
    return model


def _opened(kind, num_images=NUM_IMAGES):
    loader = open_data(CONFIG)
    with jax.set_mesh(mesh := make_mesh(CONFIG.mesh)):
        batches = loader.eval_batches("test", batch_sharding(mesh))
        images = [np.asarray(next(batches).views["image"]) for _ in range(2)]
    return opening.OpenedModel(
        name=kind,
        path=kind,
        step=None,
        sha256=kind,
        model=_model(kind, np.concatenate(images)[:NUM_IMAGES]),
        config=CONFIG,
        loader=loader,
        num_images=num_images,
    )


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(drawing, "DPI", 20)
    monkeypatch.setattr(probe_global, "_SEEDS", (0,))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """measured(kind, name, num_images=12): the experiment's result and its folder; features are shared."""
    out, opened = tmp_path_factory.mktemp("not_finite"), {}

    def measured(kind, name, num_images=NUM_IMAGES):
        if (kind, num_images) not in opened:
            opened[kind, num_images] = _opened(kind, num_images)
            extract(opened[kind, num_images], tuple(FEATURES), out, OPTIONS)
        (entry,) = analyze([name], [opened[kind, num_images]], OPTIONS, out)
        return entry.result, out / name

    return measured


def _refuse(constant):
    raise ValueError(f"{constant} is no JSON")


def _check_files(result, folder):
    """numbers.json is JSON, and neither a table nor the finding has a number that is not finite."""
    numbers = json.loads((folder / "numbers.json").read_text(), parse_constant=_refuse)
    assert numbers["finding"] == result.finding and result.finding.endswith(".")
    assert "\n" not in result.finding and not re.search(r"\b(nan|inf)\b", result.finding, re.IGNORECASE)
    assert ("Not measured" in result.finding) == (not result.tables)
    assert not any("are left out" in gap for gap in result.gaps)
    for table in result.tables:
        (path,) = folder.glob(re.sub("[^a-z0-9]+", "-", table.title.lower()).strip("-") + ".csv")
        cells = {cell.lower() for row in csv.reader(path.read_text().splitlines()) for cell in row}
        assert not cells & {"nan", "inf", "-inf"}
        assert table.rows, "an empty table"


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_model_that_is_not_finite_is_a_gap(measured, name):
    result, folder = measured("broken", name)
    if EXPERIMENTS[name].needs_text_tower:
        assert result.gaps == ["broken: the model has no text tower"]
        return
    assert result.gaps[0].startswith("broken: the features ")
    assert FLAWED.search(result.gaps[0]).groups() == ("12", "12")
    if name not in INDEPENDENT:
        assert not result.tables and not result.pictures
    _check_files(result, folder)


@pytest.mark.parametrize(
    "name", ["mask", "norms", "neighbours", "components", "remove-outliers", "cls-terms"]
)
def test_norms_that_overflow_in_some_images_are_a_gap(measured, name):
    """What an experiment reads may be finite all the same, if very large."""
    result, folder = measured("overflowing", name)
    features = EXPERIMENTS[name].features
    if "norms_LxT" in features or not features:
        number, total = map(int, FLAWED.search(result.gaps[0]).groups())
        assert 0 < number < total == NUM_IMAGES
        assert not features or not result.tables
    _check_files(result, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_model_of_zeros_gives_finite_numbers(measured, name):
    """Warnings are errors in the tests."""
    _check_files(*measured("zero", name))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_one_image_gives_finite_numbers(measured, name):
    result, folder = measured("random", name, num_images=1)
    assert result.tables or result.pictures or result.gaps
    _check_files(result, folder)


def test_gaps_of_a_model_of_zeros(measured):
    """What is not there is said, and never printed as 0."""
    assert "zero: the norms of all patches are 0" in measured("zero", "norms")[0].gaps
    (gap,) = measured("zero", "components")[0].gaps
    assert "patches are all the same" in gap
    assert "all registers are 0" in measured("zero", "register-activations")[0].gaps[0]
    result, _ = measured("zero", "cls-terms")
    rows = [dict(zip(result.tables[0].columns, row, strict=True)) for row in result.tables[0].rows]
    terms = {"cls", "registers", "summaries", "patches", "bias", "skip", "non-patch"}
    assert {row["term"] for row in rows} == terms
    assert all(row["norm"] is None and row["std"] is None for row in rows)
    assert [row[2:4] for row in result.tables[0].cells()] == [["-", "-"]] * len(rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["norms", "neighbours", "cls-terms", "lost"])
def test_a_sound_model_beside_one_that_is_not_is_measured(tmp_path, name):
    both = [_opened("broken", 4), _opened("random", 4)]
    (entry,) = analyze([name], both, OPTIONS, tmp_path / "both")
    (alone,) = analyze([name], both[1:], OPTIONS, tmp_path / "alone")
    assert entry.result.gaps[0].startswith("broken: ")
    assert [table.rows for table in entry.result.tables] == [table.rows for table in alone.result.tables]
    assert entry.result.tables


def test_nothing_measured_is_an_error(tmp_path, run_here):
    """As users start it: a run whose parameters are not finite, the only checkpoint."""
    opened = _opened("broken")
    params = nnx.to_pure_dict(nnx.state(opened.model, nnx.Param))
    with Checkpoints(str(tmp_path), opened.config) as written:
        state = TrainState(step=jnp.zeros((), jnp.int32), params={"vit": params}, opt_state=None, ema=None)
        written.save(state, None, origin="a test")
    code, out, err = run_here("analyze", "norms", f"--checkpoint={tmp_path}", "--num_images=4")
    assert code == 2
    gap, finding, folder = out.splitlines()
    assert FLAWED.search(gap).groups() == ("4", "4")
    assert finding.startswith("finding: Not measured: ") and folder.endswith("norms")
    assert err.splitlines()[-1] == "error: norms could not be measured on any of the checkpoints"
    assert "Warning" not in err


def _experiment(measure, tables, features=()):
    return Experiment(
        question="?", answers="", definition="", tables=tables, measure=measure, features=features
    )


def _huge(values, rows, layout):
    return Edits(resid=lambda block, resid_BxTxD: resid_BxTxD * jnp.float32(jnp.inf))


def test_an_edited_model_that_is_not_finite_is_a_gap(tmp_path):
    """The model itself is sound; the one beside it is measured."""
    found = [extract(_opened(kind, 2), ("norms_LxT", "image_HxWxC"), tmp_path, OPTIONS) for kind in "ab"]
    huge = Intervention(name="huge", edits=_huge, values={}, rows={})

    def measure(subject, options):
        if subject.name == "a":
            subject.rerun(huge, ("norms_LxT",), 2)
        return Rows(name=subject.name, tables={"t": [()]}, text="it is sound", count="2")

    with pytest.raises(NotFiniteError):
        measure(found[0], OPTIONS)
    experiment = _experiment(measure, {"t": "model"}, features=("norms_LxT",))
    result = experiment.run(found, OPTIONS)
    assert [table.rows for table in result.tables] == [[("b",)]]
    assert result.gaps == [
        "a: the features norms_LxT hold values that are not finite (2 of 2 images), "
        "once the model is edited (huge)"
    ]


def test_numbers_that_are_not_finite_are_left_out_and_counted():
    tables = {"t": [("a", np.nan, np.float32("inf")), ("b", 1.0, 2)]}
    one = _experiment(
        lambda subject, options: Rows(name="a", tables=tables, text=number(np.nan), count="1 image"),
        {"t": "name | x | y"},
    )
    subject = types.SimpleNamespace(name="a", num_parameters=1, num_not_finite=0)
    subject.store = types.SimpleNamespace(missing=lambda names: names)
    subject.layout = types.SimpleNamespace(num_registers=0, num_summaries=0)
    result = one.run([subject], OPTIONS)
    assert result.finding == "For a: not defined (n = 1 image)."
    assert [list(row) for row in result.tables[0].rows] == [["a", None, None], ["b", 1.0, 2]]
    assert result.gaps == ["t: 2 numbers are not finite and are left out"]
