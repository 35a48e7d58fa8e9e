"""The head of a report: a table of models, a finding for each group of experiments, pictures. No JAX."""

from collections.abc import Sequence

from vit_registers.analysis.report.entry import ReportEntry
from vit_registers.analysis.report.headline import Headline, statement
from vit_registers.analysis.report.result import Picture, Table, number

NUM_PICTURES = 4


def by_group(entries: Sequence[ReportEntry]) -> dict[str, list[ReportEntry]]:
    """The entries of each group, in order."""
    groups: dict[str, list[ReportEntry]] = {}
    for entry in entries:
        groups.setdefault(entry.group, []).append(entry)
    return groups


def group_findings(entries: Sequence[ReportEntry]) -> list[str]:
    """What a group of experiments found: a sentence for each headline with an uncertainty, and remarks."""
    found = []
    for what, by_model in _headlines(entries).items():
        if any(one.error is not None for one in by_model.values()):
            found.append(statement(what, by_model))
    models: dict[str, list[str]] = {}
    for entry in entries:
        for name, remark in entry.result.remarks.items():
            models.setdefault(remark, []).append(name)
    found += [f"{' and '.join(names)}: {remark}." for remark, names in models.items()]
    return [text for text in found if text]


def _headlines(entries: Sequence[ReportEntry]) -> dict[str, dict[str, Headline]]:
    """All headlines, by what they are and by model."""
    found: dict[str, dict[str, Headline]] = {}
    for entry in entries:
        for name, headlines in entry.result.headlines.items():
            for one in headlines:
                found.setdefault(one.what, {})[name] = one
    return found


def model_table(entries: Sequence[ReportEntry]) -> Table | None:
    """A row for each model and a column for each headline that exists; None without any."""
    found = _headlines(entries)
    # What has no uncertainty, such as the number of parameters, comes first.
    columns = sorted(found, key=lambda what: any(one.error is not None for one in found[what].values()))
    names = list(dict.fromkeys(name for by_model in found.values() for name in by_model))
    rows = [(name, *(_cell(found[what].get(name)) for what in columns)) for name in names]
    return Table(title="Models", columns=("model", *columns), rows=rows) if rows else None


def _cell(one: Headline | None) -> str | None:
    if one is None or one.value is None:
        return None
    if one.error is None:
        return f"{one.value:,.0f}" if one.value >= 1000 else number(one.value)
    return f"{one.text()} (n = {one.count:,}: too few)" if one.is_small else one.text()


def chosen_pictures(entries: Sequence[ReportEntry]) -> list[tuple[ReportEntry, Picture]]:
    """The pictures for the head: those marked so, one of each experiment first."""
    marked = [[(e, picture) for picture in e.result.pictures if picture.is_headline] for e in entries]
    first = [one[0] for one in marked if one]
    more = [picture for one in marked for picture in one[1:]]
    return [*first, *more][:NUM_PICTURES]
