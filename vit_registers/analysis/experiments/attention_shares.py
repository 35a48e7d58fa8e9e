"""attention-shares: how the attention of cls is divided over the token groups. No JAX."""

import numpy as np
from matplotlib.axes import Axes

from vit_registers.analysis.experiments.experiment import DECOUPLING, Experiment
from vit_registers.analysis.measures.decoupling import attention_shares
from vit_registers.analysis.measures.severity import summarize_values
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import panels_picture
from vit_registers.analysis.report.result import Rows, counted, number
from vit_registers.analysis.subject import Subject, in_parts


def _measure(subject: Subject, options: Options) -> Rows:
    plain, scaled = (_shares(subject, use_renormalised=use) for use in (False, True))
    rows = []
    for name, share_B in plain.items():
        own = summarize_values(share_B)
        rest = summarize_values(scaled.get(name, np.zeros(0)))  # cls itself is not part of the rest
        rows.append((name, own.mean, own.std, rest.mean, rest.std))
    parts = [f"{number(100 * mean, '%')} to {name}" for name, mean, *_ in rows]
    return Rows(
        tables={"Attention of cls": rows},
        text=f"of the attention of cls in the last block go {', '.join(parts)}",
        compared=100 * float(plain["patches"].mean()),
        count=counted(len(plain["patches"]), "image"),
        values=plain,
    )


def _shares(subject: Subject, *, use_renormalised: bool) -> dict[str, np.ndarray]:
    weights_BxNxExT, groups = subject.store.read("attention_NxExT"), subject.layout.groups
    found = [
        attention_shares(weights_BxNxExT[images, :, 0], groups, use_renormalised=use_renormalised)
        for images in in_parts(len(weights_BxNxExT))
    ]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _panel(axes: Axes, share_B: dict[str, np.ndarray]) -> None:
    axes.violinplot(list(share_B.values()), showmedians=True)
    axes.set_xticks(range(1, len(share_B) + 1), list(share_B), fontsize=8)
    axes.set(ylim=(0, 1), ylabel="share of attention")


EXPERIMENT = Experiment(
    question="How much of the attention of cls goes to registers, and how much to patches?",
    answers=f"{DECOUPLING}, figure 2a",
    definition="Attention of cls in the last block, mean over heads, summed over each group; standard "
    "deviations are over images. The last two columns leave cls itself out and divide by the rest: the "
    "text of the paper says that patches and registers sum to 1.",
    tables={"Attention of cls": "model | to | share | std | share without cls | std without cls"},
    measure=_measure,
    features=("attention_NxExT", "cls_LxD"),
    draw=panels_picture("shares", "Shares over images.", _panel, width=3.2),
    compares="share that goes to patches, %",
)
