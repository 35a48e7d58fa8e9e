"""Measures training batches of a data set in gs://, in local array_record files and in a local folder.

    python -m tools.emulator python -m tools.bench.remote_input --images=imagenet-sample.zip
    python -m tools.bench.remote_input --images=DIR --data_dir=gs://BUCKET/PATH

The images are prepared, uploaded to --data_dir and read from there, crop and flip, in turn with
the local files, in the same process. Ratios are medians over the rounds.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools.bench.input import BATCH, PLAIN, TARGET, lay_out, measure  # first: it sets variables of TensorFlow
from tools.emulator import BUCKET
from vit_registers.config import Config, Data, Model
from vit_registers.data.loaders import open_data


def batches(name: str, data_dir: str) -> Iterator[int]:
    """The numbers of images of endless training batches."""
    data = Data(name=name, data_dir=data_dir, train_ops=PLAIN, batch_size=BATCH, eval_split="train")
    loader = open_data(Config(model=Model(image_size=TARGET[:2]), data=data))
    for batch in loader.host_train_batches(0, process_index=0, process_count=1):
        yield len(batch.mask_B)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.remote_input",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=Path, required=True, help="folder or zip file of JPEGs")
    parser.add_argument("--data_dir", default=f"gs://{BUCKET}/bench", help="folder in gs:// to upload to")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="number of measurements of each place")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, local = lay_out(args.images, Path(folder, "folder")), f"{folder}/local"
        shutil.rmtree(root / "val")
        command = [sys.executable, "-m", "vit_registers.prepare", "--name=bench", f"--from_folder={root}"]
        subprocess.run([*command, f"--data_dir={args.data_dir}", f"--local_dir={local}"], check=True)
        places = {
            "gs://": batches("bench", args.data_dir),
            "local": batches("bench", local),
            "folder": batches("folder", str(root)),
        }
        for place in places.values():
            measure(place, 0.1, args.seconds)
        rates = [
            {name: measure(place, args.seconds).images_per_s for name, place in places.items()}
            for _ in range(args.rounds)
        ]
        for name, place in places.items():
            place.close()
            ratios = [rate[name] / rate["local"] for rate in rates]
            rate = statistics.median(rate[name] for rate in rates)
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"{name:<8}{rate:7.0f} images/s  {statistics.median(ratios):.2f} of local ({spread})")


if __name__ == "__main__":
    main()
