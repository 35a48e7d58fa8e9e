"""Text as Markdown that a parser shows as the same text: names of checkpoints may hold any character."""

import re

_ESCAPED = re.compile(r"[\\`*\[\]#]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside of a word means nothing
_ENTITIES = {"|": "&#124;", "~": "&#126;", "$": "&#36;", ">": "&gt;"}
_REFERENCE = re.compile(r"&(?=#|\w+;)")
_TAG = re.compile(r"(?<![^\W_])<|<(?![^\W_])")
_BEGINNING = re.compile(r"^(\d*)([-+.)])(?=\s|-|$)")  # of a list or a rule


def inline(text: str) -> str:
    """The text in one line, for table cells, the texts of links and pictures, and behind other text.

    Characters that a backslash does not escape everywhere, such as "|" in a table, become entities. "<"
    stays between letters where no ">" follows, as it opens nothing there.
    """
    text = _REFERENCE.sub("&amp;", " ".join(text.replace("\0", "\ufffd").split()))
    text = text.replace("<", "&lt;") if ">" in text else _TAG.sub("&lt;", text)
    text = _ESCAPED.sub(r"\\\g<0>", text)
    # The "#" of entities is not to be escaped: they are put in last.
    return "".join(_ENTITIES.get(character, character) for character in text)


def block(text: str) -> str:
    """The same for what begins a paragraph, a heading or a list item."""
    return _BEGINNING.sub(r"\1\\\2", inline(text))
