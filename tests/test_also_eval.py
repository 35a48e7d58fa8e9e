"""Further splits and data sets that a run evaluates, and which fail before the first compilation."""

import json

import pytest
from PIL import Image

from tests.fixtures.digits import make_config
from vit_registers import config as config_lib
from vit_registers.errors import ConfigError, DataError
from vit_registers.runs import prepared
from vit_registers.runs.checkpoint_folder import TrainedOn, read_meta, trained_on
from vit_registers.train import train


def _config(**overrides):
    config = make_config(optimizer={"warmup_steps": 1}, run={"total_steps": 2})
    return config_lib.override(config_lib.to_dict(config), overrides)


@pytest.mark.slow
def test_other_splits_are_evaluated_beside_the_first(tmp_path, digits_tfds):
    also = ("digits train", "digits train[:10%]")
    place = {"data.loader": "tfdata", "data.data_dir": str(digits_tfds)}
    config = _config(**{"data.also_eval": also}, **place)
    train(config, str(tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = {key: value for line in lines for key, value in line.items() if key.endswith("/images")}
    data = trained_on(read_meta(str(tmp_path / "run"), 2))
    assert data == TrainedOn(class_names=tuple("0123456789"), num_examples=1438)
    assert found == {"test/images": 359, "digits:train/images": 1438, "digits:train[:10%]/images": 144}


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ("digits tset", "digits has no split 'tset': did you mean 'test'"),
        ("imagenet2012_real validation", "is not prepared in .*; or leave it out"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_the_first_step(also, message, tmp_path):
    config = _config(**{"data.also_eval": (also,), "data.data_dir": str(tmp_path)})
    with pytest.raises(DataError, match=message):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["folder", "digits"])
@pytest.mark.parametrize("loader", ["memory", "tfdata"])
@pytest.mark.parametrize(
    ("setting", "split", "message"),
    [
        ("eval_split", "vall", "no split 'vall'"),
        ("train_split", "trian", "no split 'trian': did you mean 'train'"),
        ("also_eval", ("{name} vall",), "no split 'vall'"),
        ("eval_split", "empty", "has no classes|has no split 'empty'"),
        ("eval_split", "test[:0]", "is empty|no split 'test.:0.'"),
    ],
)
def test_every_split_is_opened_before_anything_is_compiled(
    tmp_path, monkeypatch, digits_tfds, name, loader, setting, split, message
):
    for part in ("train/a", "test/a", "empty"):
        (tmp_path / "root" / part).mkdir(parents=True)
    for part in ("train", "test"):
        Image.new("L", (8, 8)).save(tmp_path / "root" / part / "a" / "1.png")
    split = tuple(one.format(name=name) for one in split) if isinstance(split, tuple) else split
    place = tmp_path / "root" if name == "folder" else digits_tfds
    config = _config(
        **{
            "data.name": name,
            "data.loader": loader,
            "data.data_dir": str(place),
            "model.num_classes": 1 if name == "folder" else 10,
            "objective.classification.loss": "sigmoid",
            f"data.{setting}": split,
        },
    )
    monkeypatch.setattr(prepared, "set_up", None)  # which comes before the first compilation
    with pytest.raises(DataError, match=message):
        train(config, str(tmp_path / "run"))


def test_steps_to_trace_beyond_the_run_are_refused_at_the_start(tmp_path):
    config = _config(**{"run.profile_steps": "1:3"})
    with pytest.raises(ConfigError, match=r"run\.profile_steps='1:3': the run has 2 steps"):
        train(config, str(tmp_path / "run"))
