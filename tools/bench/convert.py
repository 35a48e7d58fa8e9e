"""Measures the memory and time of a conversion, on a synthetic checkpoint.

    python -m tools.bench.convert                  # ViT-L of DINOv2 with registers: 1.2 GB
    python -m tools.bench.convert --size=B --folder=/some/disk

Prints the peak resident memory of the whole process (interpreter and libraries included) as a multiple of
the file's size, and the time as a multiple of the time to read the file, which is the lower bound. Both are
measured in the same run.
"""

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from vit_registers.config import Data, Model
from vit_registers.interop.export import targets
from vit_registers.models.vit import ViT


def write_checkpoint(size: str, path: Path) -> None:
    """Writes a DINOv2 file of a ViT of that size, with random values."""
    model = Model(
        variant=size,
        patch_size=14,
        image_size=(518, 518),
        num_classes=0,
        num_registers=4,
        layer_scale_init=1e-5,
        use_mask_token=True,
    )
    rng = np.random.default_rng(0)
    shapes = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: ViT(model, rngs=nnx.Rngs(0))), nnx.Param)[1])
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    targets.write(targets.export(model, params, "dinov2"), path, np.float32, Data())


def read_time(path: Path) -> float:
    """Seconds to read the file once, in 16 MB pieces."""
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
    return time.perf_counter() - started


def measure(*arguments: str) -> tuple[float, int]:
    """(seconds, peak resident bytes) of a command."""
    code = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024); sys.exit(done.returncode)"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, check=True, text=True
    )
    return time.perf_counter() - started, int(done.stdout)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", default="L", choices=["S", "B", "L"], help="size of the ViT")
    parser.add_argument("--folder", default=None, help="folder for the files; temporary if not given")
    values = parser.parse_args()
    module = [sys.executable, "-m", "vit_registers.convert"]
    with tempfile.TemporaryDirectory(dir=values.folder) as folder:
        path = Path(folder) / "weights.safetensors"
        # In a separate process, because a child's peak memory starts at its parent's.
        maker = multiprocessing.get_context("spawn").Process(
            target=write_checkpoint, args=(values.size, path)
        )
        maker.start()
        maker.join()
        size = path.stat().st_size
        reading = read_time(path)
        print(f"file: {size / 1e6:.0f} MB; read once in {reading:.2f} s")
        commands = {
            "nothing but --help": ["--help"],
            "to a run folder": [f"--input={path}", f"--output={folder}/run"],
            "run folder to transformers": [
                f"--input={folder}/run",
                f"--output={folder}/hf",
                "--to=transformers",
            ],
        }
        for name, arguments in commands.items():
            seconds, peak = measure(*module, *arguments)
            print(
                f"{name}: peak {peak / 1e6:.0f} MB = {peak / size:.2f} x the file; "
                f"{seconds:.1f} s = {seconds / reading:.1f} x reading it"
            )


if __name__ == "__main__":
    main()
