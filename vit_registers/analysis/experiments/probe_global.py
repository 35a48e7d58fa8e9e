"""How much of the image's class a single token holds."""

import numpy as np

from vit_registers.analysis.experiments.halves import halves_by_class
from vit_registers.analysis.measures.probes import ProbeInputs, choose_tokens, global_probe
from vit_registers.analysis.report.result import Result, Table
from vit_registers.analysis.subject import Options, Subject
from vit_registers.errors import DataError

_SEEDS = (0, 1, 2)


def global_information(subjects: list[Subject], options: Options) -> Result:
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
    return Result(
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
    train, test = (half[has[half]] for half in halves_by_class(label))
    return ProbeInputs(
        train_NxD=token[train],
        train_label_N=label[train],
        test_NxD=token[test],
        test_label_N=label[test],
        num_skipped=int((~has).sum()),
    )
