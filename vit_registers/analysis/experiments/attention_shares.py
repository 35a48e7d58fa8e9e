"""attention-shares: how the attention of cls is divided over the token groups. No JAX."""

import numpy as np

from vit_registers.analysis.experiments.experiment import DECOUPLING, Experiment
from vit_registers.analysis.measures.decoupling import attention_shares
from vit_registers.analysis.measures.severity import summarize_values
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import grouped_violins, legend_above, new_axes
from vit_registers.analysis.report.headline import over_images
from vit_registers.analysis.report.result import Found, Picture, Pictures, Rows, counted, number, percent
from vit_registers.analysis.subject import Subject, in_parts


def _measure(subject: Subject, options: Options) -> Rows:
    plain, scaled = (_shares(subject, use_renormalised=use) for use in (False, True))
    rows = []
    for name, share_B in plain.items():
        own = summarize_values(share_B)
        rest = summarize_values(scaled.get(name, np.zeros(0)))  # cls itself is not part of the rest
        rows.append((name, *map(percent, (own.mean, own.std, rest.mean, rest.std))))
    parts = [f"{number(mean, '%')} to {name}" for name, mean, *_ in rows]
    return Rows(
        tables={"Attention of cls": rows},
        text=f"of the attention of cls in the last block go {', '.join(parts)}",
        compared=100 * float(plain["patches"].mean()),
        count=counted(len(plain["patches"]), "image"),
        values={name: 100 * share_B for name, share_B in plain.items()},
        headlines=[
            over_images(f"attention of cls to {name}, %", 100 * plain[name])
            for name in ("registers", "summaries")
            if name in plain
        ],
    )


def _shares(subject: Subject, *, use_renormalised: bool) -> dict[str, np.ndarray]:
    weights_BxNxExT, groups = subject.store.read("attention_NxExT"), subject.layout.groups
    found = [
        attention_shares(weights_BxNxExT[images, :, 0], groups, use_renormalised=use_renormalised)
        for images in in_parts(len(weights_BxNxExT))
    ]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _draw(found: Found) -> Pictures:
    names = [
        name
        for name in ("cls", "registers", "summaries", "patches")
        if any(name in one.values for one in found)
    ]
    figure, axes = new_axes()
    grouped_violins(axes, found, names, lambda one: one.values)
    axes.set(ylim=(-2, 102), ylabel="attention of cls, %")
    legend_above(axes)
    caption = (
        "How much of the attention of cls each token group gets in the last block: the distribution over "
        "images, with the median and the ends."
    )
    return [Picture(name="shares", caption=caption, figure=figure, is_headline=True)]


EXPERIMENT = Experiment(
    question="How much of the attention of cls goes to registers, and how much to patches?",
    answers=f"{DECOUPLING}, figure 2a",
    definition="Attention of cls in the last block, mean over heads, summed over each group; standard "
    "deviations are over images. The last two columns leave cls itself out and divide by the rest: the "
    "text of the paper says that patches and registers sum to 1.",
    tables={"Attention of cls": "model | to | share, % | std, % | share without cls, % | std without cls, %"},
    measure=_measure,
    features=("attention_NxExT", "cls_LxD"),
    draw=_draw,
    compares="share that goes to patches, %",
)
