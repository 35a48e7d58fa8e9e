"""attention-by-layer: how attention is spread in each block, and onto which tokens. No JAX."""

import numpy as np
from matplotlib.axes import Axes

from vit_registers.analysis.experiments.experiment import SEVERITY, Experiment
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import integer_ticks, legend_name, overlay_picture
from vit_registers.analysis.report.headline import over_images
from vit_registers.analysis.report.result import Rows, counted, number
from vit_registers.analysis.subject import Subject

_STYLES = {"cls": "o--", "registers": "s:", "summaries": "^-.", "patches": "o-"}


def _measure(subject: Subject, options: Options) -> Rows:
    groups, uniform = tuple(subject.layout.groups), np.log(subject.layout.num_tokens)
    entropy_LxG = subject.store.read("entropy_LxG").mean(0, dtype=np.float64)
    mass_LxGxG = subject.store.read("mass_LxGxG").mean(0, dtype=np.float64)
    rows = []
    for layer, entropy_G in enumerate(entropy_LxG):
        for i, group in enumerate(groups):
            mass = dict(zip(groups, map(float, 100 * mass_LxGxG[layer, i]), strict=True))
            to = (mass.get(name) for name in ("cls", "registers", "summaries", "patches"))
            rows.append((layer + 1, group, float(entropy_G[i]), float(entropy_G[i] / uniform), *to))
    share_L = entropy_LxG[:, groups.index("patches")] / uniform
    return Rows(
        tables={"Attention by layer": rows},
        text=f"the attention of patches has {number(share_L[0])} of the entropy of uniform attention in "
        f"block 1 and {number(share_L[-1])} in block {len(share_L)}",
        compared=float(share_L[-1]),
        count=counted(subject.store.num_read(), "image"),
        values={group: entropy_LxG[:, i] / uniform for i, group in enumerate(groups)},
        headlines=[
            over_images(
                "entropy of the attention of patches / uniform",
                subject.store.read("entropy_LxG")[:, -1, groups.index("patches")] / uniform,
            )
        ],
    )


def _lines(axes: Axes, share_L: dict[str, np.ndarray], color: str, name: str) -> None:
    for group, style in _STYLES.items():
        if group in share_L:
            label = legend_name(f"{name}: {group}")
            values = share_L[group]
            axes.plot(np.arange(1, len(values) + 1), values, style, ms=3, color=color, label=label)
    axes.set(xlabel="block", ylabel="entropy / uniform", ylim=(0, 1.02))
    integer_ticks(axes)


EXPERIMENT = Experiment(
    question="How is attention spread in each block, and onto which tokens?",
    answers=SEVERITY,
    definition="Entropy of the softmax weights of a query, mean over heads, the group's queries and "
    "images; a mask lowers it. Mass: the weights that a group's queries send to each group.",
    tables={
        "Attention by layer": "model | block | queries | entropy, nats | / uniform | mass to cls, %"
        " | to registers, % | to summaries, % | to patches, %"
    },
    measure=_measure,
    features=("entropy_LxG", "mass_LxGxG"),
    draw=overlay_picture(
        "entropy",
        "Entropy of attention by block, over that of uniform attention; a line for each model and each kind "
        "of query.",
        _lines,
    ),
    compares="entropy of the attention of patches in the last block over that of uniform attention",
)
