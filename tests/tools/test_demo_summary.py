"""The end of the demo: its numbers are those of the files."""

import json
import re

import pytest

from tools import demo_summary
from tools.demo_summary import FINDINGS, RESULTS, RUNS, seed_spread, summary
from vit_registers.errors import DataError


@pytest.fixture
def runs(tmp_path):
    """Runs with results and a report."""
    for name, share in zip(RUNS, (0.975, 1.0), strict=True):
        (tmp_path / name / "evaluation").mkdir(parents=True)
        result = {"top1": share, "images": 400}
        (tmp_path / name / "evaluation" / "test-2000.json").write_text(json.dumps(result))
    for name in FINDINGS:
        (tmp_path / "report" / name).mkdir(parents=True)
        (tmp_path / "report" / name / "numbers.json").write_text(json.dumps({"finding": f"Of {name}."}))
    return tmp_path


def test_summary(runs):
    lines = summary(runs)
    assert len(lines) <= 12
    assert lines[1].endswith("4 registers: top-1 97.5 % of 400 test images (standard error 0.8)")
    assert lines[2].endswith("fractal mask: top-1 100.0 % of 400 test images (standard error 0.0)")
    assert "- norms: Of norms." in lines and str(runs / "report" / "report.html") in "\n".join(lines)


def test_the_spread_is_that_of_the_results():
    rows = [seed_spread(row, RESULTS.read_text()) for _, row in RUNS.values()]
    assert all(re.fullmatch(r"\d\.\d\d", row) for row in rows)
    assert seed_spread("no such row", RESULTS.read_text()) is None


def test_what_is_missing_is_named(runs, monkeypatch, capsys):
    (runs / "report" / "norms" / "numbers.json").unlink()
    with pytest.raises(DataError, match="norms"):
        summary(runs)
    monkeypatch.setattr("sys.argv", ["demo_summary", str(runs / "none")])
    with pytest.raises(SystemExit) as stopped:
        demo_summary.main()
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith("error: ")
