"""probe-global: how much of the image's class a single token holds."""

import numpy as np

from vit_registers.analysis.experiments.experiment import REGISTERS, SMALL, Experiment, few
from vit_registers.analysis.experiments.train_test import (
    ProbeImages,
    ProbeSets,
    labelled_parts,
    outliers_alike,
)
from vit_registers.analysis.measures.probes import ProbeInputs, choose_tokens, global_probe
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.headline import share_of_images
from vit_registers.analysis.report.result import Gap, Rows, counted, number, percent
from vit_registers.analysis.subject import Subject, queries
from vit_registers.errors import DataError

_SEEDS = (0, 1, 2)


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    parts = labelled_parts(subject, "patches_PxD", what="the probe")
    if isinstance(parts, Gap):
        return parts
    counts = np.unique(parts.train.label_N, return_counts=True)[1]
    if len(counts) < 2 or (parts.is_split and _smallest_class(parts) < 2):
        return Gap(f"{subject.name}: the probe requires two classes or more, of two images or more each")
    rows, gaps = [], []
    seeds = dict.fromkeys((*queries(subject), "mean patch", "center"), (0,))  # of the draws, by kind of token
    for kind, own in (seeds | {"normal": _SEEDS, "outlier": _SEEDS}).items():
        try:
            (row,) = global_probe({kind: [_inputs(parts, options, kind, seed) for seed in own]})
        except DataError as error:
            gaps.append(f"{subject.name}: {error}")
            continue
        if row.accuracy is None:
            gaps.append(f"{subject.name}: no {kind} patches by {options.rule} to train and test on")
        scores = percent(row.accuracy), percent(row.std)
        rows.append((kind, *scores, row.num_train, row.num_test, row.num_skipped))
    if not rows:
        return Gap(gaps[0])
    accuracies = {kind: accuracy for kind, accuracy, *_ in rows}
    clauses = [
        f"{number(accuracies[kind], '%')} from {words}"
        for kind, words in {"cls": "cls", "outlier": "an outlier", "normal": "another patch"}.items()
        if accuracies.get(kind) is not None
    ] or [f"{number(rows[0][1], '%')} from {rows[0][0]}"]
    return Rows(
        tables={"Global information": rows},
        text=f"the accuracy of a linear probe is {', '.join(clauses)}",
        compared=accuracies.get("normal"),
        count=counted(max(row[4] for row in rows), "test image"),
        gaps=gaps,
        headlines=[
            share_of_images(f"class from {kind} by a linear probe, %", accuracy, tested)
            for kind, accuracy, _, _, tested, _ in rows
            if kind == "cls"
        ],
        cautions=[
            line
            for kind, accuracy, _, _, tested, _ in rows
            if accuracy is not None
            for line in few(f"{subject.name}, {kind}", tested, "test image")
        ],
        images=parts.describe(),
    )


def _smallest_class(parts: ProbeSets) -> int:
    label_N = np.concatenate([part.label_N for part in parts])
    return int(np.unique(label_N, return_counts=True)[1].min())


def _inputs(parts: ProbeSets, options: Options, kind: str, seed: int) -> ProbeInputs:
    token, has = _tokens(parts.train, parts, options, kind, seed)
    tested, tested_has = (token, has) if parts.is_split else _tokens(parts.test, parts, options, kind, seed)
    train, test = (
        part.take(np.flatnonzero(found[part.row_N]))
        for part, found in zip(parts, (has, tested_has), strict=True)
    )
    return ProbeInputs(
        train_NxD=token[train.row_N],
        train_label_N=train.label_N,
        test_NxD=tested[test.row_N],
        test_label_N=test.label_N,
        num_skipped=sum(len(part.row_N) for part in parts) - len(train.row_N) - len(test.row_N),
    )


def _tokens(
    part: ProbeImages, parts: ProbeSets, options: Options, kind: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(token_BxD, has_B) of all images of the subject of `part`: one token each, and whether it has one."""
    subject = part.subject
    patches = subject.store.read("patches_PxD")
    has = np.ones(len(patches), bool)
    if kind in queries(subject):
        token = np.asarray(subject.store.read("extras_ExD")[: len(patches), queries(subject).index(kind)])
    elif kind == "mean patch":
        token = np.stack([np.asarray(image).mean(0) for image in patches])
    else:
        flagged = outliers_alike(part, parts, options.rule)[: len(patches)]
        grid = subject.layout.patch_grid
        if kind != "center":
            has = np.asarray(flagged.any(1))
        index, has = choose_tokens(flagged, kind, grid=grid, seed=seed, among_B=has)
        token = np.asarray(patches[np.arange(len(patches)), index])
    return token, has


EXPERIMENT = Experiment(
    question="How much of the image's class does a single token hold?",
    answers=f"{REGISTERS}, tables 1, 4 and 6; {SMALL}, tables 2, 4 and 5; arXiv:2506.08010, table 1",
    definition="Logistic regression from one token of the last block's output, before the final norm, to "
    "the class of the image, trained on half of the images and tested on the other half, or trained on the "
    "images of --train_data; its strength is chosen within the first. Patches are drawn separately for each "
    "of three seeds; standard deviations are over these. Images without an outlier are left out of the rows "
    "of single patches.",
    tables={
        "Global information": "model | token | accuracy, % | std | trained on | tested on"
        " | images without one"
    },
    measure=_measure,
    features=("norms_LxT", "patches_PxD", "extras_ExD"),
    trains=True,
    compares="accuracy from a normal patch, %",
)
