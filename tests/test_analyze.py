"""The program analyze: a run with registers and a mask, a run without, and a folder of images."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.digits import make_config
from vit_registers.analysis.experiments.catalog import EXPERIMENTS
from vit_registers.train import train

pytestmark = pytest.mark.slow

SHAPE = {"depth": 2, "patch_size": 2}
EXTRA = {"num_registers": 2, "summary_factor": 2, "mask": "fractal"}
RUNS = {"extra": make_config(model=SHAPE | EXTRA), "plain": make_config(model=SHAPE)}


@pytest.fixture(scope="module")
def command(quick):
    """command("train", "--flag=...") -> (exit code, standard output, standard error)."""

    def command(program, *args):
        whole = [sys.executable, "-m", f"vit_registers.{program}", *args]
        done = subprocess.run(whole, env=quick(), capture_output=True, text=True, timeout=300, check=False)
        return done.returncode, done.stdout, done.stderr

    return command


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two runs and 20 images, of which one is broken."""
    root = tmp_path_factory.mktemp("analyze")
    for name, config in RUNS.items():
        train(config, str(root / name))
    rng = np.random.default_rng(0)
    for i in range(20):
        folder = root / "images" / ("cats" if i % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (root / "images" / "cats" / "1.png").write_bytes(b"no image")
    return root


def _analyze(command, place, name, *args, checkpoints=("extra", "plain"), out="report"):
    given = [f"--checkpoint={place / checkpoint}" for checkpoint in checkpoints]
    return command("analyze", name, *given, f"--out={place / out}", *args)


def test_all_on_a_folder_of_images(place, command, run_here):
    data = (f"--data={place / 'images'}", "--config.data.on_broken=skip")
    code, out, err = _analyze(command, place, "all", *data)
    assert code == 0, err
    *findings, page, text = out.splitlines()
    assert [page, text] == [f"{place}/report/report.html", f"{place}/report/report.md"]
    assert [line.partition(": ")[0] for line in findings] == list(EXPERIMENTS)
    assert not re.search(r"\b(nan|inf)\b", " ".join(findings))
    assert "extra: 20 images, " in err
    assert not re.search(r" of 20 images|move \d|\x1b", err)  # a line is for work that takes long
    page, text = ((place / "report" / name).read_text() for name in ("report.html", "report.md"))
    assert not re.search(r"https?://|\bnan\b", page) and page.count("<script>") == 1
    for name in EXPERIMENTS:
        assert f'<section id="{name}">' in page
        assert f"\n## {name}\n" in text
        numbers = json.loads((place / "report" / name / "numbers.json").read_text())
        assert numbers["tables"] or numbers["gaps"] or name == "attention-maps", name
        for table in numbers["tables"]:
            cells = [cell for row in table["rows"] for cell in row if isinstance(cell, float)]
            assert np.isfinite(cells).all(), (name, table["title"])
    for picture in re.findall(r"\]\(([^)#]+\.png)\)", text):
        assert (place / "report" / picture).stat().st_size > 1000
    for report in (page, text):
        assert "sees whole images, resized to 8 x 8 px of any aspect" in report
    assert "plain: the model has no registers" in page
    assert "plain: model.mask=&#x27;none&#x27;" in page

    tokens = {
        (row[0], row[1])
        for row in json.loads((place / "report" / "norms" / "numbers.json").read_text())["tables"][0]["rows"]
    }
    both = {(name, token) for name in RUNS for token in ("cls", "patches")}
    assert tokens == both | {("extra", "register 0"), ("extra", "register 1"), ("extra", "summaries")}

    code, _, err = _analyze(run_here, place, "norms", *data)
    assert code == 0, err
    assert "of features to" not in err  # no features are computed again


def test_the_runs_own_split_and_the_first_images(place, run_here):
    code, out, err = _analyze(run_here, place, "norms", "--num_images=30", checkpoints=("extra",), out="own")
    assert code == 0, err
    finding, folder = out.splitlines()
    assert re.fullmatch(
        r"finding: For extra: \S+ % of 480 patches are outliers by std:3 \(n = 30 images\)\.", finding
    )
    assert folder == f"{place}/own/norms"
    assert "extra: 30 images, " in err
    assert len((place / "own" / "norms" / "norms-by-token.csv").read_text().splitlines()) == 6


def test_objects_in_a_folder_of_pascal_voc(place, run_here):
    """Two images of another size than the model's; one has no box."""
    rng = np.random.default_rng(0)
    for part in ("images", "annotations"):
        (place / "voc" / part).mkdir(parents=True, exist_ok=True)
    for name, box in (("one", "<object><bndbox>{}</bndbox></object>"), ("two", "")):
        Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(
            place / "voc" / "images" / f"{name}.png"
        )
        sides = "".join(
            f"<{side}>{value}</{side}>"
            for side, value in zip(("xmin", "ymin", "xmax", "ymax"), (1, 1, 30, 24), strict=True)
        )
        text = f"<annotation>{box.format(sides)}</annotation>"
        (place / "voc" / "annotations" / f"{name}.xml").write_text(text)
    code, _, err = _analyze(run_here, place, "lost", f"--boxes={place / 'voc'}", "--num_images=4", out="lost")
    assert code == 0, err
    numbers = json.loads((place / "lost" / "lost" / "numbers.json").read_text())
    best, every = numbers["tables"]
    cells = (
        "best of the sweep",
        "no sweep",
        "fixed bias",
        "no sweep, values",
        "fixed bias, values",
        "whole image",
    )
    assert [row[:2] for row in best["rows"]] == [[name, cell] for name in RUNS for cell in cells]
    assert {tuple(row[-2:]) for row in best["rows"]} == {(1, 1)}  # one judged, one without a box
    assert len(every["rows"]) == 2 * 3 * 4 * 6  # models, q k v, centring and normalising, biases
    percent = every["columns"].index("CorLoc, %")
    assert {row[percent] for row in every["rows"]} <= {0.0, 100.0}


def test_all_steps_of_a_run(place, run_here):
    """Experiments over training read a run folder at all steps; several names make one report."""
    names = "over-training,focus-over-training"
    code, _, err = _analyze(run_here, place, names, checkpoints=("extra",), out="steps")
    assert code == 0, err
    table, _ = json.loads((place / "steps" / "over-training" / "numbers.json").read_text())["tables"]
    steps = sorted(int(path.name) for path in (place / "extra" / "checkpoints").iterdir())
    assert [row[1] for row in table["rows"]] == steps
    assert len(steps) > 1
    page = (place / "steps" / "report.html").read_text()
    assert all(f'id="{name}"' in page for name in names.split(","))
    code, _, err = _analyze(run_here, place, "over-training", checkpoints=(f"extra@{steps[0]}",), out="one")
    assert code == 0, err
    table, _ = json.loads((place / "one" / "over-training" / "numbers.json").read_text())["tables"]
    assert [row[1] for row in table["rows"]] == steps[:1]


def test_one_of_several_names_is_no_experiment(place, run_here):
    code, _, err = _analyze(run_here, place, "norms,focus-over-trainign", out="none")
    assert code == 2 and "focus-over-training" in err and "Traceback" not in err


TRAINED = ("--train_data=digits:train", "--data=digits:test", "--num_images=300")


def test_probes_of_two_splits_store_the_features_of_both(place, run_here):
    code, out, err = _analyze(run_here, place, "probe-global", *TRAINED, checkpoints=("extra",), out="two")
    assert code == 0, err
    assert err.count("extra: 300 images, ") == 2
    trained = "Trained on 300 of the 300 images of digits, split 'train'; tested on 300 of the 300 images of"
    assert f"images: {trained} digits, split 'test'" in out
    folder = place / "two" / "probe-global"
    numbers = json.loads((folder / "numbers.json").read_text())
    assert numbers["images"] == [f"{trained} digits, split 'test'"]
    assert {tuple(row[4:6]) for row in numbers["tables"][0]["rows"] if row[1] == "cls"} == {(300, 300)}
    page = (folder / "report.html").read_text()
    assert "probes are trained on 300 images of digits, split &#x27;train&#x27;" in page
    assert "Trained on 300 of the 300" in page and "Trained on 300" in (folder / "result.md").read_text()
    code, _, err = _analyze(run_here, place, "probe-position", *TRAINED, checkpoints=("extra",), out="two")
    assert code == 0 and "of features to" not in err, err
    # The features to train on are in the folder of those that another command reads as --data.
    code, _, err = _analyze(
        run_here, place, "norms", "--data=digits:train", "--num_images=300", checkpoints=("extra",), out="two"
    )
    assert code == 0, err
    assert len(list((place / "two" / "features").iterdir())) == 2


def test_a_folder_with_splits_and_one_of_the_same_images(place, run_here):
    """cats/ and dogs/ of two splits, of which one image is in both."""
    rng = np.random.default_rng(0)
    same = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    for split, number in (("train", 6), ("val", 4)):
        for i in range(number):
            folder = place / "splits" / split / ("cats" if i % 2 else "dogs")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = same if i == 1 else rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    given = (f"--train_data={place / 'splits'}:train", f"--data={place / 'splits'}:val")
    code, out, err = _analyze(run_here, place, "one-shot", *given, checkpoints=("extra",), out="splits")
    assert code == 0, err
    assert f"Trained on 6 of the 6 images of {place / 'splits'}, split 'train'; tested on 4 of the 4" in out
    assert "warning: extra: 1 image of --data are among those of --train_data" in err


BAD = {
    "other classes to train on": (
        ("one-shot", "--train_data={place}/images", "--data=digits:test", "--config.data.on_broken=skip"),
        {"checkpoints": ("extra",)},
        "one-shot could not be measured on any of the checkpoints",
    ),
    "the same images to train on": (
        ("one-shot", "--train_data=digits:test"),
        {},
        "--train_data=digits:test has images of --data: probes must be tested on other images: give another",
    ),
    "a folder inside the other": (
        ("one-shot", "--train_data={place}/images", "--data={place}/images/cats"),
        {},
        "give a folder that is not inside the other",
    ),
    "no such split to train on": (
        ("one-shot", "--train_data=digits:trian"),
        {},
        "digits has no split 'trian': did you mean 'train'?",
    ),
    "no such folder to train on": (
        ("one-shot", "--train_data=nowhere"),
        {},
        "--train_data=nowhere: there is no such folder",
    ),
    "a folder without that split": (
        ("one-shot", "--train_data={place}/images:train"),
        {},
        "has no split 'train'",
    ),
    "nothing to train": (("norms", "--train_data=digits:train"), {}, "norms trains nothing: leave it out"),
    "unknown experiment": (("norm",), {}, "norms"),
    "no outliers rule": (("norms", "--rule=median:3"), {}, "--rule='median' is unknown"),
    "missing data": (("norms", "--data=nowhere"), {}, "--data=nowhere: there is no such folder"),
    "missing checkpoint": (("norms",), {"checkpoints": ("nowhere",)}, "no such run folder"),
    "missing boxes": (("lost", "--boxes=nowhere"), {}, "--boxes=nowhere: there is no such folder"),
    "missing step": (("norms",), {"checkpoints": ("extra@7",)}, "has no checkpoint of step 7"),
    "no registers": (("register-activations",), {"checkpoints": ("plain",)}, "could not be measured"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, place, run_here):
    args, options, line = BAD[case]
    args = [one.format(place=place) for one in args]
    code, _, err = _analyze(run_here, place, *args, out="bad", **options)
    assert code == 2
    assert line in err.splitlines()[-1]
    assert "Traceback" not in err


def test_broken_image_is_named(place, run_here):
    code, _, err = _analyze(run_here, place, "norms", f"--data={place / 'images'}", out="broken")
    assert code == 2
    assert "cats/1.png cannot be decoded" in err.splitlines()[-1]
