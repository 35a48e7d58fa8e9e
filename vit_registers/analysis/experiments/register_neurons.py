"""Which neurons make outliers (arXiv:2506.08010, algorithm 1), and in which block."""

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.experiments import edited_models
from vit_registers.analysis.experiments.neuron_search import Found, find_neurons
from vit_registers.analysis.features.interventions import Intervention, nothing
from vit_registers.analysis.report.figures import BLUE, GREEN, GREY, ORANGE, scale_for
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject
from vit_registers.strict_json import dumps

_LISTED, _FILED, _DRAWN = 15, 200, 3  # neurons in the table, in the file, in the picture


def register_neurons(subjects: list[Subject], options: Options) -> Result:
    """The neurons most active on outliers, norms and attention by layer, and maps of the neurons."""
    result = Result(
        definition="For each hidden unit of each MLP, after the activation: the mean size on an image's "
        "outliers (by the rule, after the last block), mean over the images that have any, among the first "
        f"{options.num_edited}. Units up to the block where outliers begin: the first that leaves more than "
        "half of them above the rule's threshold. Blocks count from 1, neurons "
        "from 0."
    )
    rows, curves = [], []
    for subject in subjects:
        found = find_neurons(subject, options)
        if found is None:
            result.gaps.append(f"{subject.name}: no outliers by {options.rule}")
            continue
        rows += [(subject.name, *_row(found, at)) for at in found.neuron_Ex2[:_LISTED]]
        result.files[f"neurons-{subject.name}.json"] = _listed(subject, options, found)
        layers, figure = _curves(subject, options)
        curves += [(subject.name, *layer) for layer in layers]
        result.pictures += [
            Picture(
                name=f"layers-{subject.name}",
                caption=f"{subject.name}: largest patch norm of an image after each attention and each MLP, "
                f"and largest attention of cls to a patch, mean over images. Outliers begin in block "
                f"{found.last_block + 1}.",
                figure=figure,
            ),
            _maps(subject, options, found),
        ]
    if rows:
        columns = ("model", "block", "neuron", "on outliers", "on other patches", "images")
        result.tables.append(Table(title="Register neurons", columns=columns, rows=rows))
        columns = ("model", "block", "norm after attention", "after the MLP", "attention of cls")
        result.tables.append(Table(title="Largest patch by layer", columns=columns, rows=curves))
    return result


def _row(found: Found, at: np.ndarray) -> tuple:
    block, neuron = map(int, at)
    others = None if found.others_LxF is None else float(found.others_LxF[block, neuron])
    return block + 1, neuron, float(found.score_LxF[block, neuron]), others, found.num_images


def _listed(subject: Subject, options: Options, found: Found) -> str:
    """The file of neurons: JSON, blocks from 0."""
    neurons = [
        {"block": int(block), "neuron": int(neuron), "score": float(found.score_LxF[block, neuron])}
        for block, neuron in found.neuron_Ex2[:_FILED]
    ]
    about = {
        "model": subject.name,
        "rule": options.rule,
        "threshold": found.threshold,
        "images": found.num_images,
        "last_block": found.last_block,
        "neurons": neurons,
    }
    return dumps(about) + "\n"


def _curves(subject: Subject, options: Options) -> tuple[list[tuple], Figure]:
    """(block, norm after attention, after the MLP, attention of cls) of each block, and the picture."""
    has_cls = subject.layout.has_cls
    names = ("norms_LxT", "middle_norms_LxT", *(["cls_attention_L"] if has_cls else []))
    store = edited_models.as_it_is(subject, options, names)
    patches = subject.layout.patches
    after_L = store.read("norms_LxT")[..., patches].max(-1).mean(0, dtype=np.float64)
    middle_L = store.read("middle_norms_LxT")[..., patches].max(-1).mean(0, dtype=np.float64)
    attention_L = store.read("cls_attention_L").mean(0, dtype=np.float64) if has_cls else None
    rows = [
        (
            i + 1,
            float(middle_L[i]),
            float(after_L[i + 1]),
            None if attention_L is None else float(attention_L[i]),
        )
        for i in range(len(middle_L))
    ]
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes, block = figure.subplots(), np.arange(1, len(middle_L) + 1)
    axes.plot(np.arange(len(after_L)), after_L, "o-", ms=3, color=BLUE, label="after the MLP")
    axes.plot(block - 0.5, middle_L, "o", ms=3, color=GREEN, label="after attention")
    axes.set(xlabel="block", ylabel="largest norm of a patch", yscale=scale_for(after_L), title=subject.name)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    if attention_L is not None:
        other = axes.twinx()
        other.plot(block, attention_L, "s--", ms=3, color=ORANGE)
        other.set_ylabel("largest attention of cls", color=ORANGE)
        other.set_ylim(bottom=0)
    return rows, figure


def _maps(subject: Subject, options: Options, found: Found) -> Picture:
    """Norms and the activations of the first neurons on the images that have outliers."""
    shown = np.flatnonzero(found.is_outlier_BxP.any(1))[: options.num_examples]
    neurons = found.neuron_Ex2[:_DRAWN]
    intervention = Intervention(
        name="maps", edits=nothing, values={"neuron_Ex2": neurons.astype(np.int32)}, rows={}
    )
    store = edited_models.run(subject, options, intervention, ("neuron_maps_ExP",))
    norms = subject.store.read("norms_LxT")[shown][:, -1, subject.layout.patches]
    maps = np.concatenate([norms[:, None], store.read("neuron_maps_ExP")[shown]], axis=1)
    titles = ["norm", *(f"block {block + 1}, neuron {neuron}" for block, neuron in neurons)]
    figure = Figure(figsize=(1.8 * (len(titles) + 1) + 0.3, 1.8 * len(shown) + 0.3), layout="constrained")
    grid = figure.subplots(len(shown), len(titles) + 1, squeeze=False)
    for row, image, values in zip(grid, subject.store.read("image_HxWxC")[shown], maps, strict=True):
        row[0].imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        for axes, map_P in zip(row[1:], values, strict=True):
            axes.imshow(map_P.reshape(subject.layout.patch_grid), cmap="inferno")
        for axes in row:
            axes.set(xticks=[], yticks=[])
    for axes, title in zip(grid[0][1:], titles, strict=True):
        axes.set_title(title, fontsize=8, color=GREY)
    return Picture(
        name=f"maps-{subject.name}",
        caption=f"{subject.name}: norms of patches, and the activations of the neurons highest on outliers.",
        figure=figure,
    )
