"""Token groups of a model in the order of plots, and the gap of models whose patches are all zero. No JAX."""

from vit_registers.analysis.subject import Subject

PATCHES = "patches"


def patches_first(subject: Subject) -> dict[str, slice]:
    """The token groups of a model, with the patches first."""
    groups = subject.layout.groups
    return {PATCHES: groups.pop(PATCHES), **groups}


def zero_norm_gaps(subject: Subject) -> list[str]:
    """A gap for a model that gives patches of zeros only, else none."""
    return [] if subject.patch_norms().any() else [f"{subject.name}: the norms of all patches are 0"]
