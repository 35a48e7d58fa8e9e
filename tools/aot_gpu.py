"""Compiles the train step of a config for an NVIDIA GPU, without one: temporaries, and bytes by instruction.

    python -m tools.aot_gpu --config=configs/vit_s16_i1k.py --chip=h200 --config.model.dtype=bfloat16

Requires the extra gpu, or `pip install "jax[cuda12]"` in the version of jax; no driver, no GPU. Bytes are
those that each top-level instruction of the program reads and writes, with every operand in full. What cannot
be trusted: nothing is autotuned, so the choice of matmul kernels and the fusion into them are not those of a
GPU; the workspaces of cuDNN and cuBLAS are not part of the memory; and there is no estimate of time.
"""

from vit_registers import startup

startup.begin(__name__)

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
from absl import flags
from jax.experimental import topologies

from tools import hlo
from tools.aot_step import lower_flax_step, lower_step
from vit_registers import cli
from vit_registers.config import Config, lookup
from vit_registers.errors import ConfigError

_GIB = 2**30
_LARGE_BYTES = 1 << 26  # of a float32 array that is reported
_COMMON = (
    "threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 "
    "shared_memory_per_block: 49152 registers_per_core_limit: 65536 registers_per_block_limit: 65536 "
    "block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 "
)
# XLA's description of a device (gpu_device_info), from the data sheets of the SXM modules.
CHIPS = {
    "a100": "shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912 core_count: 108 "
    "fpus_per_core: 64 memory_bandwidth: 2039000000000 l2_cache_size: 41943040 clock_rate_ghz: 1.41 "
    "device_memory_size: 80000000000 cuda_compute_capability { major: 8 }",
    "h100": "shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 core_count: 132 "
    "fpus_per_core: 128 memory_bandwidth: 3350000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 "
    "device_memory_size: 80000000000 cuda_compute_capability { major: 9 }",
    "h200": "shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 core_count: 132 "
    "fpus_per_core: 128 memory_bandwidth: 4814000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98 "
    "device_memory_size: 150000000000 cuda_compute_capability { major: 9 }",
}
# With Triton products nothing compiles, because they must be autotuned on a device.
OPTIONS = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}


def gpu_devices(chip: str) -> list[jax.Device]:
    """The description of one GPU as a device. Raises ConfigError for an unknown chip and without CUDA."""
    description = (
        f"gpu_device_info {{ {_COMMON}{lookup(CHIPS, chip, '--chip')} }}\n"
        f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} '
        f'device_description_str: "NVIDIA {chip.upper()}"'
    )
    try:
        found = topologies.get_topology_desc(
            chip, platform="cuda", target_config=description, topology="1x1x1"
        )
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--chip={chip}: {reason}; install the extra gpu (CUDA 13), or jax[cuda12] in the version of jax"
        ) from None
    return found.devices


def compile_step(config: Config, chip: str) -> jax.stages.Compiled:
    """The train step of `config` for one GPU of that kind."""
    return lower_step(config, gpu_devices(chip)).compile(OPTIONS)


def totals(compiled: jax.stages.Compiled) -> tuple[int, int]:
    """(bytes of temporaries, bytes that all instructions read and write)."""
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    return temporaries, sum(one.bytes for one in hlo.instructions(compiled.as_text()))


def lines(compiled: jax.stages.Compiled) -> list[str]:
    """The report as text."""
    found = hlo.instructions(compiled.as_text())
    memory = compiled.memory_analysis()
    total = sum(one.bytes for one in found)
    said = [
        f"arguments  {memory.argument_size_in_bytes / _GIB:8.2f} GiB (state and batch)",
        f"temporary  {memory.temp_size_in_bytes / _GIB:8.2f} GiB, without workspaces of cuDNN and cuBLAS",
        f"bytes      {total / 1e9:8.2f} GB read and written by {len(found)} instructions",
    ]
    for kind, (number, size) in hlo.by_kind(found).items():
        said.append(f"  {kind:<36} {number:5d} x {size / 1e9:9.3f} GB")
    fusions = sorted((one for one in found if one.num_fused), key=lambda one: -one.bytes)
    said.append("largest fusions")
    said += [_line(one) for one in fusions[:10]]
    wide = [one for one in found if hlo.float32_bytes(one.shape) >= _LARGE_BYTES]
    said.append(f"{len(wide)} instructions write float32 arrays of {_LARGE_BYTES >> 20} MiB or more")
    said += [_line(one) for one in sorted(wide, key=lambda one: -one.written_bytes)[:10]]
    return said


def _line(one: hlo.Instruction) -> str:
    shape = one.shape if len(one.shape) < 60 else f"{one.shape[:57]}..."
    return f"  {one.bytes / 1e9:8.3f} GB  {one.num_fused:4d} fused  {shape}  {one.where[-70:]}"


def main() -> None:
    """The command line."""
    config, chip = cli.config_of_flags(), flags.FLAGS.chip
    compiled = compile_step(config, chip)
    if flags.FLAGS.hlo:
        with open(flags.FLAGS.hlo, "w") as file:
            file.write(compiled.as_text())
    print("\n".join(lines(compiled)))
    if flags.FLAGS.flax:
        flax = totals(lower_flax_step(config, gpu_devices(chip)).compile(OPTIONS))
        ours = totals(compiled)
        print(f"plain Flax: temporary {flax[0] / _GIB:.2f} GiB, bytes {flax[1] / 1e9:.2f} GB")
        print(f"ours / Flax: temporary {ours[0] / flax[0]:.3f}, bytes {ours[1] / flax[1]:.3f}")


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("chip", "h200", f"The GPU: {', '.join(CHIPS)}.")
    flags.DEFINE_bool("flax", False, "Compile the plain Flax ViT of tools.bench.step too, and print ratios.")
    flags.DEFINE_string("hlo", None, "Write the compiled program to this file.")
    flags.mark_flags_as_required(["config"])
    cli.run(main)
    sys.exit(0)
