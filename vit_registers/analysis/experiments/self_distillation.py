"""self-distillation: the terms of the loss and the monitors of collapse over a run."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from vit_registers.analysis.experiments.curves import Metrics, RunValues, one_per_run, series, smoothed
from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.options import Options
from vit_registers.analysis.report import figures
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject
from vit_registers.config import SelfDistillationSettings, from_saved
from vit_registers.errors import UserError
from vit_registers.models.blocks import dims
from vit_registers.runs.metrics_log import read_records
from vit_registers.storage.files import read_json_object

_TERMS = {"dino_local": "DINO, local", "dino_global": "DINO, global", "ibot": "iBOT", "koleo": "KoLeo"}
_TARGETS = {"entropy": "entropy of targets", "used": "prototypes in use"}  # in % of a uniform output
_SPREAD = {"std": "standard deviation", "distance": "distance to the nearest"}
_LOGGED = (*_TERMS, "teacher_entropy", "prototypes_used", "feature_std")
_LEAST_STD = 0.1  # of that over a sphere; below it features have collapsed
_ENTROPIES = (1.0, 99.9)  # % of that of a uniform output; outside, targets have collapsed
_FINE = "no sign of collapse"


class _Curve(NamedTuple):
    """A curve of a run; `uniform` is its value for uniform outputs, or features spread over a sphere."""

    step_N: np.ndarray
    value_N: np.ndarray
    uniform: float | None


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    if subject.run is None:
        return Gap(f"{subject.name}: not a run, so that its training is not known")
    try:
        saved = read_json_object(subject.run / "config.json")
        config = None if saved is None else from_saved(saved)
        records, damage = read_records(subject.run)
    except UserError as error:
        return Gap(f"{subject.name}: {error}")
    if config is None or not records:
        return Gap(f"{subject.name}: no metrics.jsonl or config.json: it is not a run, or a converted one")
    objective, metrics = config.objective.name, series(records)
    if objective != "self_distillation":
        return Gap(f"{subject.name}: objective.name='{objective}' has no teacher and no prototypes")
    if lacking := [name for name in _LOGGED if f"train/{name}" not in metrics]:
        return Gap(f"{subject.name}: its metrics.jsonl has no {', '.join(lacking)}")
    curves = _curves(metrics, config.objective.self_distillation, dims(config.model).width)
    ends = {name: float(smoothed(curve.value_N)[-1]) for name, curve in curves.items()}
    verdict = _verdict(ends)
    gaps = [] if damage is None else [f"{subject.name}: {damage}"]
    if "distance" not in curves:
        gaps.append(f"{subject.name}: koleo_weight is 0, so that distances were not logged")
    return Rows(
        tables={"Loss and monitors": [_row(name, curve) for name, curve in curves.items()]},
        text=f"{verdict}: the entropy of the targets ends at {number(ends['entropy'], '%')} of that of "
        f"uniform ones, {number(ends['used'], '%')} of the prototypes are in use, and the standard deviation "
        f"of features is {number(100 * ends['std'], '%')} of that over a sphere",
        compared=ends["used"],
        count=counted(len(curves["dino_global"].step_N), "logged step"),
        values=RunValues(subject.run, curves),
        gaps=gaps,
        remark="" if verdict == _FINE else verdict,
    )


def _curves(metrics: Metrics, settings: SelfDistillationSettings, width: int) -> dict[str, _Curve]:
    """The terms of the loss and the monitors, by name."""
    dino, ibot = math.log(settings.num_prototypes), math.log(settings.num_prototypes)
    if settings.has_ibot_head:
        ibot = math.log(settings.ibot_prototypes)
    local = settings.num_locals / (settings.num_locals + 1)  # of the pairs of crops
    uniform = {
        "dino_local": settings.dino_weight * local * dino,
        "dino_global": settings.dino_weight * (1 - local) * dino,
        "ibot": settings.ibot_weight * settings.mask_share * ibot,
        "koleo": None,
    }
    found = {name: _Curve(*metrics[f"train/{name}"], uniform[name]) for name in _TERMS}
    scales = {
        "entropy": ("teacher_entropy", 100 / dino, 100.0),
        "used": ("prototypes_used", 100 / settings.num_prototypes, 100.0),
        "std": ("feature_std", math.sqrt(width), 1.0),
    }
    for name, (metric, factor, uniform_value) in scales.items():
        step_N, value_N = metrics[f"train/{metric}"]
        found[name] = _Curve(step_N, factor * value_N, uniform_value)
    if settings.koleo_weight:
        # KoLeo is the sum over two views of the mean of -log(distance).
        step_N, value_N = metrics["train/koleo"]
        found["distance"] = _Curve(step_N, np.exp(-value_N / (2 * settings.koleo_weight)), None)
    return found


def _verdict(ends: Mapping[str, float]) -> str:
    """What the last values say about collapse."""
    low, high = _ENTROPIES
    if not all(map(math.isfinite, ends.values())):
        return "values are not finite"
    if ends["std"] < _LEAST_STD:
        return "features have collapsed to one vector"
    if ends["entropy"] < low and ends["used"] < 100 * 0.05:
        return "targets have collapsed to few prototypes"
    return "targets are uniform" if ends["entropy"] > high else _FINE


def _row(name: str, curve: _Curve) -> tuple[str, float, float, int, float | None]:
    label = (_TERMS | _TARGETS | _SPREAD)[name] + (", %" if name in _TARGETS else "")
    mean_N = smoothed(curve.value_N)
    return label, float(mean_N[0]), float(mean_N[-1]), int(curve.step_N[-1]), curve.uniform


def _draw(found: Found) -> Pictures:
    panels: dict[str, tuple[Mapping[str, str], str, str]] = {
        "terms": (
            {name: label for name, label in _TERMS.items() if name != "koleo"},
            "% of a uniform output",
            "The cross-entropies of the loss in % of those of uniform outputs; KoLeo is in the last picture.",
        ),
        "targets": (
            _TARGETS,
            "% of a uniform output",
            "The teacher's targets: the mean entropy of one, and the exponential of the entropy of their "
            "mean, which is the number of prototypes in use. Entropy near 0 or 100 % is collapse.",
        ),
        "spread": (
            _SPREAD,
            "spread of unit cls",
            "Spread of the teacher's unit cls vectors in a batch: standard deviation over that over a sphere "
            "(0: collapse), and the geometric mean of the student's distance to the nearest other image of a "
            "group (KoLeo).",
        ),
    }
    for name, (labels, ylabel, caption) in panels.items():
        figure, axes = figures.new_axes()
        for one in found:
            _plot(axes, one, labels)
        axes.set(xlabel="step", ylabel=ylabel)
        axes.grid(alpha=0.3)
        figures.legend_above(axes)
        caption += " Means over 10 % of the run around each step."
        yield Picture(name=name, caption=caption, figure=figure, is_headline=name == "targets")


def _plot(axes: Axes, one: Rows, labels: Mapping[str, str]) -> None:
    for style, (name, label) in zip(figures.STYLES, labels.items(), strict=False):
        if (curve := one.values.shown.get(name)) is not None:
            text = figures.legend_name(f"{one.name}: {label}")
            color = figures.color_of(one.place)
            scale = 100 / curve.uniform if name in _TERMS and curve.uniform else 1.0
            axes.plot(curve.step_N, scale * smoothed(curve.value_N), style, color=color, lw=1.3, label=text)


EXPERIMENT = Experiment(
    question="How did self-distillation go: which terms of the loss fall, and does anything collapse?",
    answers="the runs' own metrics; arXiv:2304.07193",
    definition="Values of single training batches from metrics.jsonl, as means over 10 % of the run around "
    "the first and the last step. Uniform: the value of a cross-entropy or an entropy for uniform outputs, "
    "and of the standard deviation for features over a sphere. Entropies are of the teacher's targets of "
    "cls; prototypes in use are the exponential of the entropy of their mean over a batch. The distance is "
    "exp(-KoLeo).",
    tables={"Loss and monitors": "model | value | at the start | at the end | last step | uniform"},
    measure=_measure,
    draw=_draw,
    arrange=one_per_run,
    compares="share of prototypes in use, %",
)
