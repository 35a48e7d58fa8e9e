"""evaluate on weights of other code bases, and what converted weights keep of them."""

import json

import numpy as np
import pytest
from PIL import Image

import vit_registers
from tests.test_convert import TINY, _params
from vit_registers.config import Data, Model
from vit_registers.data.class_names import names_to_match
from vit_registers.interop.export import targets

NAMES = ("ape", "bee", "cat")
MODEL = Model(**{**vars(TINY), "num_classes": len(NAMES)})
OPS = "resize_small(36, 'pil_bicubic') | central_crop(rounding='half_even')"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of images of the classes, of which the last in the alphabet is the first of the head."""
    root = tmp_path_factory.mktemp("root")
    rng = np.random.default_rng(0)
    for name in NAMES:
        (root / "val" / name).mkdir(parents=True)
        for i in range(4):
            image = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / "val" / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An exported folder in timm's format, with its own preprocessing and the names of its classes."""
    folder = tmp_path_factory.mktemp("weights") / "theirs"
    data = Data(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), eval_ops=OPS)
    model = Model(**{**vars(MODEL), "pooling": "cls", "use_mask_token": False})
    targets.write(targets.export(model, _params(model), "timm"), folder, np.float32, data, NAMES[::-1])
    return folder


def _flags(root):
    data = {"name": "folder", "data_dir": root, "eval_split": "val", "loader": "pil"}
    return [f"--config.data.{name}={value}" for name, value in data.items()]


def _by_hand(path, root):
    """Top-1 of the model by the names of the classes."""
    model = vit_registers.load(str(path))
    files = [root / "val" / name / f"{i}.png" for name in NAMES for i in range(4)]
    choice_B = np.asarray(model(model.preprocess([str(file) for file in files])).logits).argmax(1)
    pairs = zip(choice_B, files, strict=True)
    return float(np.mean([model.class_names[choice] == file.parent.name for choice, file in pairs]))


def test_weights_of_another_code_base_are_evaluated(run_here, weights, root, tmp_path):
    code, out, err = run_here("evaluate", f"--checkpoint={weights}", *_flags(root), f"--out={tmp_path}/out")
    assert code == 0, err
    (file,) = (tmp_path / "out").glob("theirs-val-*.json")
    result = json.loads(file.read_text())
    assert (result["step"], result["images"]) == (None, 12)
    assert "matched by name" in out and "warning" not in out
    assert result["top1"] == pytest.approx(_by_hand(weights, root), abs=1e-6)
    assert result["settings"]["data"]["eval_ops"] == OPS


def test_converted_weights_keep_class_names_and_preprocessing(run_here, weights, root, tmp_path):
    assert run_here("convert", f"--input={weights}", f"--output={tmp_path}/run")[0] == 0
    assert run_here("convert", f"--input={tmp_path}/run", f"--output={tmp_path}/again")[0] == 0
    theirs = vit_registers.load(str(weights))
    for name in ("run", "again"):
        converted = vit_registers.load(f"{tmp_path}/{name}")
        assert converted.class_names == NAMES[::-1] == theirs.class_names
        for setting in ("mean", "std", "eval_ops", "loader"):
            assert getattr(converted.config.data, setting) == getattr(theirs.config.data, setting)
    code, out, err = run_here("evaluate", f"--checkpoint={tmp_path}/again", *_flags(root))
    assert code == 0 and "matched by name" in out, err
    result = json.loads((tmp_path / "again" / "evaluation" / "val-0.json").read_text())
    assert result["top1"] == pytest.approx(_by_hand(weights, root), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "is not a run folder, so the images must be given: --config.data.name=folder"),
        (("--step=3",), "a step, here 3, is for run folders"),
        (("--config.data.name=folder",), "data_dir"),
    ],
)
def test_what_is_missing_is_one_line(run_here, weights, arguments, message):
    code, _, err = run_here("evaluate", f"--checkpoint={weights}", *arguments)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and message in lines[0], err


def test_weights_without_a_head_are_one_line(run_here, root, tmp_path):
    model = Model(**{**vars(MODEL), "num_classes": 0, "pooling": "cls", "use_mask_token": False})
    targets.write(targets.export(model, _params(model), "timm"), tmp_path / "none", np.float32, Data())
    code, _, err = run_here("evaluate", f"--checkpoint={tmp_path}/none", *_flags(root))
    assert code == 2 and "has no head, so there is nothing to evaluate" in err.splitlines()[-1]


def test_settings_that_weights_lack_are_for_convert(run_here, weights, root, tmp_path):
    (tmp_path / "bare.safetensors").write_bytes((weights / "model.safetensors").read_bytes())
    code, _, err = run_here("evaluate", f"--checkpoint={tmp_path}/bare.safetensors", *_flags(root))
    assert (code, err.count("\n")) == (2, 1)
    assert "give num_heads; convert has flags for it, and makes a run folder" in err


def test_a_checkpoint_that_is_not_there_is_one_line(run_here):
    code, _, err = run_here("evaluate", "--checkpoint=nowhere")
    assert code == 2 and err == "error: --checkpoint=nowhere: there is no such run folder, file or folder\n"


def test_other_names_of_as_many_classes_are_compared_by_number():
    """ImageNet's classes are synsets in TFDS, and words in the files of transformers."""
    synsets, words = ("n01440764", "n01443537"), ("tench", "goldfish")
    assert names_to_match(synsets, words, is_converted=True) is None
    assert names_to_match(synsets, words, is_converted=False) == words  # a run: match refuses them
    assert names_to_match(("tench", "shark"), words, is_converted=True) == words  # match refuses them
    assert names_to_match(synsets[:1], words, is_converted=True) == words
    assert names_to_match(synsets, None, is_converted=True) is None
