"""What single tokens know: their place, their pixels, the class of the image."""

import itertools

import numpy as np

from vit_registers.analysis.measures.position_probe import fit_position_probe, score_positions
from vit_registers.analysis.measures.probes import ProbeInputs, choose_tokens, global_probe
from vit_registers.analysis.measures.reconstruction import (
    Pairs,
    fit_linear,
    fit_mean,
    fit_mlp,
    score_reconstruction,
)
from vit_registers.analysis.measures.released import fit_released, score_released
from vit_registers.analysis.report.section import Section, Table
from vit_registers.analysis.subject import Options, Subject
from vit_registers.errors import DataError

_SEEDS = (0, 1, 2)
_MANY_IMAGES = 400  # at most, to train on and to test on, for probes on all patches
_FEWEST_IMAGES = 4  # two to train on, of which one chooses the strength
_TEST_SHARE = 0.5


def position(subjects: list[Subject], options: Options) -> Section:
    """Whether a patch still knows where it is."""
    rows, gaps = [], []
    for subject in subjects:
        patches = subject.store.read("patches_PxD")
        train, test = _halves(len(patches))
        if len(patches) < _FEWEST_IMAGES:
            gaps.append(f"{subject.name}: the probe wants {_FEWEST_IMAGES} images or more")
            continue
        probe = fit_position_probe(np.asarray(patches[train]), seed=0)
        is_outlier = subject.outliers(options.rule).is_outlier_BxP[test]
        scores = score_positions(probe, patches[test], is_outlier, grid=subject.layout.patch_grid)
        for score in scores:
            top1 = None if score.top1 is None else 100 * score.top1
            rows.append((subject.name, score.kind, score.num_tokens, top1, score.distance_patches))
            if not score.num_tokens:
                gaps.append(f"{subject.name}: no {score.kind} patches by {options.rule}")
        if not probe.is_converged:
            gaps.append(f"{subject.name}: the probe had not converged")
    columns = ("model", "patches", "tokens", "top-1, %", "distance, patches")
    return Section(
        definition="One linear softmax classifier over the positions, on the patches that the last block "
        f"leaves, trained on half of the images and scored on the other half ({_MANY_IMAGES} at most), on "
        "flagged and on other patches. Distance is Euclidean, from the position answered to the true one.",
        tables=[Table(title="Position probe", columns=columns, rows=rows)] if rows else [],
        gaps=gaps,
    )


def reconstruction(subjects: list[Subject], options: Options) -> Section:
    """Whether a patch still knows its pixels."""
    rows, gaps = [], []
    for subject in subjects:
        train, test = _halves(len(subject.store.read("patches_PxD")))
        if not len(test):
            gaps.append(f"{subject.name}: the probes want two images or more, one of them to be judged by")
            continue
        fitted, scored = (_pairs(subject, images) for images in (train, test))
        is_outlier = subject.outliers(options.rule).is_outlier_BxP[test]
        probes = {
            "none (mean patch)": (fit_mean(fitted), score_reconstruction),
            "linear": (fit_linear(fitted), score_reconstruction),
            "MLP": (fit_mlp(fitted, seed=0), score_reconstruction),
            "MLP, as released": (fit_released(fitted, seed=0), score_released),
        }
        for name, (probe, score_of) in probes.items():
            for score in score_of(probe, scored, is_outlier):
                rows.append((subject.name, name, score.kind, score.num_tokens, score.mse, score.l2))
        if not is_outlier.any():
            gaps.append(f"{subject.name}: no outliers by {options.rule}")
    columns = ("model", "probe", "patches", "tokens", "squared error per value", "L2 error per patch")
    return Section(
        definition="From a patch that the last block leaves to its pixels, normalised as the model is shown "
        "them: ridge regression, and an MLP with a hidden layer of 4 x the width; trained on half of the "
        f"images and scored on the other half ({_MANY_IMAGES} at most). 'As released' is what the code of "
        "'Registers in Small Vision Transformers' computes: targets that are no patches, and sums over "
        "batches of 64 images instead of means, so that its numbers can be compared with each other only.",
        tables=[Table(title="Reconstruction", columns=columns, rows=rows)] if rows else [],
        gaps=gaps,
    )


def _pairs(subject: Subject, images: np.ndarray) -> Pairs:
    return Pairs(
        token_BxPxD=np.asarray(subject.store.read("patches_PxD")[images]),
        image_BxHxWxC=np.asarray(subject.store.read("image_HxWxC")[images]),
        patch_size=subject.model.patch_size,
        mean=subject.mean,
        std=subject.std,
    )


def global_information(subjects: list[Subject], options: Options) -> Section:
    """How much of the image's class one token holds."""
    rows, gaps = [], []
    for subject in subjects:
        label = np.asarray(subject.store.read("label"))[: len(subject.store.read("patches_PxD"))]
        if label.ndim > 1 or len(np.unique(label)) < 2 or np.unique(label, return_counts=True)[1].min() < 2:
            gaps.append(f"{subject.name}: the images want two classes or more, of two images or more each")
            continue
        for kind, seeds in _kinds(subject):
            try:
                (row,) = global_probe({kind: [_inputs(subject, options, kind, seed) for seed in seeds]})
            except DataError as error:
                gaps.append(f"{subject.name}: {error}")
                continue
            if row.accuracy is None:
                gaps.append(f"{subject.name}: no {row.kind} patches by {options.rule} to train and test on")
            accuracy = None if row.accuracy is None else 100 * row.accuracy
            std = None if row.std is None else 100 * row.std
            rows.append((subject.name, row.kind, accuracy, std, row.num_train, row.num_test, row.num_skipped))
    columns = ("model", "token", "accuracy, %", "std", "trained on", "tested on", "images without one")
    tables = [Table(title="Global information", columns=columns, rows=rows)] if rows else []
    return Section(
        definition="Logistic regression from one token of the last block's output, before the final norm, to "
        "the class of the image, trained on half of the images and tested on the other half; its strength is "
        "chosen within the first. Patches are drawn anew for each of three seeds; standard deviations are "
        "over these. Images without an outlier are left out of the rows of single patches.",
        tables=tables,
        gaps=gaps,
    )


def _kinds(subject: Subject) -> list[tuple[str, tuple[int, ...]]]:
    """The kinds of tokens, and the seeds that each is drawn with."""
    named = [name for name in subject.tokens() if name not in ("patches", "summaries")]
    return [(name, (0,)) for name in (*named, "mean patch", "center")] + [
        (name, _SEEDS) for name in ("normal", "outlier")
    ]


def _inputs(subject: Subject, options: Options, kind: str, seed: int) -> ProbeInputs:
    patches = subject.store.read("patches_PxD")
    label = np.asarray(subject.store.read("label"))[: len(patches)]
    has = np.ones(len(label), bool)
    if kind in subject.tokens():
        token = np.asarray(subject.store.read("extras_ExD")[: len(patches), subject.tokens()[kind].start])
    elif kind == "mean patch":
        token = np.stack([np.asarray(image).mean(0) for image in patches])
    else:
        flagged = subject.outliers(options.rule).is_outlier_BxP[: len(patches)]
        grid = subject.layout.patch_grid
        has = choose_tokens(flagged, "outlier", grid=grid, seed=seed)[1] if kind != "center" else has
        index, has = choose_tokens(flagged, kind, grid=grid, seed=seed, among_B=has)
        token = np.asarray(patches[np.arange(len(label)), index])
    train, test = (half[has[half]] for half in _halves_by_class(label))
    return ProbeInputs(
        train_NxD=token[train],
        train_label_N=label[train],
        test_NxD=token[test],
        test_label_N=label[test],
        num_skipped=int((~has).sum()),
    )


def _halves(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Images to train on and to test on, at random, the same for every model; _MANY_IMAGES at most each."""
    mixed = np.random.default_rng(0).permutation(number)
    half = number - int(number * _TEST_SHARE)
    return np.sort(mixed[:half][:_MANY_IMAGES]), np.sort(mixed[half:][:_MANY_IMAGES])


def _halves_by_class(label_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same, half of each class."""
    mixed = np.random.default_rng(0).permutation(len(label_N))
    mixed = mixed[np.argsort(label_N[mixed], kind="stable")]
    train, test = [], []
    for _, group in itertools.groupby(mixed, key=lambda i: label_N[i]):
        members = list(group)
        half = len(members) - int(len(members) * _TEST_SHARE)
        train, test = train + members[:half], test + members[half:]
    return np.sort(train), np.sort(test)
