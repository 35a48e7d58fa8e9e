"""cls-by-layer: when cls becomes what it is after the last block. No JAX."""

import numpy as np

from vit_registers.analysis.experiments.experiment import DECOUPLING, Experiment
from vit_registers.analysis.measures.decoupling import layer_similarity
from vit_registers.analysis.measures.severity import summarize_values
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import lines_picture
from vit_registers.analysis.report.headline import over_images
from vit_registers.analysis.report.result import Rows, counted, number
from vit_registers.analysis.subject import Subject, in_parts


def _measure(subject: Subject, options: Options) -> Rows:
    cls_BxLxD = subject.store.read("cls_LxD")
    parts = [layer_similarity(cls_BxLxD[images]) for images in in_parts(len(cls_BxLxD))]
    found = [summarize_values(column) for column in np.concatenate(parts).T]
    means = [one.mean for one in found]
    return Rows(
        tables={"cls by layer": [(i, one.mean, one.std) for i, one in enumerate(found)]},
        text=f"the cosine of cls with cls after the last block is {number(means[0])} before the first block "
        f"and {number(means[-2])} before the last",
        compared=means[-2],
        count=counted(len(cls_BxLxD), "image"),
        values=(np.linspace(0, 1, len(means)), means),
        headlines=[
            over_images("cosine of cls before and after the last block", np.concatenate(parts)[:, -2])
        ],
    )


EXPERIMENT = Experiment(
    question="When does cls become what it is at the end?",
    answers=f"{DECOUPLING}, figures 5b, 7 and 9",
    definition="Cosine of cls before the first block (0) and after each with cls after the last, before "
    "the final norm; mean and standard deviation over images.",
    tables={"cls by layer": "model | block | cosine | std"},
    measure=_measure,
    features=("cls_LxD",),
    draw=lines_picture(
        "layers",
        "Cosine of cls with what it is after the last block, by block; a line for each model.",
        "block / depth",
        "cosine with cls after the last block",
    ),
    compares="cosine before the last block",
)
