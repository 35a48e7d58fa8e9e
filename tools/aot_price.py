"""What registers, summaries and masks cost in a train step compiled for a CPU, a TPU or a GPU.

    python -m tools.aot_price --config=configs/vit_s16_i1k.py --device=h200 --config.model.attention=cudnn \\
      --config.model.dtype=bfloat16 --config.model.depth=2

`--device` is cpu, a topology of tools.aot_tpu such as v5p:2x2x1, or a chip of tools.aot_gpu; their docs say
what they require and what cannot be trusted. The table is in Markdown. FLOPs and bytes are per device and
step, and ratios are to the config without registers, summaries and mask. The last column is the ratio of the
matrix products by `forward_flops`, in which all pairs of tokens count under every mask.
"""

from vit_registers import startup

startup.begin(__name__)

import dataclasses
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX, which would look for a GPU
os.environ["TPU_SKIP_MDS_QUERY"] = "1"

import jax
from absl import flags

from tools import aot_gpu, aot_tpu, hlo
from tools.aot_step import lower_step
from vit_registers import cli
from vit_registers.analysis.experiments.cost import forward_flops
from vit_registers.config import Config, Model
from vit_registers.models.vit import token_layout

# By name, the settings of the model that differ from those of PLAIN.
PLAIN = {"num_registers": 0, "summary_factor": None, "mask": "none"}
VARIANTS = {
    "no extra tokens": {},
    "4 registers": {"num_registers": 4},
    "8 registers": {"num_registers": 8},
    "summaries, k = 2": {"summary_factor": 2},
    "summaries, k = 2, mask fractal": {"summary_factor": 2, "mask": "fractal"},
    "summaries, k = 2, mask window(radius=2)": {"summary_factor": 2, "mask": "window(radius=2)"},
}


@dataclasses.dataclass(frozen=True)
class Figures:
    """The compiler's figures of one program, per device."""

    flops: float
    accessed_bytes: float
    temporary_bytes: int


def compile_step(config: Config, device: str) -> jax.stages.Compiled:
    """The train step of `config` for cpu, a chip of tools.aot_gpu, or a topology of tools.aot_tpu."""
    if device == "cpu":
        return lower_step(config, jax.devices("cpu")[:1]).compile()
    if device in aot_gpu.CHIPS:
        return aot_gpu.compile_step(config, device)
    return aot_tpu.compile_step(config, device)[0]


def figures(compiled: jax.stages.Compiled) -> Figures:
    """FLOPs and bytes as XLA estimates them, or of the instructions where it does not, which is on GPUs.

    There, FLOPs are those of matrix products only.
    """
    temporary_bytes = compiled.memory_analysis().temp_size_in_bytes
    if cost := compiled.cost_analysis():
        return Figures(cost["flops"], cost["bytes accessed"], temporary_bytes)
    text = compiled.as_text()
    return Figures(hlo.product_flops(text), sum(one.bytes for one in hlo.instructions(text)), temporary_bytes)


def products(model: Model) -> int:
    """FLOPs of the matrix products of an image's forward pass."""
    return forward_flops(model, token_layout(model))


def main() -> None:
    """The command line."""
    config, device = cli.config_of_flags(), flags.FLAGS.device
    print("| tokens and mask | FLOPs | bytes | temporaries | FLOPs, bytes, temporaries | products |")
    print("|---|---|---|---|---|---|")
    first: tuple[Figures, int] | None = None
    for name, changed in VARIANTS.items():
        model = dataclasses.replace(config.model, **(PLAIN | changed))
        found = figures(compile_step(dataclasses.replace(config, model=model), device))
        plain, plain_products = first = first or (found, products(model))
        ratios = [
            getattr(found, field.name) / getattr(plain, field.name) for field in dataclasses.fields(found)
        ]
        print(
            f"| {name} | {found.flops / 1e12:.4g} T | {found.accessed_bytes / 1e9:.4g} GB | "
            f"{found.temporary_bytes / 2**30:.3g} GiB | {', '.join(f'{ratio:.3f}' for ratio in ratios)} | "
            f"{products(model) / plain_products:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("device", "cpu", "cpu, a topology of TPUs such as v5p:2x2x1, or a GPU such as h200.")
    flags.mark_flags_as_required(["config"])
    cli.run(main)
    sys.exit(0)
