"""The models of each run in the order of their steps. No JAX."""

from vit_registers.analysis.subject import Subject


def by_run(subjects: list[Subject]) -> tuple[dict[str, list[Subject]], list[str]]:
    """The subjects of each run, the oldest step first; and gaps: what is no run, runs of one step only."""
    runs: dict[str, list[Subject]] = {}
    gaps = []
    for subject in subjects:
        if subject.run is None:
            gaps.append(f"{subject.name}: not a run, so that it has no steps")
        else:
            runs.setdefault(str(subject.run), []).append(subject)
    for run, steps in runs.items():
        steps.sort(key=lambda subject: subject.step)
        if len(steps) < 2:
            gaps.append(f"{run}: one step only; RUN@all shows all that are kept")
    return runs, gaps
