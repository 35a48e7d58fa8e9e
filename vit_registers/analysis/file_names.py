"""Names of files that are made of the names of checkpoints, which may hold any character."""

import re

_MOST_CHARACTERS = 80  # four bytes each at most, and file systems take 255 bytes with what is added


def file_name(text: str) -> str:
    """The text with all but letters, digits and . _ @ = + - replaced by "-", and cut where it is long."""
    return re.sub(r"[^\w.@=+-]+", "-", text)[:_MOST_CHARACTERS]


def file_names(texts: list[str]) -> list[str]:
    """`file_name` of each; those that would be equal, small and capital letters alike, get a number."""
    names, taken = [], set()
    for text in texts:
        name, number = file_name(text), 1
        while name.lower() in taken:
            number += 1
            name = f"{file_name(text)}-{number}"
        taken.add(name.lower())
        names.append(name)
    return names
