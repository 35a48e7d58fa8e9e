"""register-activations: whether one register has the high norm, the same in every image. No JAX."""

import numpy as np
from matplotlib.axes import Axes

from vit_registers.analysis.experiments.experiment import DECOUPLING, Experiment
from vit_registers.analysis.measures.decoupling import register_activations
from vit_registers.analysis.measures.severity import summarize_values
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import legend_name, overlay_picture, plain_log
from vit_registers.analysis.report.result import Rows, counted, number
from vit_registers.analysis.subject import Subject


def _measure(subject: Subject, options: Options) -> Rows:
    hidden = subject.store.read("register_hidden_2xRxD")
    found = register_activations(hidden[:, 0], hidden[:, 1])
    ratio = None if found.ratio_B is None else summarize_values(found.ratio_B).mean
    percent, norm = 100 * found.consistency, float(found.norm_BxR[:, found.register].mean())
    row = (found.register, percent, norm, ratio, found.cosine_before, found.cosine_after)
    gap = f"{subject.name}: all registers are 0, so that none has the highest norm"
    return Rows(
        tables={"The register of highest norm": [row]},
        text=f"register {found.register} has the highest norm in {number(percent, '%')} of the images, and "
        f"its cosine between images is {number(found.cosine_before)}",
        compared=found.cosine_before,
        count=counted(len(hidden), "image"),
        values=(np.abs(found.mean_before), np.abs(found.mean_after)),
        gaps=[] if found.norm_BxR.any() else [gap],
    )


def _lines(axes: Axes, values: tuple[np.ndarray, np.ndarray], color: str, name: str) -> None:
    before, after = values
    axes.plot(before, color=color, label=legend_name(f"{name}: before the norm"))
    axes.plot(after, "--", color=color, label=legend_name(f"{name}: after it"))
    axes.set(xlabel="dimension, by size", ylabel="size of the mean")
    plain_log(axes.yaxis)


EXPERIMENT = Experiment(
    question="Is one register large, and the same for every image?",
    answers=f"{DECOUPLING}, figure 2b",
    definition="The registers that go into the last block: which has the highest norm most often, its "
    "cosine between images (mean over all pairs), and the sizes of its 100 largest mean activations, "
    "before and after the block's first norm.",
    tables={
        "The register of highest norm": "model | register | highest in images, % | mean norm"
        " | highest / second | cosine between images | after the norm"
    },
    measure=_measure,
    features=("register_hidden_2xRxD",),
    draw=overlay_picture(
        "activations",
        "Sizes of the largest mean activations of the register of highest norm, sorted.",
        _lines,
    ),
    compares="cosine of that register between images",
)
