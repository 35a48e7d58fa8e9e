"""test-time-registers: register neurons moved to a register that was never trained."""

import numpy as np

from vit_registers.analysis.experiments import edited_models
from vit_registers.analysis.experiments.edited_models import GONE, OUTCOME, Outcome, Trial
from vit_registers.analysis.experiments.experiment import Experiment, few
from vit_registers.analysis.features.interventions import NO_INTERVENTION
from vit_registers.analysis.features.store import Store
from vit_registers.analysis.measures.neurons import random_like
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.colors import BLUE, GREY, ORANGE
from vit_registers.analysis.report.figures import draw_norms, legend_above, new_axes
from vit_registers.analysis.report.headline import over_images
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, percent
from vit_registers.analysis.report.tiles import tiles
from vit_registers.analysis.subject import Subject
from vit_registers.models.blocks import dims

_SEED = 0


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    trial = edited_models.start_trial(subject, options)
    if isinstance(trial, Gap):
        return trial
    outcomes, count = trial.sweep_counts()
    variants, stores = _variants(trial, count)
    moved = f"{count} neurons to a register"
    what, layout = f"moving {counted(count, 'neuron')} to a register", trial.layout(1)
    old, new = (store.read("norms_LxT")[:, -1] for store in (trial.before, stores[moved]))
    norms = {
        "patches, unedited": (old[:, subject.layout.patches], GREY),
        "patches, with the register": (new[:, layout.patches], BLUE),
        "the register": (new[:, layout.registers.stop - 1], ORANGE),
    }
    return Rows(
        tables={
            "Test-time registers": [(name, *one.cells()) for name, one in variants.items()],
            "Number of neurons": [(tried, *one.cells()) for tried, one in outcomes.items()],
        },
        text=edited_models.outliers_clause(variants[edited_models.UNEDITED], variants[moved], what),
        compared=percent(variants[moved].share),
        count=counted(trial.num_images, "image"),
        values=(count, norms, trial.found.threshold, _maps(trial, stores[moved])),
        headlines=[
            over_images(
                f"outliers {when}, % of patches",
                100 * np.mean(norms[key][0] > trial.found.threshold, axis=1),
            )
            for when, key in (
                ("in the first images", "patches, unedited"),
                ("there with a test-time register", "patches, with the register"),
            )
        ],
        cautions=few(subject.name, int(trial.found.is_outlier_BxP.sum()), "outlier"),
    )


def _variants(trial: Trial, count: int) -> tuple[dict[str, Outcome], dict[str, Store]]:
    rng, neuron_Ex2 = np.random.default_rng(_SEED), trial.found.neuron_Ex2[:count]
    other_Ex2 = random_like(neuron_Ex2, trial.found.score_LxF.shape[1], seed=_SEED)
    width, layout = dims(trial.subject.model).width, trial.subject.layout
    norm_BxP = trial.subject.store.read("norms_LxT")[: trial.num_images, 0, layout.patches]
    start_D = rng.normal(size=width) * np.median(norm_BxP) / np.sqrt(width)  # as large as a patch
    patch_B = rng.integers(layout.num_patches, size=trial.num_images)
    is_patch_BxP = np.arange(layout.num_patches) == patch_B[:, None]
    moves = {
        "a register, nothing moved": trial.moved(neuron_Ex2[:0]),
        f"{count} neurons to a register": trial.moved(neuron_Ex2),
        "to 4 registers": trial.moved(neuron_Ex2, num_registers=4),
        "as released": trial.moved(neuron_Ex2, use_layer_max=True),
        "register begins random": trial.moved(neuron_Ex2, start_D=start_D),
        "register begins as mean patch": trial.moved(neuron_Ex2, use_mean_start=True),
        "random neurons to a register": trial.moved(other_Ex2),
        "neurons silent": trial.moved(neuron_Ex2, num_registers=0),
        "neurons to a random patch": trial.moved(neuron_Ex2, num_registers=0, is_target_BxP=is_patch_BxP),
    }
    outcomes, stores = {edited_models.UNEDITED: trial.outcome(trial.before, NO_INTERVENTION)}, {}
    for name, intervention in moves.items():
        stores[name], outcomes[name] = trial.measure(intervention)
    return outcomes, stores


def _maps(trial: Trial, after: Store) -> tuple[np.ndarray, np.ndarray] | None:
    """(images, maps) of the attention of cls to the patches before and after; None for models without cls."""
    if not trial.subject.layout.has_cls:
        return None
    shown = np.flatnonzero(trial.found.is_outlier_BxP.any(1))[: trial.options.num_examples]
    maps = []
    for store, layout in ((trial.before, trial.layout(0)), (after, trial.layout(1))):
        weights_BxT = store.read("attention_NxExT")[shown][:, :, 0].mean(1)
        maps.append(weights_BxT[:, layout.patches].reshape(-1, *layout.patch_grid))
    return trial.subject.store.read("image_HxWxC")[shown], 100 * np.stack(maps, axis=1)


def _draw(found: Found) -> Pictures:
    for one in found:
        count, groups, threshold, maps = one.values
        figure, axes = new_axes()
        norms = np.concatenate([norms.ravel() for norms, _ in groups.values()])
        draw_norms(axes, norms, groups, threshold=threshold, threshold_label="threshold")
        legend_above(axes)
        yield Picture(
            name=f"norms-{one.name}",
            caption=f"{one.name}: norms after the last block, unedited and with "
            f"{counted(count, 'neuron')} moved to a register.",
            figure=figure,
        )
        if maps is not None:
            images, maps_Bx2xHxW = maps
            yield Picture(
                name=f"maps-{one.name}",
                caption=f"{one.name}: attention of cls in the unedited model, and with a test-time register; "
                "on one scale.",
                figure=tiles(
                    [list(images), *[[None] * len(images)] * 2],
                    [[None] * len(images), list(maps_Bx2xHxW[:, 0]), list(maps_Bx2xHxW[:, 1])],
                    rows=("image", "unedited", "test-time register"),
                    limits=(0.0, float(maps_Bx2xHxW.max())),
                    label="attention of cls to a patch, %",
                ),
            )


EXPERIMENT = Experiment(
    question="Can outliers be moved to a register that was never trained?",
    answers="arXiv:2506.08010, figures 4 and 22 to 24, tables 7, 8 and 10, algorithm 2",
    definition=lambda options: (
        "The neurons of register-neurons are taken from all tokens and given to added registers of zeros, "
        "whose activation becomes the largest over the tokens. Neurons are added, highest score first, until "
        f"at most {GONE:.0%} of the outliers are left above the threshold of the unedited model. 'As "
        "released': cls keeps its activations, and all neurons of a block give one value, the one of largest "
        "size. Controls: a register and nothing moved, random neurons of the same blocks, neurons silent, "
        f"neurons moved to one random patch. On the first {options.num_edited} images."
    ),
    tables={
        "Test-time registers": f"model | variant | {OUTCOME}",
        "Number of neurons": f"model | neurons | {OUTCOME}",
    },
    measure=_measure,
    runs_model=True,
    features=edited_models.BASE,
    draw=_draw,
    compares="share of patches above the threshold with the register, %",
)
