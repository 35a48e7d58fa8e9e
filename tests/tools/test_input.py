"""tools/bench/input.py: what is compared delivers as much, and what is printed."""

import itertools
import re
import sys
import types
import zipfile

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow")

from tools.bench import input as bench_input


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """10 JPEGs, two folders deep."""
    folder = tmp_path_factory.mktemp("images") / "a" / "b"
    folder.mkdir(parents=True)
    for i in range(10):
        low = np.random.default_rng(i).integers(0, 256, (10, 9, 3), dtype=np.uint8)
        Image.fromarray(low).resize((270, 300)).save(folder / f"{i}.{'JPEG' if i % 2 else 'jpg'}")
    return folder.parents[1]


@pytest.fixture
def root(images, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_input, "_LEAST_EVALUATED", 70)
    return bench_input.lay_out(images, tmp_path / "laid out")


def test_lay_out(images, root, tmp_path):
    assert len(list((root / "train" / "images").iterdir())) == 10
    assert len(list((root / "val" / "images").iterdir())) == 70
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in images.rglob("*.*"):
            archive.write(path, path.relative_to(images))
        archive.writestr("notes.txt", "none")
    other = bench_input.lay_out(tmp_path / "images.zip", tmp_path / "unpacked")
    for split in ("train", "val"):
        contents = [sorted({p.read_bytes() for p in (r / split / "images").iterdir()}) for r in (root, other)]
        assert contents[0] == contents[1] and len(contents[0]) == 10


@pytest.mark.slow
def test_both_sides_deliver_all_images(root):
    for batches in (
        bench_input.bare_evaluation(root, bench_input.decode_whole),
        bench_input.own_evaluation(root),
    ):
        assert list(itertools.islice(batches, 4)) == [64, 6, 64, 6]  # 70 images, over and over
        batches.close()


@pytest.mark.slow
def test_what_is_printed(root, capsys):
    args = types.SimpleNamespace(seconds=0.05, rounds=2, warmup=0.0)
    bench_input.compare_cases(bench_input.plain(root, args), args)
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("  ")[0] for line in lines if line[0] != " "]
    assert names == ["crop and flip"] * 2 + ["evaluation"] * 2
    verdicts = [line for line in lines if "goal >=" in line]
    for line, name in zip(verdicts, ("crop and flip", "evaluation"), strict=True):
        goal = bench_input.GOALS[name]
        ratio = float(re.search(r"ratio (\d+\.\d+)", line)[1])
        if abs(ratio - goal) > 0.01:
            assert line.endswith("NOT MET") == (ratio < goal)
    growth = bench_input.memory(root, 300, every=50)
    *marks, last = capsys.readouterr().out.splitlines()
    assert [int(mark.split()[0]) for mark in marks] == [64, 128, 192, 256, 320]  # whole batches
    assert f"over 320 images grew by {growth:.0f} MiB" in last


def test_what_is_not_known(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_input", "--images=x", "--what=plan"])
    with pytest.raises(SystemExit):
        bench_input.main()
    assert f"--what=plan: must be one or more of {', '.join(bench_input.WHAT)}" in capsys.readouterr().err
