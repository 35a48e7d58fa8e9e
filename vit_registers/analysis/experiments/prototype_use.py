"""prototype-use: how the prototypes of self-distillation divide the images."""

import numpy as np

from vit_registers import loading
from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import color_of, legend_above, legend_name, new_axes
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject
from vit_registers.errors import UserError
from vit_registers.runs.prototypes import prototype_use


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    if subject.run is None or subject.step is None:
        return Gap(f"{subject.name}: not a run, so that it has no prototypes")
    cls_BxD = subject.store.read("cls_D")
    try:
        checkpoint = loading.open_run(str(subject.run), subject.step)
        found = prototype_use(checkpoint, cls_BxD, params=subject.params)
    except UserError as error:
        return Gap(f"{subject.name}: {error}")
    if found is None:
        return Gap(f"{subject.name}: its objective is not self_distillation, so that it has no prototypes")
    images, total, used = len(cls_BxD), len(found.top_Z), int((found.top_Z > 0).sum())
    largest = 100 * float(found.top_Z.max()) / images
    effective, mean = _effective(found.top_Z / images), _effective(found.mean_Z)
    reachable = min(images, total)
    return Rows(
        tables={"Prototypes": [(subject.step, total, used, effective, mean, largest)]},
        text=f"{used:,} of {total:,} prototypes are the nearest of an image, and the most frequent one of "
        f"{number(largest, '%')} of the images",
        compared=100 * used / reachable,
        count=counted(images, "image"),
        values=(100 * np.sort(found.top_Z)[::-1] / images, 100 / total),
        remark="all images have one prototype" if used == 1 and images > 1 else "",
    )


def _effective(share_Z: np.ndarray) -> float:
    """The exponential of the entropy of shares that sum to 1: how many prototypes are in equal use."""
    kept = share_Z[share_Z > 0]
    return float(np.exp(-(kept * np.log(kept)).sum()))


def _draw(found: Found) -> Pictures:
    figure, axes = new_axes()
    for one in found:
        share_Z, uniform = one.values
        rank_Z = np.arange(1, len(share_Z) + 1)
        axes.step(rank_Z, share_Z, where="mid", color=color_of(one.place), label=legend_name(one.name))
        axes.axhline(uniform, color=color_of(one.place), lw=0.8, ls=":")
    axes.set(xlabel="prototypes, the most frequent first", ylabel="images, %", ylim=(0.0, None))
    legend_above(axes)
    caption = (
        "Share of the images whose largest logit is that of each prototype. Dots: all equally often. One "
        "high step and zeros after it is collapse."
    )
    return [Picture(name="prototype-use", caption=caption, figure=figure)]


EXPERIMENT = Experiment(
    question="Are all prototypes in use, or do a few take all images?",
    answers="arXiv:2104.14294 and arXiv:2304.07193, collapse",
    definition="The teacher's head on cls of the images, without crops. A prototype is in use if its logit "
    "is the largest of an image. In equal use: the exponential of the entropy of these shares, and of the "
    "mean of softmax(logits / 0.1), without centring or Sinkhorn-Knopp, which would hide what they correct. "
    "Fewer images than prototypes cannot use all; the comparison is with the smaller number.",
    tables={
        "Prototypes": "model | step | prototypes | in use | in equal use | in equal use, by probability | "
        "images of the most frequent, %"
    },
    measure=_measure,
    features=("cls_D",),
    draw=_draw,
    compares="share of prototypes in use, %",
)
