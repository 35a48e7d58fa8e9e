"""How attention changes over the steps of a run. No JAX."""

import numpy as np

from vit_registers.analysis.experiments.attention_grids import draw_maps, mean_maps, queries
from vit_registers.analysis.experiments.run_steps import by_run
from vit_registers.analysis.measures.focus import focus
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject

_MOST_STEPS = 10  # that a grid of maps shows


def attention_over_training(subjects: list[Subject], options: Options) -> Result:
    """What cls and the registers attend to in the first image, at each step of the runs."""
    runs, gaps = by_run(subjects)
    result = Result(
        definition="Attention of the last block in the first image, mean over heads, at each checkpoint of a "
        "run that was given (RUN@all takes all). The share is what the patches get of the softmax; the "
        f"entropy is of the map, divided by its sum. Pictures show {_MOST_STEPS} steps at most.",
        gaps=gaps,
    )
    rows = []
    for run, steps in runs.items():
        if len(steps) < 2:
            continue
        rows += [(run, subject.step, *row) for subject in steps for row in _shares(subject)]
        places = np.unique(np.linspace(0, len(steps) - 1, _MOST_STEPS).round().astype(int))
        shown, first = [steps[place] for place in places], steps[0]
        maps = np.concatenate([mean_maps(subject, slice(0, 1)) for subject in shown])
        image = np.repeat(first.example_NxHxWxC[:1], len(shown), axis=0)
        labels = [f"step {subject.step}" for subject in shown]
        result.pictures.append(
            Picture(
                name=f"steps-{first.name}",
                caption=f"{run}: attention over the first image; each map has its own scale from 0 to the "
                "maximum below it.",
                figure=draw_maps(image, maps, queries(first), labels),
            )
        )
    if rows:
        columns = ("run", "step", "query", "share of patches", "entropy / uniform")
        result.tables.append(Table(title="Attention over training", columns=columns, rows=rows))
    return result


def _shares(subject: Subject) -> list[tuple[str, float, float | None]]:
    """(query, share, entropy) of each map of the first image."""
    maps_ExHxW = mean_maps(subject, slice(0, 1))[0].astype(np.float64)
    share_E, entropy_E = maps_ExHxW.sum(axis=(1, 2)), focus(maps_ExHxW).entropy_share_E
    return [
        (name, float(share_E[i]), float(entropy_E[i]) if entropy_E is not None and share_E[i] else None)
        for i, name in enumerate(queries(subject))
    ]
