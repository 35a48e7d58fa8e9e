"""Evaluates a run: loss, top-1 and top-5 of its newest checkpoint over a split, each image once.

    python -m vit_registers.evaluate --checkpoint=runs/digits [--step=200] [--config.data.eval_split=test]

The run folder is all that is needed. --config.data... changes the data. All devices are used, however the run
was sharded; --config.mesh... lays the model over them.
The result is printed, and written as JSON to RUN/evaluation/<split>-<step>.json.
"""

import json
import time

import jax
from absl import flags
from ml_collections import config_flags

from vit_registers import checkpointed, cli
from vit_registers import config as config_lib
from vit_registers.data.loaders import check_classes, open_data
from vit_registers.errors import ConfigError
from vit_registers.evaluation.classify import make_evaluate
from vit_registers.training import sharding


def evaluate(
    run: str, *, step: int | None, overrides: dict[str, object], params: str | None
) -> dict[str, object]:
    """The metrics of one checkpoint of `run`, with what they were measured on."""
    step, config = checkpointed.read_config(run, step, overrides)
    params = params or checkpointed.counting_params(run, step)
    mesh = sharding.make_mesh(config.mesh)
    is_size_given = "data.eval_batch_size" in overrides
    config = sharding.fit_evaluation(config, mesh, is_size_given=is_size_given)
    if not config.model.num_classes:
        raise ConfigError(
            f"{run} has no head, so there is nothing to evaluate: fine-tune it first, or add one"
        )
    loader = open_data(config)
    check_classes(config, loader)
    with jax.set_mesh(mesh):
        graphdef, values = checkpointed.read_model(run, step, config.model, mesh, params=params)
        started = time.monotonic()
        batches = loader.eval_batches(config.data.eval_split, sharding.batch_sharding(mesh))
        result = make_evaluate(config, graphdef, mesh)(values, batches)
    return {
        "checkpoint": run,
        "step": step,
        "params": params,
        "data": config.data.name,
        "split": config.data.eval_split,
        **result,
        "left_out": loader.num_broken,
        "seconds": round(time.monotonic() - started, 3),
    }


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    overrides = config_flags.get_override_values(values["config"])
    result = evaluate(values.checkpoint, step=values.step, overrides=overrides, params=values.params)
    if jax.process_index() != 0:
        return
    for name, value in result.items():
        shown = f"{value:.4f}" if isinstance(value, float) else value
        print(f"{name:<12}{shown}")
    folder = cli.writable_folder(values.out or f"{values.checkpoint}/evaluation", "--out")
    suffix = "" if result["params"] == "params" else f"-{result['params']}"
    path = folder / f"{result['split'].replace('/', '_')}-{result['step']}{suffix}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{'written to':<12}{path}")


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "Run folder.")
    flags.DEFINE_integer("step", None, "Which checkpoint of the run; the newest intact one if not given.")
    flags.DEFINE_enum(
        "params", None, ["params", "ema"], "The trained parameters, or their average; by default what counts."
    )
    flags.DEFINE_string("out", None, "Folder for the JSON file; RUN/evaluation if not given.")
    config_flags.DEFINE_config_dict("config", config_lib.to_config_dict(config_lib.Config()))
    flags.mark_flags_as_required(["checkpoint"])
    cli.run(main)
