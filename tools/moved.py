"""Answers commands that were renamed: the old command prints the new one."""

import sys


def answer(old: str, new: str) -> None:
    """Prints the new command and exits with code 2."""
    print(f"error: python -m {old} is now: python -m {new}", file=sys.stderr)
    sys.exit(2)
