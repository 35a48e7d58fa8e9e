"""register-neurons: which neurons make outliers (arXiv:2506.08010, algorithm 1), and in which block."""

import numpy as np
from matplotlib.axes import Axes

from vit_registers.analysis.experiments.edited_models import BASE, RegisterNeurons, find_neurons, run_unedited
from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.features.interventions import Intervention, nothing
from vit_registers.analysis.options import Options
from vit_registers.analysis.report import figures
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number, percent
from vit_registers.analysis.report.tiles import tiles
from vit_registers.analysis.subject import Subject
from vit_registers.strict_json import dumps

_LISTED, _FILED, _DRAWN = 15, 200, 3  # neurons in the table, in the file, in the picture


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    found = find_neurons(subject, options)
    if found is None:
        return Gap(f"{subject.name}: no outliers by {options.rule}")
    layers = _layers(subject, options)
    neurons = []
    for block, neuron in found.neuron_Ex2[:_LISTED].tolist():
        others = None if found.others_LxF is None else float(found.others_LxF[block, neuron])
        neurons.append((block + 1, neuron, float(found.score_LxF[block, neuron]), others, found.num_images))
    block, neuron, on, off, _ = neurons[0]
    file = {
        "model": subject.name,
        "rule": options.rule,
        "threshold": found.threshold,
        "images": found.num_images,
        "last_block": found.last_block,
        "neurons": [
            {"block": block, "neuron": neuron, "score": float(found.score_LxF[block, neuron])}
            for block, neuron in found.neuron_Ex2[:_FILED].tolist()
        ],
    }
    return Rows(
        tables={
            "Register neurons": neurons,
            "Largest patch by layer": [
                (i, middle, after, percent(attention))
                for i, (middle, after, attention) in enumerate(zip(*layers[1:], strict=True), 1)
            ],
        },
        text=f"outliers begin in block {found.last_block + 1}; neuron {neuron} of block {block} is most "
        f"active on them, {number(on)} against {number(off)} on other patches",
        compared=found.last_block + 1,
        count=f"{counted(found.num_images, 'image')} with outliers",
        values=(found.last_block, layers, _maps(subject, options, found)),
        files={f"neurons-{subject.name}.json": dumps(file) + "\n"},
    )


def _layers(subject: Subject, options: Options) -> tuple[float, list, list, list]:
    """The largest patch norm of an image, mean over images: before the first block, after each attention and
    after each MLP; and the largest attention of cls to a patch in each block."""

    def means(values_BxL: np.ndarray) -> list[float]:
        return [float(x) for x in values_BxL.mean(0, dtype=np.float64)]

    has_cls, patches = subject.layout.has_cls, subject.layout.patches
    names = ("norms_LxT", "middle_norms_LxT", *(["cls_attention_L"] if has_cls else []))
    store = run_unedited(subject, names, options)
    first, *after = means(store.read("norms_LxT")[..., patches].max(-1))
    middle = means(store.read("middle_norms_LxT")[..., patches].max(-1))
    return first, middle, after, means(store.read("cls_attention_L")) if has_cls else [None] * len(middle)


def _maps(subject: Subject, options: Options, found: RegisterNeurons) -> tuple:
    """(images, maps, titles): norms and activations of the first neurons, on images that have outliers."""
    shown = np.flatnonzero(found.is_outlier_BxP.any(1))[: options.num_examples]
    neurons = found.neuron_Ex2[:_DRAWN]
    values = {"neuron_Ex2": neurons.astype(np.int32)}
    intervention = Intervention(name="maps", edits=nothing, values=values, rows={})
    store = subject.rerun(intervention, ("neuron_maps_ExP",), options.num_edited)
    norms = subject.store.read("norms_LxT")[shown][:, -1, subject.layout.patches]
    maps = np.concatenate([norms[:, None], store.read("neuron_maps_ExP")[shown]], axis=1)
    titles = ["norm", *(f"block {block + 1}, neuron {neuron}" for block, neuron in neurons)]
    images = subject.store.read("image_HxWxC")[shown]
    return images, maps.reshape(*maps.shape[:2], *subject.layout.patch_grid), titles


def _draw(found: Found) -> Pictures:
    caption = (
        "Largest norm of a patch of an image after each MLP (line) and each attention (crosses), mean over "
        "images."
    )
    yield Picture(name="layers", caption=caption, figure=figures.overlay(found, _norm_lines))
    if any(None not in one.values[1][3] for one in found):
        caption = "Largest attention of cls to a patch in each block, mean over images."
        yield Picture(name="attention", caption=caption, figure=figures.overlay(found, _attention_lines))
    for one in found:
        images, maps_BxMxHxW, titles = one.values[2]
        largest = maps_BxMxHxW.max(axis=(0, 2, 3))
        scaled = maps_BxMxHxW / np.where(largest > 0, largest, 1.0)[None, :, None, None]
        names = [f"{title}, up to {number(float(top))}" for title, top in zip(titles, largest, strict=True)]
        caption = f"{one.name}: norms of patches, and the activations of the neurons highest on outliers."
        figure = tiles(
            [list(images), *[[None] * len(images)] * len(names)],
            [[None] * len(images), *(list(scaled[:, i]) for i in range(len(names)))],
            rows=("image", *names),
            limits=(float(min(scaled.min(), 0.0)), 1.0),
            label="value / largest of the row",
        )
        yield Picture(name=f"maps-{one.name}", caption=caption, figure=figure)


def _norm_lines(axes: Axes, values: tuple, color: str, name: str) -> None:
    first, middle, after, _ = values[1]
    axes.plot(
        range(len(after) + 1), [first, *after], "o-", ms=3, color=color, label=figures.legend_name(name)
    )
    axes.plot(np.arange(1, len(middle) + 1) - 0.5, middle, "x", ms=4, color=color)
    axes.set(xlabel="block", ylabel="largest norm of a patch")
    figures.plain_log(axes.yaxis)
    figures.integer_ticks(axes)


def _attention_lines(axes: Axes, values: tuple, color: str, name: str) -> None:
    attention = values[1][3]
    if None not in attention:
        share_L = 100 * np.array(attention, float)
        label = figures.legend_name(name)
        axes.plot(np.arange(1, len(share_L) + 1), share_L, "s-", ms=3, color=color, label=label)
    axes.set(xlabel="block", ylabel="largest attention of cls, %")
    axes.set_ylim(bottom=0)
    figures.integer_ticks(axes)


EXPERIMENT = Experiment(
    question="Which neurons make outliers, and in which block?",
    answers="arXiv:2506.08010, figures 2, 3 and 19, algorithm 1",
    definition=lambda options: (
        "For each hidden unit of each MLP, after the activation: the mean size on an "
        "image's outliers (by the rule, after the last block), mean over the images that have any, among the "
        f"first {options.num_edited}. Units up to the block where outliers begin: the first that leaves more "
        "than half of them above the rule's threshold. Blocks count from 1, neurons from 0."
    ),
    tables={
        "Register neurons": "model | block | neuron | on outliers | on other patches | images",
        "Largest patch by layer": "model | block | norm after attention | after the MLP"
        " | attention of cls, %",
    },
    measure=_measure,
    runs_model=True,
    features=BASE,
    draw=_draw,
    compares="block in which outliers begin",
)
