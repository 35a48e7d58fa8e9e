"""What the model is and how it was trained: its mask, its curves."""

import numpy as np

from vit_registers.analysis import pictures
from vit_registers.analysis.section import Picture, Section, Table
from vit_registers.analysis.subject import Options, Subject
from vit_registers.models.vit import static_attention


def curves(subjects: list[Subject], options: Options) -> Section:
    """Losses and accuracies over the steps of the runs."""
    section = Section(
        definition="Losses and top-1 of the run: of single training batches, which may be mixed, and of "
        "evaluations."
    )
    rows = []
    for subject in subjects:
        if subject.run is None or not (subject.run / "metrics.jsonl").exists():
            section.gaps.append(f"{subject.name}: no metrics.jsonl, as it is no run, or a converted one")
            continue
        metrics = pictures.read_metrics(subject.run / "metrics.jsonl")
        rows += [
            (subject.name, name, int(steps[-1]), float(values[-1]))
            for name, (steps, values) in metrics.items()
            if name.endswith(("/loss", "/top1", "/top5"))
        ]
        section.pictures.append(
            Picture(name=f"curves-{subject.name}", caption=subject.name, figure=pictures.draw_curves(metrics))
        )
    if rows:
        columns = ("model", "metric", "last step", "value")
        section.tables.append(Table(title="Last values", columns=columns, rows=rows))
    return section


def masks(subjects: list[Subject], options: Options) -> Section:
    """Who may attend to whom."""
    section = Section(definition="The static mask: the share of pairs that may attend, between token groups.")
    rows = []
    for subject in subjects:
        mask_TxT, _ = static_attention(subject.model, subject.layout)
        if mask_TxT is None:
            section.gaps.append(f"{subject.name}: model.mask='none', all tokens attend to all")
            continue
        groups = subject.layout.level_groups
        rows.append((subject.name, "all", "all", float(np.mean(mask_TxT))))
        rows += [
            (subject.name, a, b, float(np.mean(mask_TxT[first, second])))
            for a, first in groups.items()
            for b, second in groups.items()
        ]
        title = f"{subject.name}: mask '{subject.model.mask}'"
        section.pictures.append(
            Picture(
                name=f"mask-{subject.name}",
                caption=title,
                figure=pictures.draw_mask(mask_TxT, groups, title=title),
            )
        )
    if rows:
        columns = ("model", "queries", "keys", "share that may attend")
        section.tables.append(Table(title="Mask", columns=columns, rows=rows))
    return section
