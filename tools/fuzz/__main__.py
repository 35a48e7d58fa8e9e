"""Damages user input at random. Each outcome must be a one-line error or the correct result.

    python -m tools.fuzz settings --count=300      # single edits of config values, each used for training
    python -m tools.fuzz run --count=100           # byte edits in a run folder, then evaluated and resumed
    python -m tools.fuzz images --count=60         # odd image files, read by both loaders
    python -m tools.fuzz weights --count=40        # edited files of weights, loaded

Prints a line for each fault (a traceback, a hang, several lines, a changed result without a message) and the
counts of all outcomes. The exit code is 1 if there are faults. --seed determines the cases. The four commands
take about 15, 25, 1 and 2 minutes on two cores.
"""

import argparse
import collections
import contextlib
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.fuzz import programs

Answer = tuple[str, str]  # the edit, the outcome


def fuzz_settings(count: int, seed: int, folder: Path) -> Iterator[Answer]:
    """Edits of config values; see settings.py."""
    from tools.fuzz import settings

    programs.import_all()

    def one(case: tuple[int, tuple[str, str]]) -> Answer:
        number, (name, value) = case
        with _case(folder, number) as place:
            return f"{name}={value[:60]}", settings.check(name, value, place)

    yield from _in_pairs(one, list(enumerate(settings.edits(count, seed))))


def fuzz_run(count: int, seed: int, folder: Path) -> Iterator[Answer]:
    """Byte edits in a run folder; see run_folder.py."""
    from tools.fuzz import run_folder

    programs.import_all()
    reference = run_folder.make_reference(folder)

    def one(number: int) -> Answer:
        with _case(folder, number) as place:
            return run_folder.check(reference, place, seed + number)

    yield from _in_pairs(one, list(range(count)))


def fuzz_images(count: int, seed: int, folder: Path) -> Iterator[Answer]:
    """Odd image files; see images.py."""
    from tools.fuzz import images

    yield from images.check(folder, count, seed)


def fuzz_weights(count: int, seed: int, folder: Path) -> Iterator[Answer]:
    """Edited files of weights; see weights.py."""
    from tools.fuzz import weights

    source = folder / "source.safetensors"
    with contextlib.redirect_stdout(printed := io.StringIO()):
        weights.write_reference(source)

        def read_lines() -> str:
            text = printed.getvalue()
            printed.seek(0)
            printed.truncate()
            return text

        answers = [weights.check(source, folder, seed + number, read_lines) for number in range(count)]
    yield from answers


def _in_pairs(one: Callable, cases: list) -> Iterator[Answer]:
    """Runs two cases at a time, each in separate processes."""
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(one, cases)


@contextlib.contextmanager
def _case(folder: Path, number: int) -> Iterator[Path]:
    place = folder / f"case-{number}"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


TARGETS = {"settings": fuzz_settings, "run": fuzz_run, "images": fuzz_images, "weights": fuzz_weights}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--count", type=int, default=40, help="number of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="print every case, not only faults")
    given = parser.parse_args()
    counts = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for done, answer in TARGETS[given.target](given.count, given.seed, Path(folder)):
            is_fault = answer.startswith("fault")
            counts["fault" if is_fault else answer] += 1
            if is_fault or given.all:
                print(f"{answer:<10} {done}", flush=True)
    print(f"{given.target}: " + ", ".join(f"{number} {answer}" for answer, number in sorted(counts.items())))
    return int(counts["fault"] > 0)


if __name__ == "__main__":
    sys.exit(main())
