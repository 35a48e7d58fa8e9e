"""How attention is spread in each block, and onto which tokens. No JAX."""

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject


def entropy(subjects: list[Subject], options: Options) -> Result:
    """Entropy of attention and the mass that goes to each token group, by layer."""
    rows = []
    figure = Figure(figsize=(4.2 * len(subjects) + 0.5, 3.2), layout="constrained")
    for axes, subject in zip(figure.subplots(1, len(subjects), squeeze=False)[0], subjects, strict=True):
        groups, uniform = tuple(subject.layout.groups), np.log(subject.layout.num_tokens)
        entropy_LxG = subject.store.read("entropy_LxG").mean(0, dtype=np.float64)
        mass_LxGxG = subject.store.read("mass_LxGxG").mean(0, dtype=np.float64)
        for layer in range(len(entropy_LxG)):
            for i, group in enumerate(groups):
                mass = dict(zip(groups, map(float, mass_LxGxG[layer, i]), strict=True))
                rows.append(
                    (
                        subject.name,
                        layer + 1,
                        group,
                        float(entropy_LxG[layer, i]),
                        float(entropy_LxG[layer, i] / uniform),
                        *(mass.get(name) for name in ("cls", "registers", "summaries", "patches")),
                    )
                )
        for i, group in enumerate(groups):
            axes.plot(
                np.arange(1, len(entropy_LxG) + 1), entropy_LxG[:, i] / uniform, "o-", ms=3, label=group
            )
        axes.set(xlabel="block", ylabel="entropy / uniform", ylim=(0, 1.02), title=subject.name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize=8)
    columns = (
        "model",
        "block",
        "queries",
        "entropy, nats",
        "/ uniform",
        "mass to cls",
        "to registers",
        "to summaries",
        "to patches",
    )
    return Result(
        definition="Entropy of the softmax weights of a query, mean over heads, the group's queries and "
        "images; a mask lowers it. Mass: the weights that a group's queries send to each group.",
        tables=[Table(title="Attention by layer", columns=columns, rows=rows)],
        pictures=[Picture(name="entropy", caption="Entropy by block.", figure=figure)],
    )
