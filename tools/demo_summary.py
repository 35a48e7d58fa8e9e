"""The end of `make demo`: accuracies of its two runs, three findings, and what to do next.

    python -m tools.demo_summary runs

The runs are RUNS/digits-registers and RUNS/digits-fractal, and the report is in RUNS/report.
"""

import json
import math
import re
import sys
from pathlib import Path

from vit_registers import cli
from vit_registers.errors import DataError

RUNS = {
    "digits-registers": ("4 registers", "learned | 5 | registers"),
    "digits-fractal": ("summaries and fractal mask", "learned | 5 | summaries, fractal mask"),
}
FINDINGS = ("norms", "attention-shares", "probe-global")
RESULTS = Path(__file__).parents[1] / "docs" / "results.md"  # the home of the spread over seeds


def seed_spread(row: str, text: str) -> str | None:
    """The standard deviation over seeds of a row of docs/results.md, in points; None: no such row."""
    found = re.search(rf"^\| {re.escape(row)} \| [\d.]+ ± ([\d.]+) \|", text, re.MULTILINE)
    return found[1] if found else None


def accuracy(run: Path) -> str:
    """Top-1 of the newest evaluation of a run, with its standard error over images. Raises DataError."""
    found = sorted((run / "evaluation").glob("*.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise DataError(f"{run}/evaluation has no result: run `make demo`")
    result = json.loads(found[-1].read_text())
    share, number = result["top1"], result["images"]
    error = math.sqrt(share * (1 - share) / number)
    return f"top-1 {100 * share:.1f} % of {number} test images (standard error {100 * error:.1f})"


def summary(runs: Path) -> list[str]:
    """The lines. Raises DataError for a part of the demo that is missing."""
    text = RESULTS.read_text() if RESULTS.exists() else ""
    lines = [""]
    for name, (what, _) in RUNS.items():
        lines.append(f"{runs / name}, {what}: {accuracy(runs / name)}")
    spreads = [found for _, row in RUNS.values() if (found := seed_spread(row, text))]
    if spreads:
        lines.append(
            f"Accuracies of such runs vary by {' and '.join(spreads)} points (standard deviations over three "
            "seeds, docs/results.md), so one run of each does not rank them."
        )
    lines.append("Three findings:")
    for name in FINDINGS:
        path = runs / "report" / name / "numbers.json"
        if not path.exists():
            raise DataError(f"{path} is missing: run `make demo`")
        lines.append(f"- {name}: {json.loads(path.read_text())['finding']}")
    first = runs / next(iter(RUNS))
    lines += [
        f"All findings, with figures and tables: {runs / 'report' / 'report.html'}",
        f"Next, the same on a folder of your images: {Path(sys.executable).parent}/python -m "
        f"vit_registers.analyze all --checkpoint={first} --data=FOLDER --out=report",
    ]
    return lines


def main() -> None:
    """The command line."""
    if len(sys.argv) != 2:
        cli.fail(DataError("give the folder of the runs, as in: python -m tools.demo_summary runs"))
    try:
        print("\n".join(summary(Path(sys.argv[1]))))
    except DataError as error:
        cli.fail(error)


if __name__ == "__main__":
    main()
