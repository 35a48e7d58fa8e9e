"""What experiments on norms share: token groups in the order of plots, models of zeros."""

from vit_registers.analysis.subject import Subject


def zero_norm_gaps(subjects: list[Subject]) -> list[str]:
    """A gap for each model that gives patches of zeros only."""
    return [f"{one.name}: the norms of all patches are 0" for one in subjects if not one.patch_norms().any()]


def patches_first(subject: Subject) -> dict[str, slice]:
    """Patches first, as they are what is looked at."""
    groups = subject.layout.groups
    return {"patches": groups.pop("patches"), **groups}
