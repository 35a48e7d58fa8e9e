"""accuracy: how often the model's own head is right, by the number of registers. No JAX."""

from typing import NamedTuple

import numpy as np

from vit_registers.analysis.experiments.edited_models import choices
from vit_registers.analysis.experiments.experiment import REGISTERS, SMALL, Experiment
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.colors import GREY, color_of
from vit_registers.analysis.report.figures import legend_above, legend_name, new_axes
from vit_registers.analysis.report.headline import over_images
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number, percent
from vit_registers.analysis.subject import Subject, in_parts

_MARKERS = "osD^v"
_MOST_CLASSES_WITHOUT_TOP5 = 5  # with so few classes top-5 is always 1
_SLOT = 0.7  # the part of the distance between two register counts that models of one count take up


class Accuracy(NamedTuple):
    """Means over images: shares in [0, 1], and cross-entropy in nats."""

    num_images: int
    top1: float
    top5: float | None
    cross_entropy: float  # not finite where a logit is not
    num_non_finite: int  # images with a logit that is not finite; they are wrong

    @property
    def top1_error(self) -> float:
        """The standard error of top1 for images drawn at random, in [0, 1]."""
        return float(np.sqrt(self.top1 * (1 - self.top1) / self.num_images))


def score_head(logits_BxY: np.ndarray, label_B: np.ndarray) -> Accuracy | None:
    """Top-1, top-5 and cross-entropy of the images that have a label (>= 0); None where none has.

    A label is among the first k where fewer than k classes precede it: those of a higher logit, and those of
    an equal logit and a lower index. An image with a logit that is NaN or infinite is wrong. Top-5 is None
    for 5 classes or fewer. The cross-entropy is that of the softmax, whatever the loss of training was.
    """
    num_classes = logits_BxY.shape[1]
    count, first, among, broken, loss = 0, 0, 0, 0, 0.0
    for images in in_parts(len(label_B)):
        part = np.asarray(label_B[images])
        is_labelled_B = part >= 0
        label_Bx1 = part[is_labelled_B, None]
        logits = np.asarray(logits_BxY[images], np.float64)[is_labelled_B]
        own_Bx1 = np.take_along_axis(logits, label_Bx1, axis=1)
        is_tie_before = (logits == own_Bx1) & (np.arange(num_classes)[None] < label_Bx1)
        is_finite_B = np.isfinite(logits).all(1)
        rank_B = np.where(is_finite_B, ((logits > own_Bx1) | is_tie_before).sum(1), num_classes)
        first += int((rank_B < 1).sum())
        among += int((rank_B < 5).sum())
        broken += int((~is_finite_B).sum())
        with np.errstate(invalid="ignore"):  # a loss of logits that are not finite is not finite
            loss += float((np.logaddexp.reduce(logits, axis=1) - own_Bx1[:, 0]).sum())
        count += len(logits)
    if not count:
        return None
    top5 = among / count if num_classes > _MOST_CLASSES_WITHOUT_TOP5 else None
    return Accuracy(count, first / count, top5, loss / count, broken)


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    label_B = subject.head_labels()
    if label_B is None:
        several = "an image has several labels, and accuracy is defined for one label here"
        return Gap(f"{subject.name}: {subject.other_classes() or several}")
    logits_BxY = subject.store.read("logits_Y")
    one = score_head(logits_BxY, label_B)
    if one is None:
        return Gap(f"{subject.name}: no image has a label")
    registers, top1, error = subject.layout.num_registers, 100 * one.top1, 100 * one.top1_error
    if one.num_non_finite:
        return Gap(
            f"{subject.name}: the head gives numbers that are not finite for {one.num_non_finite} of "
            f"{one.num_images} images; with these as wrong, top-1 is {top1:.4g} %"
        )
    is_right_B = choices(logits_BxY) == label_B
    row = (registers, one.num_images, top1, error, percent(one.top5), one.cross_entropy)
    return Rows(
        tables={"Accuracy of the own head": [row]},
        text=f"the head is right on {number(top1, '%')} of the images (standard error {number(error, '%')})",
        compared=top1,
        count=counted(one.num_images, "image"),
        values=(registers, top1, error),
        headlines=[over_images("top-1, %", np.where(label_B < 0, np.nan, 100.0 * is_right_B))],
    )


def _draw(found: Found) -> Pictures:
    counts = sorted({one.values[0] for one in found})
    figure, axes = new_axes()
    means = []
    for slot, count in enumerate(counts):
        here = [one for one in found if one.values[0] == count]
        means.append(np.mean([one.values[1] for one in here]))
        for place, one in enumerate(here):
            _, top1, error = one.values
            x = slot + _SLOT * ((place + 0.5) / len(here) - 0.5)
            marker, color = _MARKERS[one.place // 8 % len(_MARKERS)], color_of(one.place)
            label = legend_name(f"{one.name}: {top1:.2f} %")
            axes.errorbar(x, top1, error, fmt=marker, color=color, ms=5, capsize=3, label=label)
    axes.plot(range(len(counts)), means, "-", color=GREY, lw=1, zorder=0)
    axes.set_xticks(range(len(counts)), map(str, counts))
    axes.set(xlabel="registers", ylabel="top-1, %", xlim=(-0.6, len(counts) - 0.4))
    axes.margins(y=0.1)
    axes.grid(alpha=0.3, axis="y")
    legend_above(axes, ncols=1)
    caption = (
        "Top-1 by the number of registers; bars are one standard error; the line goes through the means of "
        "the models of each number."
    )
    return [Picture(name="accuracy", caption=caption, figure=figure)]


EXPERIMENT = Experiment(
    question="How often is the model's own head right, and do registers cost accuracy?",
    answers=f"{REGISTERS}, figure 8; {SMALL}, section 4.1; arXiv:2601.15506",
    definition="Each image once. Classes are matched by name with those that the head was trained on; "
    "where a checkpoint does not know these, the n-th of the images is the n-th of the head. Top-5 is "
    "given for heads of more than five classes only. The standard error is that of drawing as many images, "
    "not that of training again. The cross-entropy is the softmax's, in nats; it need not be small where a "
    "head was trained with another loss.",
    tables={
        "Accuracy of the own head": (
            "model | registers | images | top-1, % | standard error | top-5, % | cross-entropy, nats"
        )
    },
    measure=_measure,
    features=("logits_Y",),
    draw=_draw,
    arrange=lambda found: sorted(found, key=lambda one: one.values[0]),
    compares="top-1, %",
)
