"""outliers-by-registers: the share of outliers by the number of registers, across models. No JAX."""

from collections.abc import Callable

import numpy as np

from vit_registers.analysis.experiments.experiment import REGISTERS, Experiment
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import color_of, integer_ticks, legend_above, legend_name, new_axes
from vit_registers.analysis.report.result import Found, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject


def outlier_share(subject: Subject, rule: str) -> tuple[float, float | None]:
    """(the share of patches that the rule flags in %, the largest norm over the median)."""
    norm_BxP = np.asarray(subject.patch_norms(), np.float64)
    median, largest = float(np.median(norm_BxP)), float(norm_BxP.max())
    return 100 * subject.outliers(rule).share, largest / median if median > 0 else None


def newest_steps(found: Found, key: Callable[[Rows], tuple[str, int, int]]) -> list[Rows]:
    """The last step of each run, by the number of registers; `key` is (run, step, registers)."""
    newest = {key(one)[0]: one for one in sorted(found, key=lambda one: key(one)[1])}
    return sorted(newest.values(), key=lambda one: key(one)[2])


def _measure(subject: Subject, options: Options) -> Rows:
    norm_BxP = subject.patch_norms()
    share, ratio = outlier_share(subject, options.rule)
    registers, summaries = subject.layout.num_registers, subject.layout.num_summaries
    extra = f"{counted(registers, 'register')}" + (f", summaries ({summaries})" if summaries else "")
    return Rows(
        tables={"Outliers by registers": [(subject.step, registers, summaries, share, ratio)]},
        text=f"{number(share, '%')} of {norm_BxP.size:,} patches are outliers by {options.rule} ({extra}), "
        f"and the largest norm is {number(ratio)} of the median",
        compared=share,
        count=counted(len(norm_BxP), "image"),
        values=(str(subject.run or subject.name), subject.step or 0, registers, share),
    )


def _across(found: Found) -> list[str]:
    counts = {one.values[2] for one in found}
    is_one = found and len(counts) < 2
    all_have = f"all models have {counted(min(counts), 'register')}" if is_one else ""
    return [f"{all_have}; give runs with other numbers of registers with --checkpoint"] if is_one else []


def _draw(found: Found) -> Pictures:
    counts = sorted({one.values[2] for one in found})
    if len(counts) < 2:
        return
    figure, axes = new_axes()
    means = [np.mean([one.values[3] for one in found if one.values[2] == count]) for count in counts]
    axes.plot(counts, means, "-", color="0.6", lw=1.0, zorder=1)
    for one in found:
        label = legend_name(one.name)
        axes.plot(one.values[2], one.values[3], "o", ms=5, color=color_of(one.place), label=label)
    axes.set(xlabel="registers", ylabel="patches that are outliers, %", ylim=(0.0, None))
    integer_ticks(axes)
    axes.grid(alpha=0.3)
    legend_above(axes)
    caption = (
        "Share of outliers by the number of registers; a point for each model, at the last step of a run. "
        "Line: the mean of the models with that number."
    )
    yield Picture(name="outliers-by-registers", caption=caption, figure=figure)


EXPERIMENT = Experiment(
    question="Do registers remove outliers, and how many does it take?",
    answers=f"{REGISTERS}, figures 7 and 8",
    definition="The share of patches that the rule flags, by their L2 norm after the last block, before the "
    "final norm; the rule is applied to each model by itself. Of several steps of a run the last is used. A "
    "rule that is relative to the model (std, quantile) flags some patches of every model: compare also the "
    "largest norm over the median.",
    tables={
        "Outliers by registers": "model | step | registers | summaries | {rule}, % | largest norm / median"
    },
    measure=_measure,
    features=("norms_LxT",),
    draw=_draw,
    arrange=lambda found: newest_steps(found, lambda one: one.values[:3]),
    across=_across,
    compares="share of outliers, %",
)
