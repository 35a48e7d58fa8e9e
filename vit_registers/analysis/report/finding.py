"""The finding of an experiment: one line of plain English with the numbers of its models. No JAX."""

import math
from collections.abc import Mapping, Sequence

from vit_registers.analysis.report.result import Rows, counted, number

_MOST_CLAUSES = 2  # models whose clauses are all given; of more models the lowest and highest are


def labels(tokens: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """How sentences name each model, from the numbers of its registers and of its summaries by model name.

    "with 4 registers" where several models all have different tokens, else "for NAME". Summaries are named if
    any model has them.
    """
    if len(tokens) < 2 or len(set(tokens.values())) < len(tokens):
        return {name: f"for {name}" for name in tokens}
    has_summaries = any(summaries for _, summaries in tokens.values())
    without = "without registers and summaries" if has_summaries else "without registers"
    named = {}
    for name, (registers, summaries) in tokens.items():
        parts = [counted(registers, "register")] if registers else []
        if summaries:
            parts.append("1 summary" if summaries == 1 else f"{summaries:,} summaries")
        named[name] = f"with {' and '.join(parts)}" if parts else without
    return named


def sentence(found: Sequence[Rows], named: Mapping[str, str], compares: str) -> str:
    """The clause of each model, and of several models which is lowest and highest.

    `named` is what `labels` gives. `compares` says what Rows.compared is, and after a comma its unit.
    """
    has_one_count = len({one.count for one in found}) == 1
    own = {one.name: "" if has_one_count else f", n = {one.count}" for one in found}
    shared = f" (n = {found[0].count})" if has_one_count else ""
    clauses = [f"{named[one.name]}: {one.text}{own[one.name]}" for one in found]
    parts = [f"{'; '.join(clauses)}{shared}"] if len(found) <= _MOST_CLAUSES else []
    if comparison := _comparison(found, named, compares, own if not parts else {}):
        parts.append(comparison if parts else f"of {len(found)} models{shared}, {comparison}")
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts) or f"{len(found)} models{shared}."


def _comparison(
    found: Sequence[Rows], named: Mapping[str, str], compares: str, counts: Mapping[str, str]
) -> str:
    """Which model is lowest and which is highest; empty for fewer than two numbers.

    `counts` are added to the numbers of the two models.
    """
    what, _, unit = compares.partition(", ")
    values = [(one.compared, one.name) for one in found if one.compared is not None]
    values = [(value, name) for value, name in values if math.isfinite(value)]
    if len(values) < 2:
        return ""
    (low, lowest), (high, highest) = min(values), max(values)
    if number(low) == number(high):
        return f"the {what} is the same, {number(low, unit)}{''.join(dict.fromkeys(counts.values()))}"
    return (
        f"the {what} is lowest {named[lowest]} ({number(low, unit)}{counts.get(lowest, '')}) and highest "
        f"{named[highest]} ({number(high, unit)}{counts.get(highest, '')})"
    )
