"""Parts of TFDS splits as text: 'train', 'train[:99%]', 'train[10:500]', 'train[0shard]', 'train+test'.

The meaning is that of TFDS. Texts for which TFDS returns other examples than requested are errors here: files
past the last one, bounds of two units, and overlapping parts, whose examples it returns twice.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vit_registers.config import nearest
from vit_registers.errors import DataError

_ALL = "all"  # the sum of all splits
_FORMS = "parts are written as in 'train[:99%]', 'train[10:500]' or 'train+test'"
_PART = re.compile(r"(?P<name>[^\[\]]+?)(?:\[(?P<start>[^:\[\]]*)(?P<colon>:)?(?P<stop>[^:\[\]]*)\])?")
_BOUND = re.compile(r"(?P<number>-?\d+(?:_\d+)*(?:\.\d+)?)(?P<unit>%|shard)?", re.ASCII)


class Part(NamedTuple):
    """The records [start, stop) of a named split, such as train; 0 <= start < stop."""

    name: str
    start: int
    stop: int


def parse_split(split: str, shard_lengths: Mapping[str, Sequence[int]], *, data: str) -> list[Part]:
    """The parts in the text, in its order, without overlap.

    `shard_lengths` are the numbers of records in each file of each split of the data set `data`. Raises
    DataError for text that cannot be parsed, unknown names, bounds past either end, empty parts and overlaps.
    """
    texts = re.split(r"\s*\+\s*", split)
    if texts == [_ALL] and _ALL not in shard_lengths:
        texts = [name for name, lengths in shard_lengths.items() if sum(lengths)]
    parts: list[Part] = []
    for text in texts:
        part = _parse_part(text, split, shard_lengths, data)
        for other in parts:
            common = min(part.stop, other.stop) - max(part.start, other.start)
            if part.name == other.name and common > 0:
                raise DataError(
                    f"split '{split}' of {data} has {common} examples twice: name parts that do not overlap"
                )
        parts.append(part)
    return parts


def _parse_part(text: str, split: str, shard_lengths: Mapping[str, Sequence[int]], data: str) -> Part:
    match = _PART.fullmatch(text)
    if match is None or not match["name"]:
        raise DataError(f"split '{split}' of {data} cannot be read: {_FORMS}")
    name = match["name"]
    if name not in shard_lengths:
        inside = "" if name == split else f" (in '{split}')"
        raise DataError(f"{data} has no split '{name}'{inside}: {nearest(name, shard_lengths)}; {_FORMS}")
    lengths = shard_lengths[name]
    if match["start"] is None:
        start, stop = 0, sum(lengths)
    else:
        start, stop = _bounds(match, f"split '{split}' of {data}", lengths)
    if start >= stop:
        raise DataError(f"split '{split}' of {data} is empty: '{name}' has {sum(lengths)} examples")
    return Part(name, start, stop)


def _bounds(match: re.Match[str], where: str, lengths: Sequence[int]) -> tuple[int, int]:
    texts = [match["start"], match["stop"]] if match["colon"] else [match["start"]]
    bounds = [_BOUND.fullmatch(text) for text in texts]
    # 0 is the same in all units
    units = {bound["unit"] for bound in bounds if bound and bound.group() != "0"} or {
        bound["unit"] for bound in bounds if bound
    }
    is_readable = all(bound or not text for bound, text in zip(bounds, texts, strict=True))
    if not is_readable or not units or (len(texts) == 1 and units != {"shard"}):
        raise DataError(f"{where} cannot be read: {_FORMS}")
    if len(units) > 1:
        raise DataError(f"{where} has bounds of two units: write both as examples, or as %, or as shard")
    (unit,) = units
    numbers = [float(bound["number"]) if bound else None for bound in bounds]
    if unit != "%" and any(number is not None and not number.is_integer() for number in numbers):
        raise DataError(f"{where} has a bound that is not a whole number: only % may have a fraction")
    if len(texts) == 1:  # one file
        (number,) = numbers
        numbers.append(None if number is None or number == -1 else number + 1)
    start, stop = (
        None if number is None else _record(number, unit, where, match["name"], lengths) for number in numbers
    )
    return (0 if start is None else start), (sum(lengths) if stop is None else stop)


def _record(number: float, unit: str | None, where: str, name: str, lengths: Sequence[int]) -> int:
    total = sum(lengths)
    if unit == "%":
        if abs(number) > 100:
            raise DataError(f"{where} has the bound {number:g}%: write -100% to 100%")
        record = round(number * total / 100)
    else:
        size, what = (total, "examples") if unit is None else (len(lengths), "files")
        if abs(number) > size:
            raise DataError(f"{where} reaches {number:.0f}, but '{name}' has {size} {what}: end within them")
        record = int(number) if unit is None else sum(lengths[: int(number)]) if number else 0
    return record + total if record < 0 else record
