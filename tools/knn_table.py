"""The k-NN accuracies of a sweep of self-supervised runs beside two baselines: raw pixels, untrained models.

    python -m vit_registers.sweep --config=dino_digits --workdir=runs/dino-digits
    python -m tools.knn_table --config=dino_digits --workdir=runs/dino-digits

Prints Markdown: a row for each kind of features and each cell of the sweep, over seeds. Baselines are
computed here, with the evaluator of training. Those of trained models are read from result.json of the runs;
a folder without finished runs gives the baselines alone. Give the same settings as to the sweep.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from vit_registers import cli
from vit_registers.config import Config
from vit_registers.data.batch import IMAGE, Batch
from vit_registers.data.loaders import EvalSplit, open_data
from vit_registers.errors import ConfigError
from vit_registers.evaluation.catalog import make_evaluators
from vit_registers.evaluation.knn import CLS, PATCH, KnnEvaluator, metric_name
from vit_registers.objectives.catalog import make_objective
from vit_registers.runs.sweep_cells import Cell, label_text, mean_std, read_cells
from vit_registers.runs.sweeps import read_sweep
from vit_registers.runtime.mesh import make_mesh

METRIC = "top1_k20"
FEATURES = {"cls": CLS, "mean patch": PATCH}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A row of the table: accuracies in % of runs that differ in their seed."""

    weights: str
    cell: str
    features: str
    values: Sequence[float]
    time_s: float | None = None  # mean of a run


def pixels(backbone: Any, batch: Batch) -> dict[str, jax.Array]:
    """The pixels of each image as a vector, between 0 and 1."""
    del backbone
    return {CLS: batch.views[IMAGE].astype(jnp.float32).reshape(len(batch.mask_B), -1) / 255}


def baselines(cells: Sequence[Cell]) -> list[Line]:
    """Raw pixels, and the models of all runs as they are before the first step."""
    config = cells[0].runs[0].config
    mesh, split = make_mesh(config.mesh), EvalSplit(open_data(config), config.data.eval_split)
    with jax.set_mesh(mesh):
        raw = KnnEvaluator(config.data, split, mesh, pixels)({"vit": {}})
        lines = [Line(weights="-", cell="-", features="raw pixels", values=[100 * raw[METRIC]])]
        for cell in cells:
            found = [_untrained(run.config, split, mesh) for run in cell.runs]
            lines += _lines("untrained", cell, found)
    return lines


def _untrained(config: Config, split: EvalSplit, mesh: jax.sharding.Mesh) -> dict[str, float]:
    objective = make_objective(config)
    splits = {config.data.eval_split: split}
    evaluators = make_evaluators(config.objective, config.model, config.data, splits, mesh, config.tasks)
    if "knn" not in evaluators:
        raise ConfigError(f"objective.name='{config.objective.name}' has no k-NN evaluation")
    params, extra = jax.jit(objective.init)(jax.random.key(config.run.seed))
    return {f"knn/{k}": v for k, v in evaluators["knn"](objective.eval_params(params, extra)).items()}


def trained(cells: Sequence[Cell]) -> list[Line]:
    """The last evaluations of the finished runs."""
    lines = []
    for cell in cells:
        times = [result["time_s"] for result in cell.results]
        lines += _lines("trained", cell, [one["metrics"] for one in cell.results], mean_std(times)[0])
    return lines


def _lines(
    weights: str, cell: Cell, found: Sequence[Mapping[str, Any]], time_s: float | None = None
) -> list[Line]:
    return [
        Line(
            weights=weights,
            cell=label_text(cell.labels),
            features=name,
            values=[100 * one[f"knn/{metric_name(feature, METRIC)}"] for one in found],
            time_s=time_s,
        )
        for name, feature in FEATURES.items()
    ]


def knn_markdown(lines: Sequence[Line]) -> str:
    """The table in Markdown."""
    table = [
        ["weights", "model", "features", "20-NN top-1 in %", "lowest", "runs", "time, s"],
        ["---", "---", "---", "---:", "---:", "---:", "---:"],
    ]
    for line in lines:
        mean, std = mean_std(line.values)
        shown = "-" if mean is None else f"{mean:.2f}" + ("" if std is None else f" ± {std:.2f}")
        lowest = f"{min(line.values):.2f}" if len(line.values) > 1 else ""
        time = "" if line.time_s is None else f"{line.time_s:.1f}"
        table.append([line.weights, line.cell, line.features, shown, lowest, str(len(line.values)), time])
    return "\n".join(f"| {' | '.join(text.replace('|', '/') for text in row)} |" for row in table)


def main() -> None:
    """The command line."""
    cells = read_cells(read_sweep())
    print(knn_markdown([*baselines(cells), *trained(cells)]))
    results = [result for cell in cells for result in cell.results]
    wanted = sum(len(cell.runs) for cell in cells)
    print("\n± is the sample standard deviation over runs of different seeds (n - 1).")
    print(f"\n{len(results)} of {wanted} runs finished. Commit: {_all(results, 'commit')}")
    print(
        "\nTime: of a run from its first step, with compilation, evaluations and saves; the mean over seeds."
    )


def _all(results: Sequence[Mapping[str, Any]], key: str) -> str:
    return ", ".join(dict.fromkeys(str(result[key]) for result in results)) or "-"


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("workdir", None, "Folder of all run folders.")
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
