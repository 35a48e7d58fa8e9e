"""The reference of all settings. Their texts are the comments of their fields in the source."""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
from types import ModuleType
from typing import NamedTuple

from vit_registers.config import captions, model, objectives, settings, tasks, text
from vit_registers.config.convert import section_values

_MODULES: tuple[ModuleType, ...] = (settings, captions, model, text, objectives, tasks)
_WIDTH = 100


class Setting(NamedTuple):
    """A setting, as its dataclass declares it."""

    name: str  # dotted: model.width
    kind: str  # its type
    default: str  # a Python literal
    text: str  # "" if its name says all
    may_change: tuple[str, ...]  # occasions.py


class Section(NamedTuple):
    """A section of settings."""

    name: str
    text: str
    settings: tuple[Setting, ...]


def sections() -> list[Section]:
    """All sections with their settings, in order. Those without settings of their own are left out."""
    declared = {name: found for module in _MODULES for name, found in _declared(module).items()}
    found = []
    for name, values in section_values(settings.Config()).items():
        outer = _changes_of_section(name)
        own = [
            Setting(
                f"{name}.{field.name}",
                *declared[type(values).__name__][field.name][:1],
                repr(getattr(values, field.name)),
                declared[type(values).__name__][field.name][1],
                (*outer, *field.metadata.get("may_change", ())),
            )
            for field in dataclasses.fields(values)
            if not dataclasses.is_dataclass(getattr(values, field.name))
        ]
        found.append(Section(name, inspect.getdoc(type(values)) or "", tuple(own)))
    return found


def _changes_of_section(name: str) -> tuple[str, ...]:
    fields = {field.name: field for field in dataclasses.fields(settings.Config)}
    return fields[name.partition(".")[0]].metadata.get("may_change", ())


def _declared(module: ModuleType) -> dict[str, dict[str, tuple[str, str]]]:
    """{dataclass: {field: (type, comment)}} of a module of settings."""
    source = inspect.getsource(module)
    comments = {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {
        node.name: {
            field.target.id: (ast.unparse(field.annotation), _comment(comments, field))
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        }
        for node in classes
    }


def _comment(comments: dict[int, tuple[str, bool]], field: ast.AnnAssign) -> str:
    """The comment at the end of the line of a field, or else the lines of comment above it."""
    if field.end_lineno in comments:
        return comments[field.end_lineno][0]
    lines, number = [], field.lineno - 1
    while number in comments and comments[number][1]:
        lines.append(comments[number][0])
        number -= 1
    return " ".join(reversed(lines))


def plain_text() -> str:
    """The reference for a terminal: --config.SECTION.NAME=DEFAULT, and the text."""
    lines = ["Settings with their defaults (None where nothing else is said: unset):"]
    for section in sections():
        lines += ["", f"config.{section.name}: {section.text}"]
        for one in section.settings:
            head = f"  --config.{one.name}={one.default}"
            indent = " " * 8
            text = one.text if one.text else ""
            whole = f"{head}  {text}".rstrip()
            if len(whole) <= _WIDTH:
                lines.append(whole)
                continue
            lines += [head, textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)]
    return "\n".join(lines)


def settings_markdown() -> str:
    """The reference as a page of the documentation."""
    lines = [
        "# Settings",
        "",
        "All settings with their defaults; `None` is unset. A config file sets them by",
        "`Config(model=Model(width=64))`, a command by `--config.model.width=64`, and Python by",
        '`vit_registers.recipe("digits", model={"width": 64})` ([configs](configs.md)).',
        "`vit-registers train --help` prints this page.",
        "",
        "May change: `resume`, in the command that resumes a run; `read`, where a checkpoint is loaded,",
        "evaluated or analysed; `transfer`, where training starts from a checkpoint. Others must be those of",
        "the run.",
        "",
        "This page is made of the comments in `vit_registers/config/`: `python -m tools.settings_page`.",
    ]
    for section in sections():
        if not section.settings:
            continue
        lines += ["", f"## {section.name}", "", section.text, ""]
        lines += ["| setting | type | default | what it is | may change |", "|---|---|---|---|---|"]
        for one in section.settings:
            cells = (
                f"`{one.name}`",
                f"`{one.kind}`",
                f"`{one.default}`",
                one.text,
                ", ".join(one.may_change),
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
