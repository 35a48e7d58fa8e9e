"""Draws attention maps of runs side by side, as in the picture in the README.

    python -m tools.draw_maps docs/maps.png "no registers=runs/plain" "4 registers=runs/four" "mask=runs/mask"

The columns are each run's cls, and the registers of runs that have some; the rows are the first test images
of the digits, one of each of the first classes. Attention is that of the last block, mean over heads, in
multiples of uniform attention (1 / the number of tokens).
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

import vit_registers
from vit_registers import cli
from vit_registers.analysis.report.tiles import tiles
from vit_registers.data.sources.digits import load_split
from vit_registers.errors import ConfigError

NUM_IMAGES = 5
_MAX_UNIFORM = 3.0  # top of the colour scale


def columns_of(name: str, path: str, image_BxHxWx1: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """(title, map_BxRxC) of cls and of each register of a run."""
    model = vit_registers.load(path)
    images, count = model.preprocess(image_BxHxWx1), model.layout.num_tokens
    found = [(f"{name}: cls", np.asarray(model.attention(images).maps)[:, 0] * count)]
    if model.layout.num_registers:
        maps_BxNxRxC = np.asarray(model.attention(images, queries="registers").maps) * count
        found += [(f"register {i + 1}", maps_BxNxRxC[:, i]) for i in range(maps_BxNxRxC.shape[1])]
    return found


def main() -> None:
    """The command line."""
    if len(sys.argv) < 3 or not all("=" in run for run in sys.argv[2:]):
        raise ConfigError(
            'give a picture to write and NAME=RUN for each run, as in: maps.png "4 registers=runs/four"'
        )
    image_NxHxWx1, label_N = load_split("test")
    chosen = [int(np.argmax(label_N == digit)) for digit in range(NUM_IMAGES)]
    shown = image_NxHxWx1[chosen]
    columns = [
        column for run in sys.argv[2:] for column in columns_of(*run.split("=", 1), image_BxHxWx1=shown)
    ]
    figure = tiles(
        [[image[..., 0:1]] for image in shown],
        [[None, *(maps[row] for _, maps in columns)] for row in range(NUM_IMAGES)],
        rows=["" for _ in shown],
        columns=["image", *(title for title, _ in columns)],
        limits=(0.0, _MAX_UNIFORM),
        label="attention, x uniform",
    )
    FigureCanvasAgg(figure)
    figure.savefig(Path(sys.argv[1]), dpi=200, bbox_inches="tight", facecolor="white")
    print(sys.argv[1])


if __name__ == "__main__":
    cli.call(main)
