"""Measures the speed of feature extraction against the bare forward pass, and memory by number of images.

    python -m tools.bench.features --images=DIR [--variant=S] [--timed=1000] [--rounds=2] [--numbers=250,1000]

`features` are those of `analyze all`, and `tasks` those of `evaluate --task`: cls of four blocks and the mean
patch. The lower bound is the jitted forward pass of the same model on batches in memory, with its logits
fetched. All are measured in turn in one process. Where the system is Linux, each speed is printed with the
cores that this process used, and those that all others used: a round during which others used some is not to
be trusted. Peak memory is then measured in a separate process for each number of images.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
from flax import nnx

from vit_registers.analysis.experiments.catalog import EXPERIMENTS
from vit_registers.analysis.features import compute
from vit_registers.analysis.features.store import Store
from vit_registers.config import Config, Data, Model
from vit_registers.data.batch import normalize
from vit_registers.data.loaders import EvalSplit, open_data
from vit_registers.evaluation.features import block_features, run_features
from vit_registers.evaluation.linear.host_features import feature_batches, host_features
from vit_registers.models.vit import ViT
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training import sharding

BATCH = 50
_HALF = (0.5, 0.5, 0.5)


def config(args: argparse.Namespace) -> Config:
    """A ViT of the variant with cls and 4 registers, on the folder of images."""
    model = Model(variant=args.variant, num_registers=4, pooling="cls", num_classes=1000)
    data = Data(name="images", data_dir=str(args.images), eval_split="all", eval_batch_size=BATCH)
    return Config(model=model, data=data)


def names(model: ViT) -> tuple[str, ...]:
    """The features that `analyze all` reads."""
    parts = (*model.layout.groups, "head")
    able = [e for e in EXPERIMENTS.values() if not e.lacking(parts)]
    return tuple(dict.fromkeys(name for experiment in able for name in experiment.features))


def time_extract(cfg: Config, model: ViT, folder: Path, number: int) -> float:
    """Seconds to extract the features of the first `number` images, decoding included."""
    store = Store(folder, "bench", {"num_images": number})
    mesh = make_mesh(cfg.mesh)
    batches = open_data(cfg).eval_batches("all", sharding.batch_sharding(mesh))
    started = time.monotonic()
    compute.extract_features(
        model, batches, store, names(model), image_size=cfg.model.image_size, mean=_HALF, std=_HALF
    )
    return time.monotonic() - started


def first_images(images: Path, number: int, folder: Path) -> Path:
    """`folder` with links to the first `number` JPEGs, so that none is decoded ahead of the end in vain."""
    folder.mkdir()
    found = [p for p in sorted(images.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")][:number]
    if len(found) < number:
        sys.exit(f"error: {images} has {len(found)} JPEGs: give --timed and --numbers of at most as many")
    for i, path in enumerate(found):
        (folder / f"{i:06}.jpg").symlink_to(path.resolve())
    return folder


def time_task(cfg: Config, model: ViT, images: Path) -> float:
    """Seconds to compute the features of the tasks of all `images`, decoding included."""
    features = block_features(cfg.model, cfg.data, 4, None)  # compiled once for all folders
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, data_dir=str(images)))
    mesh, (_, params) = make_mesh(cfg.mesh), nnx.split(model, nnx.Param)
    split = EvalSplit(open_data(cfg), "all")
    started = time.monotonic()
    with jax.set_mesh(mesh):
        rows = run_features(features, nnx.to_pure_dict(params), split, mesh, say=lambda line: None)
        host_features(feature_batches(rows), mesh)
    return time.monotonic() - started


@nnx.jit
def bare_logits(model: ViT, image_BxHxWxC: jax.Array) -> jax.Array:
    """The bare forward pass."""
    return model(normalize(image_BxHxWxC, mean=_HALF, std=_HALF)).logits


def forward(cfg: Config, model: ViT, number: int) -> float:
    """Seconds of the bare forward pass of `number` images."""
    batch = np.random.default_rng(0).integers(0, 256, (BATCH, *cfg.model.image_size, 3), dtype=np.uint8)

    started, pending = time.monotonic(), None
    for _ in range(number // BATCH):
        computed = bare_logits(model, batch)
        if pending is not None:
            np.asarray(pending)
        pending = computed
    np.asarray(pending)
    return time.monotonic() - started


def busy_s() -> tuple[float, float]:
    """(seconds of all cores that this process has used, that all processes have used; 0 if not on Linux)."""
    own, stat = os.times(), Path("/proc/stat")
    if not stat.exists():
        return own.user + own.system, 0.0
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, stat.read_text().split("\n")[0].split()[1:])
    ticks = user + nice + system + irq + softirq + steal
    return own.user + own.system, ticks / os.sysconf("SC_CLK_TCK")


def timed(measure: Callable[[], float]) -> tuple[float, str]:
    """(what `measure` returns, a text with the cores that were used meanwhile)."""
    started, (own, total) = time.monotonic(), busy_s()
    spent, (own_then, total_then) = measure(), busy_s()
    cores = (own_then - own) / (time.monotonic() - started)
    others = (total_then - total) / (time.monotonic() - started) - cores
    return spent, f"({cores:.1f} cores, others {max(others, 0):.1f})"


def peak_mib() -> float:
    """The largest resident memory of this process so far (ru_maxrss starts at that of the parent)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure(args: argparse.Namespace, cfg: Config, model: ViT, folder: Path) -> None:
    """Prints the speeds of each round, and the median of their ratios to the forward pass."""
    forward(cfg, model, BATCH)
    images = first_images(args.images, args.timed, folder / "timed")
    if args.skip_analysis:
        time_task(cfg, model, first_images(args.images, BATCH, folder / "few"))  # compiles
    ratios: dict[str, list[float]] = {}
    for i in range(args.rounds):
        bare, text = timed(lambda: forward(cfg, model, args.timed))
        spent = {"tasks": timed(lambda: time_task(cfg, model, images))}
        if not args.skip_analysis:
            out = folder / str(i)
            spent["features"] = timed(lambda out=out: time_extract(cfg, model, out, args.timed))
        line = f"bare {args.timed / bare:6.1f}/s {text}"
        for name, (own, text) in spent.items():
            ratios.setdefault(name, []).append(bare / own)
            line += f"   {name} {args.timed / own:6.1f}/s {text}   ratio {bare / own:.2f}"
        print(line, flush=True)
    for name, found in ratios.items():
        print(f"{name}: median ratio {statistics.median(found):.2f}, decoding included")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEGs")
    parser.add_argument("--variant", default="S", help="size of the ViT, such as S or B")
    parser.add_argument("--timed", type=int, default=1000, help="number of images for the speed")
    parser.add_argument("--rounds", type=int, default=2, help="number of measurements of the speed")
    parser.add_argument("--numbers", default="250,1000", help="numbers of images for the peak memory")
    parser.add_argument("--skip_analysis", action="store_true", help="only the features of tasks")
    parser.add_argument("--only", type=int, help="extract this number of images, and print the peak memory")
    args = parser.parse_args()
    cfg = config(args)
    model = ViT(cfg.model, rngs=nnx.Rngs(0))
    with tempfile.TemporaryDirectory() as folder:
        if args.only:
            if args.skip_analysis:
                time_task(cfg, model, first_images(args.images, args.only, Path(folder) / "images"))
            else:
                time_extract(cfg, model, Path(folder), args.only)
            print(peak_mib())
            return
        measure(args, cfg, model, Path(folder))
    for number in args.numbers.split(","):
        command = [sys.executable, "-m", "tools.bench.features", f"--images={args.images}"]
        command += [f"--variant={args.variant}", f"--only={number}"]
        command += ["--skip_analysis"] * args.skip_analysis
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"{number} images: peak {float(done.stdout.split()[-1]):.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
