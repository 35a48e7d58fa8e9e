"""Registers without training: register neurons moved to a token that was added."""

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.experiments import edited_models
from vit_registers.analysis.experiments.neuron_moves import (
    GONE,
    OUTCOME,
    Outcome,
    Trial,
    begin,
    chosen_count,
    sweep,
)
from vit_registers.analysis.features.store import Store
from vit_registers.analysis.measures.neurons import random_like
from vit_registers.analysis.report.figures import BLUE, GREY, ORANGE, scale_for
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject
from vit_registers.models.blocks import dims

_SEED = 0


def test_time_registers(subjects: list[Subject], options: Options) -> Result:
    """Outliers before and after, how many neurons it takes, and controls."""
    result = Result(
        definition="The neurons of register-neurons are taken from all tokens and given to added registers "
        "of zeros, whose activation becomes the largest over the tokens. Neurons are added, highest score "
        f"first, until at most {GONE:.0%} of the outliers are left above the threshold of the model as "
        "it is. 'As released': cls keeps its activations, and all neurons of a block give one value, the one "
        "of largest size. Controls: a register and nothing moved, random neurons of the same blocks, neurons "
        f"silent, neurons moved to one random patch. On the first {options.num_edited} images."
    )
    rows, counts = [], []
    for subject in subjects:
        trial = begin(subject, options)
        if trial is None:
            result.gaps.append(f"{subject.name}: no outliers by {options.rule}")
            continue
        if subject.model.pooling == "cls_registers":
            result.gaps.append(f"{subject.name}: its head reads the registers, so that none can be added")
            continue
        outcomes = sweep(trial)
        counts += [(subject.name, count, *outcome.cells()) for count, outcome in outcomes]
        count = chosen_count(outcomes)
        found, stores = _variants(trial, count)
        rows += [(subject.name, name, *outcome.cells()) for name, outcome in found.items()]
        result.pictures += _pictures(trial, stores, count)
    if rows:
        result.tables += [
            Table(title="Test-time registers", columns=("model", "variant", *OUTCOME), rows=rows),
            Table(title="Number of neurons", columns=("model", "neurons", *OUTCOME), rows=counts),
        ]
    return result


def _variants(trial: Trial, count: int) -> tuple[dict[str, Outcome], dict[str, Store]]:
    found, neuron_Ex2 = trial.found, trial.found.neuron_Ex2[:count]
    rng = np.random.default_rng(_SEED)
    other_Ex2 = random_like(neuron_Ex2, found.score_LxF.shape[1], seed=_SEED)
    width, layout = dims(trial.subject.model).width, trial.subject.layout
    norm_BxP = trial.subject.store.read("norms_LxT")[: trial.num_images, 0, layout.patches]
    start_D = rng.normal(size=width) * np.median(norm_BxP) / np.sqrt(width)  # as large as a patch
    patch_B = rng.integers(layout.num_patches, size=trial.num_images)
    is_patch_BxP = np.arange(layout.num_patches) == patch_B[:, None]
    none = neuron_Ex2[:0]
    moves = {
        "a register, nothing moved": trial.moved(none),
        f"{count} neurons to a register": trial.moved(neuron_Ex2),
        "to 4 registers": trial.moved(neuron_Ex2, num_registers=4),
        "as released": trial.moved(neuron_Ex2, use_layer_max=True),
        "register begins random": trial.moved(neuron_Ex2, start_D=start_D),
        "register begins as mean patch": trial.moved(neuron_Ex2, use_mean_start=True),
        "random neurons to a register": trial.moved(other_Ex2),
        "neurons silent": trial.moved(neuron_Ex2, num_registers=0),
        "neurons to a random patch": trial.moved(neuron_Ex2, num_registers=0, is_target_BxP=is_patch_BxP),
    }
    before = edited_models.as_it_is(trial.subject, trial.options, trial.names)
    nobody = np.zeros((trial.num_images, layout.num_tokens), bool)
    outcomes, stores = {"as it is": trial.outcome(before, nobody, 0)}, {"as it is": before}
    for name, moved in moves.items():
        stores[name], outcomes[name] = trial.measure(moved)
    return outcomes, stores


def _pictures(trial: Trial, stores: dict[str, Store], count: int) -> list[Picture]:
    name = trial.subject.name
    before, after = stores["as it is"], stores[f"{count} neurons to a register"]
    pictures = [
        Picture(
            name=f"norms-{name}",
            caption=f"{name}: norms after the last block, as it is and with {count} neurons moved to a "
            "register.",
            figure=_histogram(trial, before, after),
        )
    ]
    if trial.subject.layout.has_cls:
        caption = f"{name}: attention of cls as it is, and with a test-time register; each map by itself."
        pictures.append(
            Picture(name=f"maps-{name}", caption=caption, figure=_attention(trial, before, after))
        )
    return pictures


def _histogram(trial: Trial, before: Store, after: Store) -> Figure:
    layout = trial.layout(1)
    old, new = (store.read("norms_LxT")[:, -1] for store in (before, after))
    groups = {
        "patches, as it is": (old[:, trial.subject.layout.patches], GREY),
        "patches, with the register": (new[:, layout.patches], BLUE),
        "the register": (new[:, layout.registers.stop - 1], ORANGE),
    }
    values = np.concatenate([norms.ravel() for norms, _ in groups.values()])
    positive = values[values > 0]
    edges = np.geomspace(positive.min(), positive.max() * 1.0001, 80) if len(positive) else 1
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for label, (norms, color) in groups.items():
        axes.hist(norms.ravel(), bins=edges, histtype="step", color=color, label=label)
    axes.axvline(trial.found.threshold, color=GREY, lw=0.9, ls="--", label="threshold")
    axes.set(xscale=scale_for(values), yscale="log", xlabel="norm", ylabel="tokens", title=trial.subject.name)
    axes.legend(frameon=False, fontsize=7)
    return figure


def _attention(trial: Trial, before: Store, after: Store) -> Figure:
    shown = np.flatnonzero(trial.found.is_outlier_BxP.any(1))[: trial.options.num_examples]
    figure = Figure(figsize=(5.4, 1.75 * len(shown) + 0.3), layout="constrained")
    grid = figure.subplots(len(shown), 3, squeeze=False)
    layouts = (trial.subject.layout, trial.layout(1))
    for row, image in zip(grid, shown, strict=True):
        picture = trial.subject.store.read("image_HxWxC")[image]
        row[0].imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
        for axes, store, layout in zip(row[1:], (before, after), layouts, strict=True):
            weights_T = store.read("attention_NxExT")[image, :, 0].mean(0)
            axes.imshow(weights_T[layout.patches].reshape(layout.patch_grid), cmap="inferno", vmin=0)
        for axes in row:
            axes.set(xticks=[], yticks=[])
    for axes, title in zip(grid[0], ("image", "as it is", "test-time register"), strict=True):
        axes.set_title(title, fontsize=9)
    return figure
