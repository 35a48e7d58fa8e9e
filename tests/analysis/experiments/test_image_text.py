"""zero-shot, retrieval and zero-shot-segmentation against `evaluate --task`, of runs and of whole weights."""

import json

import numpy as np
import pytest
from PIL import Image

import vit_registers
from configs import clip_digits
from tests.objectives.image_text.test_objective import change
from vit_registers.analysis import given_images, opening
from vit_registers.analysis.experiments.catalog import EXPERIMENTS, reads_texts
from vit_registers.analysis.features.extract import extract
from vit_registers.analysis.options import Options
from vit_registers.config import from_mapping
from vit_registers.errors import ConfigError
from vit_registers.evaluation.task import Splits
from vit_registers.train import train

pytestmark = pytest.mark.slow

NAMES = ("zero-shot", "retrieval", "zero-shot-segmentation")
SCENES = Splits(*(("digit_scenes", "test"),) * 2)


def tiny(registers):
    return change(
        from_mapping(clip_digits.get_config(f"registers={registers},steps=8").to_dict()),
        model={"width": 16, "depth": 1, "num_heads": 2},
        text={"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32, "embed_dim": 16},
        data={"batch_size": 40},
        checkpoint={"every_steps": 8},
        run={"eval_every_steps": 8, "log_every_steps": 8},
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory, compiled_once):
    """A folder with a run of no registers, one of 2, and the first one as weights of OpenCLIP."""
    root = tmp_path_factory.mktemp("image_text")
    for registers in (0, 2):
        train(tiny(registers), str(root / f"r{registers}"))
    vit_registers.load_image_text(str(root / "r0")).save(root / "weights", "open_clip")
    return root


def measured(place, tmp_path, checkpoints, name, *, overrides=None, options=None, **how):
    """The result of an experiment."""
    given = [str(place / one) for one in checkpoints]
    how = {"num_images": None, "has_texts": True, "data": "digits:test", **how}
    opened = opening.open_all(given, overrides=overrides or {}, **how)
    lacking = {one.name: EXPERIMENTS[name].lacking(one.parts) for one in opened}
    assert not any(lacking.values()), lacking
    features = EXPERIMENTS[name].features
    subjects = [extract(one, features, tmp_path, Options()) for one in opened]
    return EXPERIMENTS[name].run(
        subjects, options or Options(dense_images=SCENES), [one.name for one in opened]
    )


def evaluated(run_here, place, task, *args):
    """The newest result of evaluate --task."""
    out = place / "evaluated"
    given = (f"--checkpoint={place / 'r0'}", f"--task={task}", f"--out={out}")
    code, _, error = run_here("evaluate", *given, *args)
    assert code == 0, error
    paths = sorted(out.glob(f"{task}-*.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(paths[-1].read_text())


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_have_what_evaluate_has(place, tmp_path, run_here, name):
    result = measured(place, tmp_path, ("r0", "r2"), name)
    assert not result.gaps and result.pictures
    assert result.finding.startswith("Without registers: ") and "with 2 registers: " in result.finding
    assert {row[0] for table in result.tables for row in table.rows} == {"r0", "r2"}
    first = dict(zip(result.tables[0].columns, result.tables[0].rows[0], strict=True))
    args = ("--data=digit_scenes:test",) if "segmentation" in name else ()
    values = evaluated(run_here, place, name.replace("-", "_"), *args)
    if name == "zero-shot":
        pairs = {"top-1, %": 100 * values["top1"], "images": values["images"], "templates": 4}
        right = [row[4] * row[3] / 100 for row in result.tables[1].rows if row[0] == "r0"]
        assert sum(right) == pytest.approx(values["top1"] * values["images"])
        (head,) = result.headlines["r0"]
        assert head.value == pytest.approx(100 * values["top1"]) and head.value_B is not None
    elif name == "retrieval":
        pairs = {"R@k, %": 100 * values["image_to_text_r1"], "texts": values["texts"]}
        found = {(row[1], row[2]): row[3] for row in result.tables[0].rows if row[0] == "r0"}
        assert len(found) == 6
        assert found["text to image", 10] == pytest.approx(100 * values["text_to_image_r10"])
        assert "No captions" in result.images[0]
    else:
        pairs = {"mean IoU, %": 100 * values["miou"], "pixels, %": 100 * values["pixel_accuracy"]}
        assert len([row for row in result.tables[1].rows if row[0] == "r0"]) == values["classes"]
    assert {key: first[key] for key in pairs} == pytest.approx(pairs)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_another_code_base_have_what_their_run_has(place, tmp_path, name):
    run = place / "r0" / "config.json"
    captions = json.loads(run.read_text())["data"]["captions"]
    overrides = {f"data.captions.{key}": captions[key] for key in ("tokenizer", "templates", "class_texts")}
    overrides["data.eval_ops"] = ""
    overrides = {key: tuple(value) if isinstance(value, list) else value for key, value in overrides.items()}
    result = measured(place, tmp_path, ("r0", "weights"), name, overrides=overrides)
    assert not result.gaps
    for table in result.tables:
        own, theirs = ([row[1:] for row in table.rows if row[0] == one] for one in ("r0", "weights"))
        for first, second in zip(own, theirs, strict=True):
            numbers = [[x for x in row if isinstance(x, float)] for row in (first, second)]
            assert [type(x) if isinstance(x, float) else x for x in first] == [
                type(x) if isinstance(x, float) else x for x in second
            ]
            assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)


def test_fewer_images_are_the_first_ones(place, tmp_path):
    result = measured(place, tmp_path, ("r0",), "zero-shot", num_images=37)
    assert result.tables[0].rows[0][3] == 37
    assert measured(place, tmp_path, ("r0",), "retrieval", num_images=37).tables[0].rows[0][5] == 37


def test_a_tokenizer_that_does_not_fit_is_a_gap(place, tmp_path):
    overrides = {"data.captions.tokenizer": "trained(vocab_size=99999)"}
    result = measured(place, tmp_path, ("weights",), "zero-shot", overrides=overrides)
    assert len(result.gaps) == 1 and result.gaps[0].startswith("weights: ")
    assert result.finding.startswith("Not measured: weights: ")


def test_what_lacks_a_text_tower_or_images_is_a_gap(place, tmp_path):
    assert all(EXPERIMENTS[name].lacking(("cls", "patches", "head")) == "text tower" for name in NAMES)
    assert reads_texts(["norms", "zero-shot"]) and not reads_texts(["norms", "frozen-heads"])
    (opened,) = opening.open_all([str(place / "weights")], "digits:test", {}, num_images=None)
    assert "text tower" not in opened.parts  # it is not read unless an experiment requires it
    result = measured(place, tmp_path, ("r0",), "zero-shot-segmentation", options=Options())
    assert result.gaps[0].startswith("no images with a class for each pixel were given: --task_data=")
    data = {"data": str(place / "photos")}
    (place / "photos").mkdir(exist_ok=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(place / "photos" / "a.png")
    result = measured(place, tmp_path, ("r0",), "zero-shot", **data)
    assert result.finding.startswith("Not measured: r0: ")


def test_names_of_classes_are_not_those_of_other_data():
    data = tiny(0).data
    assert given_images.shown(data, "digits:train", {}).captions == data.captions
    assert given_images.shown(data, "cifar10:test", {}).captions.class_texts == ()
    given = {"data.captions.class_texts": data.captions.class_texts}
    assert given_images.shown(data, "cifar10:test", given).captions == data.captions
    with pytest.raises(ConfigError):
        given_images.shown(data, "nowhere", {})
