"""register-activations: whether one register has the high norm, the same in every image. No JAX."""

import numpy as np
from matplotlib.axes import Axes

from vit_registers.analysis.experiments.experiment import DECOUPLING, Experiment
from vit_registers.analysis.measures.decoupling import highest_of_all, register_activations
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
    norm_BxT = subject.store.read("norms_LxT")[: len(hidden), -2]  # of all tokens that go into the last block
    share, to_others_B = highest_of_all(norm_BxT, subject.layout.registers.start + found.register)
    to_others = None if to_others_B is None else summarize_values(to_others_B).mean
    own = (found.register, percent, norm, ratio, 100 * share, to_others)
    row = (*own, found.cosine_before, found.cosine_after)
    gap = f"{subject.name}: all registers are 0, so that none has the highest norm"
    return Rows(
        tables={
            "The register of highest norm": [row],
            "Norms before the last block": _norms(subject, norm_BxT),
        },
        text=f"register {found.register} has the highest norm of the registers in {number(percent, '%')} of "
        f"the images, and of all tokens in {number(100 * share, '%')}; its cosine between images is "
        f"{number(found.cosine_before)}",
        compared=found.cosine_before,
        count=counted(len(hidden), "image"),
        values=(np.abs(found.mean_before), np.abs(found.mean_after)),
        gaps=[] if found.norm_BxR.any() else [gap],
    )


def _norms(subject: Subject, norm_BxT: np.ndarray) -> list[tuple[str, float, float, float]]:
    """Of each kind of token: mean and largest norm, and how often one of it has the highest of all, in %."""
    highest_B = norm_BxT.argmax(axis=1)
    rows = []
    for name, where in subject.tokens().items():
        is_highest_B = (highest_B >= where.start) & (highest_B < where.stop)
        own = norm_BxT[:, where]
        rows.append((name, float(own.mean()), float(own.max()), 100 * float(is_highest_B.mean())))
    return rows


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
    "cosine between images (mean over all pairs), and the sizes of its 100 largest mean activations, before "
    "and after the block's first norm. Its norm is compared with those of the other registers, and with "
    "those of all other tokens; the paper's register is the highest of all, by an order of magnitude.",
    tables={
        "The register of highest norm": "model | register | highest in images, % | mean norm"
        " | / second register | highest of all tokens, % | / highest other token | cosine between images"
        " | after the norm",
        "Norms before the last block": "model | token | mean norm | largest | highest of all in images, %",
    },
    measure=_measure,
    features=("register_hidden_2xRxD", "norms_LxT"),
    draw=overlay_picture(
        "activations",
        "Sizes of the largest mean activations of the register of highest norm, sorted.",
        _lines,
    ),
    compares="cosine of that register between images",
)
