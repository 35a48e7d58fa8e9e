"""FLOPs of the matrix products of a self-distillation step: backbone, heads, and against a supervised step.

    python -m tools.step_flops --config=dinov2_vitl16_short --config.data.batch_size=64

Traces the real train step and compiles nothing. Products in a loop count once per iteration, recomputed
products as often as they are computed: model.remat=none leaves the recomputation of blocks out. The share of
the heads is the difference to a step with heads of one unit. The supervised step is that of the same model
with a classifier, on one crop of the model's size.
"""

from vit_registers import startup

startup.begin(__name__)

import dataclasses
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
from absl import flags

from tools.aot_step import trace_step
from vit_registers import cli
from vit_registers.config import Config, ObjectiveSettings, Optimizer
from vit_registers.errors import ConfigError


def product_flops(jaxpr: Any) -> int:
    """FLOPs of all dot_general and convolutions of a jaxpr, 2 for a multiplication and an addition."""
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval
            total += 2 * equation.outvars[0].aval.size * math.prod(left.shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel, spec = equation.invars[1].aval, params["dimension_numbers"].rhs_spec
            total += 2 * equation.outvars[0].aval.size * kernel.size // kernel.shape[spec[0]]
        elif name == "while" and product_flops(params["body_jaxpr"].jaxpr):
            raise ValueError("products in a loop of unknown length cannot be counted")
        times = params["length"] if name == "scan" else 1
        total += times * sum(product_flops(inner) for inner in _inner(params))
    return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in jax.tree.leaves(params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            yield value


def flops_per_image(config: Config) -> float:
    """FLOPs of the products of the train step of `config`, for one image of the batch."""
    traced = trace_step(config, jax.devices()[:1])
    return product_flops(traced.jaxpr.jaxpr) / config.data.batch_size


def variants(config: Config) -> dict[str, Config]:
    """The step of `config`; with heads of one unit; and the supervised step of its model."""
    settings = config.objective.self_distillation
    tiny = dataclasses.replace(
        settings, num_prototypes=2, head_hidden=1, head_bottleneck=1, ibot_prototypes=2, ibot_bottleneck=1
    )
    return {
        "step": config,
        "backbones": dataclasses.replace(
            config, objective=dataclasses.replace(config.objective, self_distillation=tiny)
        ),
        "supervised": dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, num_classes=1000),
            objective=ObjectiveSettings(),
            optimizer=Optimizer(),
        ),
    }


def main() -> None:
    """The command line."""
    config = cli.config_of_flags()
    if config.objective.name != "self_distillation":
        raise ConfigError(f"objective.name={config.objective.name}: must be self_distillation")
    found = {name: flops_per_image(one) for name, one in variants(config).items()}
    heads = found["step"] - found["backbones"]
    print(f"a step: {found['step'] / 1e9:.1f} GFLOP per image")
    print(f"backbones of student and teacher: {found['backbones'] / 1e9:.1f}")
    print(f"heads: {heads / 1e9:.1f}, {heads / found['step']:.1%} of the step")
    print(
        f"supervised step: {found['supervised'] / 1e9:.1f}; ratio {found['step'] / found['supervised']:.2f}"
    )


if __name__ == "__main__":
    cli.define_config()
    flags.mark_flags_as_required(["config"])
    cli.run(main)
    sys.exit(0)
