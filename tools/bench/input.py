"""Measures the input pipeline against bare decoding in TensorFlow, and the growth of its memory.

    python -m tools.bench.input --images=imagenet-sample.zip       # or a folder of JPEGs, at any depth
    python -m tools.bench.input --images=DIR --seconds=10 --rounds=5
    python -m tools.bench.input --images=DIR --what=plain          # crop and flip, evaluation: a minute
    python -m tools.bench.input --images=DIR --what=memory         # resident memory over 20,000 images
    python -m tools.bench.input --images=DIR --what=recipes,profile

Bare is a tf.data map over the same files, read and run in parallel as in the loader, without the check for
broken images, without a separate order and without Batch:
  plain    only the parts that inception_crop draws are decoded (decode_and_crop_jpeg), resized and flipped;
           for evaluation the whole image is decoded and resized
  recipes  only the parts that the recipe's crop draws are decoded and flipped, not resized
  multi-crop  (self-distillation, 2 + 8 crops) the image is decoded once, and all crops are cut and resized
profile prints the milliseconds of CPU per image that each operation of a recipe adds.
All are measured in turn in the same process. Ratios are medians over the rounds.
"""

import argparse
import dataclasses
import itertools
import os
import statistics
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # as in the entry points
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # likewise
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # as the loader, which is opened after TensorFlow starts

from tools.bench.bare_decoding import (
    BATCH,
    TARGET,
    bare_evaluation,
    bare_train,
    decode_crop,
    decode_crops,
    decode_whole,
)
from vit_registers import recipes
from vit_registers.config import Config, Data, Model, ObjectiveSettings
from vit_registers.data.batch import Training, View
from vit_registers.data.loaders import open_data
from vit_registers.data.tfdata import TfdataLoader
from vit_registers.objectives.catalog import make_objective

PLAIN = "inception_crop | flip"
EVALUATION = "resize_small(256) | central_crop"
RECIPES = {
    "A (big_vision)": recipes.recipe_a_big_vision().data,
    "A (fractal)": recipes.recipe_a_fractal().data,
    "B (DeiT-III)": recipes.recipe_b_deit3().data,
}
WHAT = ("plain", "recipes", "multi-crop", "profile", "memory")
GOALS = {"crop and flip": 0.95, "evaluation": 0.7, "multi-crop": 0.5}
_LEAST_EVALUATED = 50_000  # images of the evaluated split, so that the start of the pipeline is negligible
_SETTLED = 3  # marks after which memory should have settled


class Speed(NamedTuple):
    """Images per second of wall time, and milliseconds of CPU per image over all threads."""

    images_per_s: float
    cpu_ms: float


class Case(NamedTuple):
    """A comparison: batches of the loader with those of bare decoding."""

    name: str
    bare: Iterator[int]
    own: Iterator[int]
    warmup: float


def lay_out(images: Path, folder: Path) -> Path:
    """Writes all JPEGs of an archive or a folder to `folder`/train/images, and links to them to
    `folder`/val/images, repeated until there are 50,000. Returns `folder`."""
    train, val = (folder / split / "images" for split in ("train", "val"))
    train.mkdir(parents=True)
    val.mkdir(parents=True)
    if images.is_dir():
        found = [p.resolve() for p in sorted(images.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")]
        for i, path in enumerate(found):
            (train / f"{i}.jpeg").symlink_to(path)
    else:
        with zipfile.ZipFile(images) as archive:
            for i, name in enumerate(n for n in archive.namelist() if n.lower().endswith((".jpg", ".jpeg"))):
                (train / f"{i}.jpeg").write_bytes(archive.read(name))
    files = sorted(train.iterdir())
    for i, path in zip(range(_LEAST_EVALUATED), itertools.cycle(files), strict=False):
        (val / f"{i}.jpeg").symlink_to(path.resolve())
    return folder


def measure(batches: Iterator[int], seconds: float, warmup: float = 1.0) -> Speed:
    """The speed of an iterator over the numbers of images of batches, after `warmup` seconds."""
    started = time.monotonic()
    while time.monotonic() - started < warmup:
        next(batches)
    images, started, cpu = 0, time.monotonic(), time.process_time()
    while time.monotonic() - started < seconds:
        images += next(batches)
    wall, cpu = time.monotonic() - started, time.process_time() - cpu
    return Speed(images / wall, 1e3 * cpu / images)


# --- the loader of this project ------------------------------------------------------------------


def loader(root: Path, train_ops: str = PLAIN) -> TfdataLoader:
    """The loader of a config."""
    data = Data(name="folder", data_dir=str(root), train_ops=train_ops, eval_ops=EVALUATION)
    data = dataclasses.replace(data, batch_size=BATCH, eval_batch_size=BATCH, eval_split="val")
    opened = open_data(Config(model=Model(image_size=TARGET[:2]), data=data))
    assert isinstance(opened, TfdataLoader)
    return opened


def own_train(root: Path, train_ops: str) -> Iterator[int]:
    """Endless training batches."""
    for batch in loader(root, train_ops).host_train_batches(0, process_index=0, process_count=1):
        yield len(batch.mask_B)


def own_evaluation(root: Path) -> Iterator[int]:
    """Endless evaluation batches."""
    opened = loader(root)
    while True:
        for batch in opened.host_eval_batches("val", process_index=0, process_count=1):
            yield int(batch.mask_B.sum())


def own_views(root: Path, views: Mapping[str, View]) -> Iterator[int]:
    """Endless training batches with several views of an image."""
    data = Data(name="folder", data_dir=str(root), batch_size=BATCH, eval_split="val")
    opened = open_data(Config(model=Model(image_size=TARGET[:2]), data=data), Training(views, {}))
    assert isinstance(opened, TfdataLoader)
    for batch in opened.host_train_batches(0, process_index=0, process_count=1):
        yield len(batch.mask_B)


def multi_crop_views() -> dict[str, View]:
    """The views of self-distillation with the default settings."""
    return dict(make_objective(Config(objective=ObjectiveSettings(name="self_distillation"))).views)


# --- output -------------------------------------------------------------------------------------


def prefixes(train_ops: str) -> list[str]:
    """'a', 'a | b', 'a | b | c' of 'a | b | c'."""
    parts = [part.strip() for part in train_ops.split(" | ")]
    return [" | ".join(parts[: i + 1]) for i in range(len(parts))]


def plain(root: Path, args: argparse.Namespace) -> Iterator[Case]:
    """Crop and flip, and evaluation, each against the minimum that delivers the same size."""
    warmup = min(args.warmup, 3.0)  # nothing is compiled
    crop = bare_train(root, decode_crop(PLAIN, is_resized=True))
    yield Case("crop and flip", crop, own_train(root, PLAIN), warmup)
    yield Case("evaluation", bare_evaluation(root, decode_whole), own_evaluation(root), warmup)


def of_recipes(root: Path, args: argparse.Namespace) -> Iterator[Case]:
    """Each recipe's training batches against decoding and flipping its crops."""
    for name, data in RECIPES.items():
        crop = decode_crop(data.train_ops, is_resized=False)
        yield Case(name, bare_train(root, crop), own_train(root, data.train_ops), args.warmup)


def multi_crop(root: Path, args: argparse.Namespace) -> Iterator[Case]:
    """Training batches of self-distillation against decoding and its crops."""
    views = multi_crop_views()
    yield Case("multi-crop", bare_train(root, decode_crops(views)), own_views(root, views), args.warmup)


def compare_cases(cases: Iterator[Case], args: argparse.Namespace) -> None:
    """Prints the speed of each case, measured in turn with its bare decoding, and their ratios."""
    cores = len(os.sched_getaffinity(0))
    pause = min(args.warmup, 1.0)  # in which the other side fills its buffers and becomes idle
    for name, *pair, warmup in cases:
        for batches in pair:
            measure(batches, 0.1, warmup)
        rounds = [[measure(batches, args.seconds, pause) for batches in pair] for _ in range(args.rounds)]
        for i, what in enumerate(("bare", "loader")):
            rate = statistics.median(r[i].images_per_s for r in rounds) / cores
            cpu = statistics.median(r[i].cpu_ms for r in rounds)
            print(f"{name:<16}{what:<8}{rate:7.0f}/s  {cpu:6.2f} ms", flush=True)
        ratios = [own.images_per_s / bare.images_per_s for bare, own in rounds]
        of_cpu = statistics.median(bare.cpu_ms / own.cpu_ms for bare, own in rounds)
        ratio = statistics.median(ratios)
        line = f"ratio {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), by CPU {of_cpu:.2f}"
        if name in GOALS:
            verdict = "met" if ratio >= GOALS[name] else "NOT MET"
            line += f"; goal >= {GOALS[name]:.2f}: {verdict}"
        print(f"{'':<16}{line}", flush=True)
        for batches in pair:
            batches.close()


def profile(root: Path, args: argparse.Namespace) -> None:
    """Prints the milliseconds of CPU per image that each operation adds."""
    for name, data in RECIPES.items():
        print(f"profile of {name}")
        before = 0.0
        for text in prefixes(data.train_ops):
            batches = own_train(root, text)
            cpu = measure(batches, args.seconds, args.warmup).cpu_ms
            batches.close()
            print(f"  {cpu:6.2f} ms  ({cpu - before:+5.2f})  {text.rpartition(' | ')[2]}", flush=True)
            before = cpu


def resident_mib() -> float:
    """The resident memory of this process now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def memory(root: Path, number: int, *, every: int = 1_000) -> float:
    """Prints resident memory after every `every` images. Returns its maximum growth in MiB after the third of
    these marks, when buffers are full."""
    batches, done, marks = own_train(root, PLAIN), 0, []
    while done < number:
        done += next(batches)
        if done >= every * (len(marks) + 1):
            marks.append(resident_mib())
            print(f"  {done:7d} images  {marks[-1]:7.0f} MiB", flush=True)
    batches.close()
    settled = marks[min(_SETTLED, len(marks)) - 1]
    growth = max(marks) - settled
    print(f"memory over {done} images grew by {growth:.0f} MiB at most, from {settled:.0f} MiB")
    return growth


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.input",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=Path, required=True, help="folder or zip file of JPEGs")
    parser.add_argument("--what", default="plain,recipes", help=f"one or more of {', '.join(WHAT)}")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="number of measurements of each program")
    parser.add_argument("--warmup", type=float, default=20.0, help="seconds before the first measurement")
    parser.add_argument("--number", type=int, default=20_000, help="number of images of --what=memory")
    args = parser.parse_args()
    if args.number < 2_000:
        parser.error(f"--number={args.number}: must be >= 2000")
    wanted = args.what.split(",")
    if unknown := set(wanted) - set(WHAT):
        parser.error(f"--what={unknown.pop()}: must be one or more of {', '.join(WHAT)}")
    with tempfile.TemporaryDirectory() as folder:
        root = lay_out(args.images, Path(folder))
        print(f"{len(os.sched_getaffinity(0))} cores; images/s per core, and ms of CPU per image")
        if "memory" in wanted:  # first, before anything else runs in this process
            memory(root, args.number)
        if "plain" in wanted:
            compare_cases(plain(root, args), args)
        if "recipes" in wanted:
            compare_cases(of_recipes(root, args), args)
        if "multi-crop" in wanted:
            compare_cases(multi_crop(root, args), args)
        if "profile" in wanted:
            profile(root, args)


if __name__ == "__main__":
    main()
