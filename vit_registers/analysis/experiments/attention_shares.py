"""How the attention of cls is divided over the token groups. No JAX."""

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.measures.decoupling import attention_shares
from vit_registers.analysis.measures.severity import summarize
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject, in_parts


def shares(subjects: list[Subject], options: Options) -> Result:
    """How the attention of cls in the last block is divided over the token groups."""
    rows = []
    figure = Figure(figsize=(3.2 * len(subjects) + 0.5, 3.0), layout="constrained")
    for axes, subject in zip(figure.subplots(1, len(subjects), squeeze=False)[0], subjects, strict=True):
        plain, scaled = _shares(subject, use_renormalised=False), _shares(subject, use_renormalised=True)
        for name, share_B in plain.items():
            of_rest = summarize(scaled[name]) if name in scaled else None
            own = summarize(share_B)
            rows.append(
                (
                    subject.name,
                    name,
                    own.mean,
                    own.std,
                    of_rest.mean if of_rest else None,
                    of_rest.std if of_rest else None,
                )
            )
        axes.violinplot(list(plain.values()), showmedians=True)
        axes.set_xticks(range(1, len(plain) + 1), list(plain), fontsize=8)
        axes.set(ylim=(0, 1), ylabel="share of attention", title=subject.name)
    columns = ("model", "to", "share", "std", "share without cls", "std without cls")
    return Result(
        definition="Attention of cls in the last block, mean over heads, summed over each group; standard "
        "deviations are over images. The last two columns leave cls itself out and divide by the rest: the "
        "text of the paper says that patches and registers sum to 1.",
        tables=[Table(title="Attention of cls", columns=columns, rows=rows)],
        pictures=[Picture(name="shares", caption="Shares over images.", figure=figure)],
    )


def _shares(subject: Subject, *, use_renormalised: bool) -> dict[str, np.ndarray]:
    """attention_shares of all images."""
    weights_BxNxExT = subject.store.read("attention_NxExT")
    found = [
        attention_shares(
            weights_BxNxExT[images, :, 0], subject.layout.groups, use_renormalised=use_renormalised
        )
        for images in in_parts(len(weights_BxNxExT))
    ]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}
