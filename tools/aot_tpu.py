"""Compiles the train step of a config for TPUs, without a TPU: memory per chip, FLOPs, bytes, collectives.

    python -m tools.aot_tpu --config=configs/vit_s16_i1k.py --topology=v5p:2x2x1 --config.model.dtype=bfloat16

Requires `pip install libtpu` in the version that matches jax. Topologies: v4:2x2x1, v5e:4x4, v5p:4x4x4,
v6e:2x2, up to 256 chips. XLA's estimates in order of reliability: memory, FLOPs, bytes, and the time on v5p
relative to another program's. Times on v4, v5e and v6e are meaningless and are not printed. The estimates
exclude the cost of Pallas kernels (attention=splash), and count the body of a loop (model.use_scan,
optimizer.accumulation_steps) once for all of its iterations. Memory is correct in both cases.

--arrays=N shows the N largest arrays of a device. With --axis=P, a prime that divides the rows of a device
and no other axis, they are those that have the axis of the batch twice, such as the logits of pairs:

    python -m tools.aot_tpu --config=openclip_b16:batch=32576 --config.objective.image_text.chunk=1018 \\
      --topology=v5p:4x4x4 --arrays=5 --axis=509
"""

from vit_registers import startup

startup.begin(__name__)

import dataclasses
import os
import re
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"

import jax
from absl import flags
from jax.experimental import topologies

from tools import hlo
from tools.aot_step import lower_step
from vit_registers import cli
from vit_registers.config import Config
from vit_registers.errors import ConfigError

# Memory of a chip in GiB, and cores per chip that XLA counts as one device.
CHIPS = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The compiler's figures for a step, per device."""

    chip: str
    num_devices: int
    arguments_bytes: int
    outputs_bytes: int
    aliased_bytes: int  # of the outputs, those that reuse the memory of arguments
    temporaries_bytes: int
    flops: float
    accessed_bytes: float
    optimal_s: float | None  # None where XLA's estimate is meaningless
    collectives: dict[str, tuple[int, int]]  # kind -> (number, bytes)

    @property
    def peak_bytes(self) -> int:
        """Arguments, outputs that are not aliased, and temporaries."""
        return self.arguments_bytes + self.outputs_bytes - self.aliased_bytes + self.temporaries_bytes

    def lines(self) -> list[str]:
        """The report as text."""
        room = CHIPS[self.chip] * _GIB
        verdict = "fits" if self.peak_bytes <= room else "DOES NOT FIT"
        found = [
            f"{self.num_devices} devices of {self.chip}; per device:",
            f"  memory       {self.peak_bytes / _GIB:8.2f} GiB of {CHIPS[self.chip]}: {verdict}",
            f"    arguments  {self.arguments_bytes / _GIB:8.2f} GiB (state and batch)",
            f"    temporary  {self.temporaries_bytes / _GIB:8.2f} GiB",
            f"  FLOPs        {self.flops / 1e12:8.3f} T",
            f"  bytes        {self.accessed_bytes / 1e9:8.2f} GB accessed",
        ]
        if self.optimal_s is not None:
            found.append(f"  estimate     {1e3 * self.optimal_s:8.2f} ms a step, to compare with others only")
        for kind, (number, size) in self.collectives.items():
            found.append(f"  {kind:<20} {number:5d} x, {size / 1e6:9.2f} MB")
        return found


def compile_step(config: Config, topology: str) -> tuple[jax.stages.Compiled, int]:
    """(the compiled train step of `config`, number of devices) for a topology such as v5p:2x2x1."""
    chip = topology.partition(":")[0]
    if chip not in CHIPS:
        raise ConfigError(f"--topology={topology}: must begin with {', '.join(CHIPS)}, as in v5p:2x2x1")
    try:
        found = topologies.get_topology_desc(topology, platform="tpu")
    except Exception as error:
        raise ConfigError(
            f"--topology={topology}: {str(error).splitlines()[0]}; is libtpu installed?"
        ) from None
    return lower_step(config, found.devices).compile(), len(found.devices)


def report(compiled: jax.stages.Compiled, chip: str, num_devices: int) -> Report:
    """The memory, operations and communication of `compiled`."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    seconds = cost.get("optimal_seconds", -1.0)
    return Report(
        chip=chip,
        num_devices=num_devices,
        arguments_bytes=memory.argument_size_in_bytes,
        outputs_bytes=memory.output_size_in_bytes,
        aliased_bytes=memory.alias_size_in_bytes,
        temporaries_bytes=memory.temp_size_in_bytes,
        flops=cost["flops"],
        accessed_bytes=cost["bytes accessed"],
        optimal_s=seconds if chip == "v5p" and seconds > 0 else None,
        collectives=collectives(compiled.as_text()),
    )


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
    """{kind: (number, bytes of the results)} of the collectives in the program."""
    found: dict[str, tuple[int, int]] = {}
    pattern = rf" = (.+?) ({'|'.join(COLLECTIVES)})(-start)?\("
    for shapes, kind, start in re.findall(pattern, hlo):
        sizes = [_shape_bytes(*shape) for shape in re.findall(r"(\w+)\[([\d,]*)\]", shapes)]
        size = max(sizes, default=0) if start else sum(sizes)  # the shapes of a start include its inputs
        number, total = found.get(kind, (0, 0))
        found[kind] = number + 1, total + size
    return found


def _shape_bytes(dtype: str, dims: str) -> int:
    size = _SIZES.get(dtype, 0)
    for dim in filter(None, dims.split(",")):
        size *= int(dim)
    return size


def array_lines(program: str, number: int, axis: int) -> list[str]:
    """The `number` largest arrays of a program, of those with `axis` (hlo.array_shapes), a line for each."""
    found = hlo.array_shapes(program, axis=axis)
    kind = f"arrays with a multiple of {axis}^2 elements" if axis > 1 else "arrays"
    lines = [f"{len(found)} shapes of {kind}; the largest:"]
    return lines + [f"  {hlo.array_bytes(shape) / 2**20:10.2f} MiB  {shape}" for shape in found[:number]]


def main() -> None:
    """The command line."""
    config, topology = cli.config_of_flags(), flags.FLAGS.topology
    compiled, num_devices = compile_step(config, topology)
    if flags.FLAGS.hlo:
        with open(flags.FLAGS.hlo, "w") as file:
            file.write(compiled.as_text())
    print("\n".join(report(compiled, topology.partition(":")[0], num_devices).lines()))
    if flags.FLAGS.arrays:
        print("\n".join(array_lines(compiled.as_text(), flags.FLAGS.arrays, flags.FLAGS.axis)))


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("topology", "v5p:2x2x1", "Kind of TPU and shape of its slice, such as v5e:4x4.")
    flags.DEFINE_string("hlo", None, "File for the compiled program, as HLO text.")
    flags.DEFINE_integer("arrays", 0, "How many of the largest arrays of a device are shown.", lower_bound=0)
    flags.DEFINE_integer("axis", 1, "Only arrays whose size is a multiple of its square.", lower_bound=1)
    flags.mark_flags_as_required(["config"])
    cli.run(main)
    sys.exit(0)
