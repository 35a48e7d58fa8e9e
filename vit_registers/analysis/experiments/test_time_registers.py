"""test-time-registers: register neurons moved to a register that was never trained."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.experiments import edited_models
from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.experiments.neuron_moves import (
    GONE,
    OUTCOME,
    Outcome,
    Trial,
    chosen_count,
    outliers_clause,
    start_trial,
    sweep_counts,
)
from vit_registers.analysis.features.store import Store
from vit_registers.analysis.measures.neurons import random_like
from vit_registers.analysis.report.figures import BLUE, GREY, ORANGE, draw_norms
from vit_registers.analysis.report.finding import counted, percent
from vit_registers.analysis.report.panels import images_and_maps
from vit_registers.analysis.report.result import Gap, Picture, Rows
from vit_registers.analysis.subject import Options, Subject
from vit_registers.models.blocks import dims

_SEED = 0
_UNEDITED = "as it is"  # in the table: the model without an edit


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    trial = start_trial(subject, options)
    if isinstance(trial, Gap):
        return trial
    outcomes = sweep_counts(trial)
    count = chosen_count(outcomes)
    variants, stores = _variants(trial, count)
    moved = f"{count} neurons to a register"
    before, after = stores[_UNEDITED], stores[moved]
    return Rows(
        tables={
            "Test-time registers": [(subject.name, name, *one.cells()) for name, one in variants.items()],
            "Number of neurons": [(subject.name, tried, *one.cells()) for tried, one in outcomes],
        },
        text=outliers_clause(
            variants[_UNEDITED], variants[moved], f"moving {counted(count, 'neuron')} to a register"
        ),
        compared=percent(variants[moved].share),
        count=counted(trial.num_images, "image"),
        values=(count, _norms(trial, before, after), _maps(trial, before, after)),
    )


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
    before = edited_models.unedited(trial.subject, trial.options, trial.names)
    nobody = np.zeros((trial.num_images, layout.num_tokens), bool)
    outcomes, stores = {_UNEDITED: trial.outcome(before, nobody, 0)}, {_UNEDITED: before}
    for name, moved in moves.items():
        stores[name], outcomes[name] = trial.measure(moved)
    return outcomes, stores


def _norms(trial: Trial, before: Store, after: Store) -> tuple[dict[str, tuple[np.ndarray, str]], float]:
    """(norms and colours by label, threshold) of the histogram of norms after the last block."""
    layout = trial.layout(1)
    old, new = (store.read("norms_LxT")[:, -1] for store in (before, after))
    return {
        "patches, unedited": (old[:, trial.subject.layout.patches], GREY),
        "patches, with the register": (new[:, layout.patches], BLUE),
        "the register": (new[:, layout.registers.stop - 1], ORANGE),
    }, trial.found.threshold


def _maps(trial: Trial, before: Store, after: Store) -> tuple[np.ndarray, list[list[np.ndarray]]] | None:
    """(images, maps) of the attention of cls to the patches before and after; None for models without cls."""
    if not trial.subject.layout.has_cls:
        return None
    shown = np.flatnonzero(trial.found.is_outlier_BxP.any(1))[: trial.options.num_examples]
    maps = []
    for image in shown:
        maps.append([])
        for store, layout in ((before, trial.subject.layout), (after, trial.layout(1))):
            weights_T = store.read("attention_NxExT")[image, :, 0].mean(0)
            maps[-1].append(weights_T[layout.patches].reshape(layout.patch_grid))
    return trial.subject.store.read("image_HxWxC")[shown], maps


def _draw(found: Sequence[Rows]) -> list[Picture]:
    pictures = []
    for one in found:
        count, (groups, threshold), maps = one.values
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.subplots()
        norms = np.concatenate([norms.ravel() for norms, _ in groups.values()])
        draw_norms(axes, norms, groups, threshold=threshold, threshold_label="threshold")
        axes.set_title(one.name)
        caption = (
            f"{one.name}: norms after the last block, unedited and with {count} neurons moved to a register."
        )
        pictures.append(Picture(name=f"norms-{one.name}", caption=caption, figure=figure))
        if maps is not None:
            caption = (
                f"{one.name}: attention of cls in the unedited model, and with a test-time register; each "
                "map has its own scale."
            )
            titles = ("unedited", "test-time register")
            figure = images_and_maps(maps[0], maps[1], titles, limits=(0, None))
            pictures.append(Picture(name=f"maps-{one.name}", caption=caption, figure=figure))
    return pictures


EXPERIMENT = Experiment(
    question="Can outliers be moved to a register that was never trained?",
    answers="arXiv:2506.08010, figures 4 and 22 to 24, tables 7, 8 and 10, algorithm 2",
    definition=lambda options: (
        "The neurons of register-neurons are taken from all tokens and given to added "
        "registers of zeros, whose activation becomes the largest over the tokens. Neurons are added, "
        f"highest score first, until at most {GONE:.0%} of the outliers are left above the threshold of the "
        "unedited model. 'As released': cls keeps its activations, and all neurons of a block give one "
        "value, the one of largest size. Controls: a register and nothing moved, random neurons of the same "
        "blocks, neurons silent, neurons moved to one random patch. On the first "
        f"{options.num_edited} images."
    ),
    tables={
        "Test-time registers": f"model | variant | {OUTCOME}",
        "Number of neurons": f"model | neurons | {OUTCOME}",
    },
    measure=_measure,
    features=edited_models.BASE,
    draw=_draw,
    compares="share of patches above the threshold with the register, %",
)
