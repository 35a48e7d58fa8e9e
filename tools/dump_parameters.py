"""Tables of parameters: how each one is sharded over a mesh, and its memory. No devices are required.

    python -m tools.dump_parameters    # writes docs/parameters/*.txt, the tables of the main configs
    python -m tools.dump_parameters --config=configs/vit_s16_i1k.py:variant=L --devices=8 --config.mesh.fsdp=8

With --config, the table of that config on --devices devices is printed.
"""

from vit_registers import startup

startup.begin(__name__)

import dataclasses
import importlib.util
import math
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import AbstractMesh

from vit_registers import cli
from vit_registers.config import MESH_AXES, Config, override
from vit_registers.errors import ConfigError
from vit_registers.models.paths import leaf_of, path_text
from vit_registers.objectives.catalog import make_objective
from vit_registers.runtime.mesh import mesh_shape
from vit_registers.training import sharding
from vit_registers.training.durations import Durations
from vit_registers.training.optimizer import make_optimizer
from vit_registers.training.state import TrainState, state_from, state_shardings

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/parameters"
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Example:
    """A config file with its argument, a number of devices, and settings that override the file."""

    config: str
    arg: str
    num_devices: int
    settings: dict[str, Any]


CARDS: dict[str, Example] = {
    "vit_s16_i1k-registers4-data256": Example("vit_s16_i1k", "registers=4", 256, {}),
    "registers_table-registers4-data8": Example("registers_table", "registers=4", 8, {}),
    "vit_b16-fsdp8": Example("vit_s16_i1k", "variant=B,registers=4", 64, {"mesh.data": 8, "mesh.fsdp": 8}),
    "vit_l16-fsdp8-tensor2": Example(
        "vit_s16_i1k", "variant=L,registers=4", 64, {"mesh.data": 4, "mesh.fsdp": 8, "mesh.tensor": 2}
    ),
    "vit_g14-fsdp64": Example(
        "vit_s16_i1k",
        "variant=g,registers=4",
        64,
        {"model.patch_size": 14, "mesh.data": 1, "mesh.fsdp": 64},
    ),
}


def parameters_of(config: Config, num_devices: int) -> str:
    """The overview of `config` on `num_devices` devices, which need not exist. Raises ConfigError."""
    shape = mesh_shape(config.mesh, num_devices)
    mesh = AbstractMesh(shape, MESH_AXES)
    sharding.check_divisible(config.model, config.data, config.optimizer, mesh)
    durations = Durations(total_steps=100, warmup_steps=10, eval_every_steps=10, steps_per_epoch=10.0)
    optimizer = make_optimizer(config.optimizer, durations)
    objective = make_objective(config)

    def make_state() -> TrainState:
        params, extra = objective.init(jax.random.key(config.run.seed))
        return state_from(params, extra, settings=config.optimizer, optimizer=optimizer)

    shapes = jax.eval_shape(make_state)
    return overview(jax.tree.map(sharding.place, shapes, state_shardings(shapes, mesh)))


def card_table(card: Example) -> str:
    """The table of a card."""
    spec = importlib.util.spec_from_file_location(card.config, ROOT / f"configs/{card.config}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return parameters_of(override(module.get_config(card.arg), card.settings), card.num_devices)


def overview(state: TrainState) -> str:
    """A table of the parameters: path, shape, dtype, mesh axes, MiB per device; then the memory of the state.

    `state` holds shapes with shardings, like Setup.abstract. In `split over`, "-" marks an axis that is not
    split, and the column is empty for an array that is replicated on every device.
    """
    rows = [("parameter", "shape", "dtype", "split over", "MiB/device")]
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        shape = " x ".join(map(str, leaf.shape))
        rows.append((path_text(leaf_of(path)), shape, str(leaf.dtype), _spec(leaf), _mib(_bytes(leaf))))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join((*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[4].rjust(10)))
        for row in rows
    ]
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    mesh = jax.tree.leaves(state.params)[0].sharding.mesh
    sizes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    lines += ["", f"mesh: {sizes}", f"parameters: {count:,} in {len(rows) - 1} tensors", "MiB/device:"]
    parts = {
        "parameters": state.params,
        "optimiser": state.opt_state,
        "average": state.ema,
        "extra": state.extra,
    }
    for name, part in parts.items():
        lines.append(f"  {name:<12}{_mib(sum(map(_bytes, jax.tree.leaves(part)))):>12}")
    lines.append(f"  {'all':<12}{_mib(sum(map(_bytes, jax.tree.leaves(state)))):>12}")
    return "\n".join(lines) + "\n"


def _spec(leaf: jax.ShapeDtypeStruct) -> str:
    axes = [axis or "-" for axis in leaf.sharding.spec]
    return ", ".join(axes) if set(axes) - {"-"} else ""


def _bytes(leaf: Any) -> float:
    """The bytes of an array on each device."""
    axes = [axis for axis in leaf.sharding.spec if axis is not None]
    return leaf.size * leaf.dtype.itemsize / math.prod(leaf.sharding.mesh.shape[axis] for axis in axes)


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / _MIB:,.3f}"


def main() -> None:
    """The command line."""
    if flags.FLAGS.config is not None:
        if flags.FLAGS.devices is None:
            raise ConfigError("--config requires --devices=N, the number of devices of the table")
        print(parameters_of(cli.config_of_flags(), flags.FLAGS.devices), end="")
        return
    FOLDER.mkdir(exist_ok=True)
    for name, card in CARDS.items():
        (FOLDER / f"{name}.txt").write_text(card_table(card))
        print(FOLDER / f"{name}.txt")


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_integer("devices", None, "With --config: number of devices of the mesh.", lower_bound=1)
    cli.run(main)
