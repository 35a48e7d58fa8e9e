"""How fast the input side is: each recipe's images per second and per core, against bare decoding.

    python -m tools.bench_input --images=imagenet-sample.zip       # or a folder of JPEGs, at any depth
    python -m tools.bench_input --images=DIR --seconds=10 --rounds=5

The floor is TensorFlow's decode_and_crop_jpeg of the parts that the recipe's crop draws, and a flip, read and
run in parallel as the loader does. All are measured in turn in the same process; ratios are medians over
the rounds. Then a profile: milliseconds of CPU per image as operations are added one by one.
"""

import argparse
import inspect
import os
import statistics
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

from vit_registers import recipes
from vit_registers.config import Config, Data, Model
from vit_registers.data import crops, op_strings, ops, order, streams
from vit_registers.data.decoding import Box, decode_part
from vit_registers.data.folder import Folder
from vit_registers.data.loaders import open_data
from vit_registers.data.op_strings import Target
from vit_registers.data.pipeline import TfdataLoader

TARGET = Target(224, 224, 3)
BOXES = {"inception_crop": crops.inception_box, "random_resized_crop": crops.random_resized_box}
RECIPES = {
    "A (big_vision)": recipes.big_vision().data,
    "A (fractal)": recipes.fractal().data,
    "B (DeiT-III)": recipes.deit3().data,
}


class Speed(NamedTuple):
    """Images per second of wall time, and milliseconds of CPU per image over all threads."""

    images_per_s: float
    cpu_ms: float


def lay_out(images: Path, folder: Path) -> Path:
    """A folder root/train/images/*.jpeg of all JPEGs of an archive or a folder."""
    target = folder / "train" / "images"
    target.mkdir(parents=True)
    if images.is_dir():
        for i, path in enumerate(
            p for p in sorted(images.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")
        ):
            (target / f"{i}.jpeg").symlink_to(path.resolve())
    else:
        with zipfile.ZipFile(images) as archive:
            for i, name in enumerate(n for n in archive.namelist() if n.lower().endswith((".jpg", ".jpeg"))):
                (target / f"{i}.jpeg").write_bytes(archive.read(name))
    return folder


def measure(batches: Iterator[int], seconds: float, warmup: float = 1.0) -> Speed:
    """The speed of an iterator that yields how many images each batch has, after some seconds of warm-up."""
    started = time.monotonic()
    while time.monotonic() - started < warmup:
        next(batches)
    images, started, cpu = 0, time.monotonic(), time.process_time()
    while time.monotonic() - started < seconds:
        images += next(batches)
    wall, cpu = time.monotonic() - started, time.process_time() - cpu
    return Speed(images / wall, 1e3 * cpu / images)


def recipe_batches(root: Path, train_ops: str) -> Iterator[int]:
    """Batches of the project's own loader."""
    data = Data(name="folder", data_dir=str(root), batch_size=64, train_ops=train_ops)
    loader = open_data(Config(model=Model(), data=data))
    assert isinstance(loader, TfdataLoader)
    for batch in loader.host_train_batches(0, process_index=0, process_count=1):
        yield len(batch.label_B)


def crop_box(train_ops: str) -> Box:
    """What draws the parts that the crop at the start of a chain takes."""
    crop = op_strings.parse(train_ops, ops.OPS | ops.PIXEL_OPS, where="train_ops")[0]
    defaults = {name: p.default for name, p in inspect.signature(ops.OPS[crop.name]).parameters.items()}
    settings = defaults | crop.arguments
    areas = settings["area_min"], settings["area_max"]
    aspects = settings["aspect_min"], settings["aspect_max"]
    return lambda shape, seed: BOXES[crop.name](shape, seed, areas, aspects)


def bare_batches(root: Path, train_ops: str) -> Iterator[int]:
    """Parts of JPEGs decoded and flipped, not resized, read as the loader reads them."""
    box, source = crop_box(train_ops), Folder(root)
    number = source.num_examples("train")
    training = order.Order(seed=0, num_examples=number, batch_size=64)
    chunks = streams.train_stream(source, "train", streams.Share(64, 0, 1), training, start_step=0, buffer=1)

    def decode(data: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        seed = tf.stack([tf.constant(0, tf.int64), position])
        image_HxWxC = decode_part({"bytes": data, "seed": seed}, box, TARGET)
        return tf.shape(tf.image.stateless_random_flip_left_right(image_HxWxC, seed))[0]

    options = tf.data.Options()
    options.threading.max_intra_op_parallelism = 1
    images = chunks.unbatch().map(
        lambda chunk: decode(chunk["bytes"], chunk["position"]), num_parallel_calls=tf.data.AUTOTUNE
    )
    for batch in images.batch(64).prefetch(2).with_options(options).as_numpy_iterator():
        yield len(batch)


def prefixes(train_ops: str) -> list[str]:
    """'a', 'a | b', 'a | b | c' of 'a | b | c'."""
    parts = [part.strip() for part in train_ops.split(" | ")]
    return [" | ".join(parts[: i + 1]) for i in range(len(parts))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=float, default=20.0, help="seconds, in which XLA compiles")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = lay_out(args.images, Path(folder))
        compare(root, args)
        profile(root, args)


def compare(root: Path, args: argparse.Namespace) -> None:
    """Prints the speed of each recipe and of bare decoding, measured in turn, and their ratio."""
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores; images/s per core, ms of CPU per image, and the rate as a ratio to bare decoding")
    for name, data in RECIPES.items():
        pair = bare_batches(root, data.train_ops), recipe_batches(root, data.train_ops)
        measure(pair[1], 0.1, args.warmup)
        rounds = [[measure(batches, args.seconds) for batches in pair] for _ in range(args.rounds)]
        ratio = statistics.median(own.images_per_s / bare.images_per_s for bare, own in rounds)
        for i, what in enumerate(("bare", "recipe")):
            rate = statistics.median(r[i].images_per_s for r in rounds) / cores
            cpu = statistics.median(r[i].cpu_ms for r in rounds)
            print(f"{name:<16}{what:<8}{rate:7.0f}/s  {cpu:6.2f} ms{f'   ratio {ratio:.2f}' * i}", flush=True)
        for batches in pair:
            batches.close()


def profile(root: Path, args: argparse.Namespace) -> None:
    """Prints what each operation adds to the milliseconds of CPU per image."""
    for name, data in RECIPES.items():
        print(f"profile of {name}")
        before = 0.0
        for text in prefixes(data.train_ops):
            batches = recipe_batches(root, text)
            cpu = measure(batches, args.seconds, args.warmup).cpu_ms
            batches.close()
            print(f"  {cpu:6.2f} ms  ({cpu - before:+5.2f})  {text.rpartition(' | ')[2]}", flush=True)
            before = cpu


if __name__ == "__main__":
    main()
