"""A checkpoint remembers the classes and the number of examples that it was trained on."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import vit_registers
from tests.fixtures.digits import make_config
from tests.fixtures.quick import parametrize_quick
from vit_registers.config import Config, InitFrom
from vit_registers.data.batch import labelled_batch, relabel
from vit_registers.data.class_names import match
from vit_registers.data.loaders import open_also_eval, open_data
from vit_registers.errors import ConfigError
from vit_registers.evaluate import evaluate
from vit_registers.fine_tuning import check_kept_head
from vit_registers.runs.checkpoint_folder import TrainedOn
from vit_registers.runs.checkpoints import Checkpoints

NAMES = ("ape", "bee", "cat", "dog")


def _config(root):
    return make_config(
        model={"num_classes": len(NAMES)},
        data={"name": "folder", "data_dir": str(root), "eval_split": "val"},
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """folders(*class names) -> a data set of 12 noisy images of each, the same for the same name."""
    root = tmp_path_factory.mktemp("folders")

    def folders(*names):
        place = root / "-".join(names)
        for split in ("train", "val"):
            for name in names:
                rng = np.random.default_rng(list(name.encode()))
                (place / split / name).mkdir(parents=True, exist_ok=True)
                for i in range(12):
                    image = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                    Image.fromarray(image).save(place / split / name / f"{i}.png")
        return place

    return folders


@pytest.fixture
def run(untrained, folders, tmp_path):
    """A run folder that was trained on NAMES."""
    data = TrainedOn(class_names=NAMES, num_examples=48)
    untrained(tmp_path / "run", _config(folders(*NAMES)), data=data)
    return tmp_path / "run"


def _by_hand(run, root, names):
    """Top-1 with each class by its name among NAMES, from logits."""
    images = [np.asarray(Image.open(root / "val" / name / f"{i}.png")) for name in names for i in range(12)]
    image_BxHxWxC = (np.stack(images)[..., None] / 255.0 - 0.5) / 0.5
    choice_B = np.asarray(vit_registers.load(str(run))(image_BxHxWxC.astype(np.float32)).logits).argmax(1)
    return float((choice_B == np.repeat([NAMES.index(name) for name in names], 12)).mean())


@parametrize_quick(
    ("loader", "names"),
    [("memory", NAMES), ("memory", ("bee", "dog")), ("tfdata", ("bee", "dog")), ("memory", ("cat",))],
)
def test_some_of_the_classes_are_evaluated_by_name(run, folders, capsys, loader, names):
    overrides = {"data.data_dir": str(folders(*names)), "data.loader": loader}
    result = evaluate(str(run), step=None, overrides=overrides, params=None)
    assert result["images"] == 12 * len(names)
    assert result["top1"] == pytest.approx(_by_hand(run, folders(*names), names), abs=1e-6)
    assert ("labels are matched by name" in capsys.readouterr().out) == (names != NAMES)


@pytest.mark.parametrize("names", [("ape", "bee", "cat", "eel"), ("ape", "fox")])
def test_other_classes_are_refused_with_their_names(run, folders, run_here, names):
    message = (
        f"classes that the model was not trained on: '{names[-1]}'; it was trained on 4: 'ape', 'bee', 'cat'"
    )
    args = (f"--checkpoint={run}", f"--config.data.data_dir={folders(*names)}")
    code, _, err = run_here("evaluate", *args)
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err


@pytest.mark.slow
def test_analyze_judges_a_head_by_the_names_of_its_classes(run, folders, run_here, tmp_path):
    for names, is_known in ((("bee", "dog"), True), (("ape", "bee", "cat", "eel"), False)):
        out = tmp_path / "-".join(names)
        code, said, err = run_here(
            "analyze", "accuracy", f"--checkpoint={run}", f"--out={out}",
            f"--config.data.data_dir={folders(*names)}",
        )  # fmt: skip
        if is_known:
            assert code == 0, err
            (row,) = (out / "accuracy").glob("*.csv")
            top1 = float(row.read_text().splitlines()[1].split(",")[3])
            assert top1 == pytest.approx(100 * _by_hand(run, folders(*names), names), abs=0.01)
        else:
            assert "not trained on: 'eel'" in said + err


def test_without_names_classes_are_compared_by_number(untrained, folders, tmp_path):
    untrained(tmp_path / "old", _config(folders(*NAMES)))
    for names in (NAMES, ("ape", "bee", "cat", "eel")):
        overrides = {"data.data_dir": str(folders(*names))}
        assert evaluate(str(tmp_path / "old"), step=None, overrides=overrides, params=None)["images"] == 48
    with pytest.raises(ConfigError, match="has 2 classes"):
        overrides = {"data.data_dir": str(folders("ape", "bee"))}
        evaluate(str(tmp_path / "old"), step=None, overrides=overrides, params=None)


@pytest.mark.parametrize(
    ("names", "trained", "expected"),
    [
        ("abc", "abc", None),
        ("cab", "abc", [2, 0, 1]),
        ("b", "abc", [1]),
        ("012", "abc", None),
        ("abc", "012", None),
        ("13", "0123", [1, 3]),
        ("01", "abc", "2 of 2 classes that the model was not trained on: '0', '1'; it was trained on 3: 'a'"),
        ("ax", "abcde", "1 of 2 .*: 'x'; it was trained on 5: 'a', 'b', 'c' and 2 more"),
        ("vwxyz", "abcde", "5 of 5 .*: 'v', 'w', 'x' and 2 more;"),
        ("ba", "aab", "several classes of training have the name 'a'"),
    ],
)
def test_classes_by_name(names, trained, expected):
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            match(names, trained, where="it")
    else:
        found = match(names, trained, where="it")
        assert found is expected or found.tolist() == expected


def test_other_data_that_are_evaluated_while_training_are_matched_by_name(folders, capsys):
    data = dataclasses.replace(_config(folders("3", "1")).data, name="digits", eval_split="test")
    model = dataclasses.replace(_config("").model, num_classes=10)
    config = Config(model=model, data=dataclasses.replace(data, also_eval=("digits train", "folder val")))
    others = open_also_eval(config, open_data(config))
    assert others["digits:train"].table is None
    assert others["folder:val"].table.tolist() == [1, 3]
    assert "data 'folder' has 2 of the 10 classes" in capsys.readouterr().out
    batch = labelled_batch(np.zeros((3, 8, 8, 1), np.uint8), np.array([1, -1, 0]), np.ones(3, bool))
    (changed,) = relabel([batch], others["folder:val"].table)
    assert changed.targets["label"].tolist() == [3, -1, 1]


def test_a_head_is_kept_for_its_own_classes_only(run):
    kept = InitFrom(path=str(run), keep_head=True)
    check_kept_head(kept, NAMES)
    check_kept_head(InitFrom(path=str(run)), ("eel",))
    with pytest.raises(
        ConfigError, match=r"init_from.keep_head: the data set has 1 of 4 .* trained on: 'eel'"
    ):
        check_kept_head(kept, ("ape", "bee", "cat", "eel"))
    with pytest.raises(ConfigError, match=r"has 4 classes: .* data set has 4: 'bee', 'ape'"):
        check_kept_head(kept, ("bee", "ape", "cat", "dog"))


@pytest.mark.parametrize(
    ("names", "number", "message"),
    [
        (NAMES, 48, None),
        (NAMES, 47, "was trained on 48 examples, and data.train_split now has 47"),
        (("ape", "bee", "cat", "eel"), 48, "not trained on: 'eel'"),
        (("bee", "ape", "cat", "dog"), 48, "Resuming requires the same, in the same order"),
        (("ape", "bee"), 48, "the data set now has 2: 'ape', 'bee'"),
    ],
)
def test_a_run_is_resumed_on_its_own_classes_only(run, folders, capsys, names, number, message):
    data = TrainedOn(class_names=names, num_examples=number)
    if names != NAMES:
        with pytest.raises(ConfigError, match=message):
            Checkpoints(str(run), _config(folders(*NAMES)), data=data)
        return
    with Checkpoints(str(run), _config(folders(*NAMES)), data=data) as saver:
        assert saver.restorable_step == 1
    said = capsys.readouterr().out
    assert message in said if message else not said


def test_the_first_result_of_converted_weights_has_the_plain_name(untrained, folders, run_here, tmp_path):
    untrained(tmp_path / "run", _config(folders(*NAMES)))
    assert run_here("convert", f"--input={tmp_path}/run", f"--output={tmp_path}/out")[0] == 0
    for args in ((f"--config.data.data_dir={folders('ape', 'bee', 'cat', 'eel')}",), (), ()):
        assert run_here("evaluate", f"--checkpoint={tmp_path}/out", *args)[0] == 0
    names = sorted(path.name for path in (tmp_path / "out" / "evaluation").iterdir())
    assert len(names) == 2 and names[1] == "val-0.json"


@pytest.mark.slow
def test_results_on_other_data_stand_side_by_side_with_all_their_settings(run, folders, run_here):
    own, other = folders(*NAMES), folders("ape", "cat")
    for args in (
        (),
        (f"--config.data.data_dir={own}/../{own.name}", "--config.data.eval_batch_size=16"),  # the same
        ("--config.data.eval_split=train",),
        (f"--config.data.data_dir={other}",),
        ("--config.data.mean=(0.25,)",),
        ("--config.model.dtype=bfloat16",),
    ):
        assert run_here("evaluate", f"--checkpoint={run}", *args)[0] == 0
    found = {path.name: json.loads(path.read_text()) for path in (run / "evaluation").iterdir()}
    assert {"val-1.json", "train-1.json"} < found.keys()
    digests = sorted(found.keys() - {"val-1.json", "train-1.json"})
    assert len(digests) == 3 and all(name.startswith("val-1-") for name in digests)
    for result in found.values():
        data = result["settings"]["data"]
        assert {
            "name",
            "data_dir",
            "eval_split",
            "eval_ops",
            "mean",
            "std",
            "on_broken",
            "loader",
        } < data.keys()
        assert data["image_size"] == [8, 8]
        assert result["left_out"] == 0
    assert {found[name]["settings"]["data"]["data_dir"] for name in digests} == {str(own), str(other)}
    assert found["val-1.json"]["settings"]["data"]["eval_batch_size"] == 16
