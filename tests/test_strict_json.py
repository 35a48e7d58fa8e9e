"""JSON that any reader takes: null for what is not finite, and otherwise the text of Python's json."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from vit_registers.analysis.report.result import Result, Table
from vit_registers.analysis.report.write import ReportEntry, write_entry
from vit_registers.runs.writers import MetricWriter
from vit_registers.strict_json import dumps

ROOT = Path(__file__).parents[1]
NOT_FINITE = (math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf"), jnp.float32("-inf"))


def _read(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("value", NOT_FINITE, ids=lambda value: f"{type(value).__name__} {value}")
def test_what_is_not_finite_is_null(value):
    nested = {"a": value, "b": [1.5, value], "c": ({"d": (value,)},), "e": np.array([[2.0, np.nan]])}
    assert _read(dumps(nested)) == {"a": None, "b": [1.5, None], "c": [{"d": [None]}], "e": [[2.0, None]]}


def test_finite_values_have_the_text_of_pythons_json():
    values = {"b": [1, 0.1, 1e-300, 1e300, -0.0, True, None, "text"], "a": {"c": (2**70, [])}}
    for layout in ({"indent": 1}, {"indent": None}, {"indent": 1, "sort_keys": True}):
        assert dumps(values, **layout) == json.dumps(values, **layout)
    assert _read(dumps([np.int32(3), np.bool_(True), np.float32(0.5), jnp.zeros(2)])) == [
        3,
        True,
        0.5,
        [0, 0],
    ]


def test_files_hold_null(tmp_path):
    writer = MetricWriter(tmp_path, start_step=0, use_tensorboard=False)
    writer.write(5, {"test/loss": math.nan, "test/top1": 0.25, "train/grad_norm": math.inf})
    writer.close()
    record = _read((tmp_path / "metrics.jsonl").read_text())
    assert record == {"step": 5, "test/loss": None, "test/top1": 0.25, "train/grad_norm": None}
    table = Table(title="t", columns=("a", "b"), rows=[(math.nan, np.float32(0.5))])
    folder = write_entry(ReportEntry("norms", "?", "none", Result(definition="", tables=[table])), tmp_path)
    assert _read((folder / "numbers.json").read_text())["tables"][0]["rows"] == [[None, 0.5]]


def test_all_that_is_written_goes_through_it():
    """But for digests, and for messages between processes, which hold text and whole numbers."""
    others = {
        "tools/bench/processes.py",
        "tools/emulator.py",
        "tools/launch/tpu_worker.py",
        "vit_registers/data/sources/tar_index.py",
        "vit_registers/interop/export/files.py",
        "vit_registers/runs/finished_runs.py",
        "vit_registers/runs/sweeps.py",
        "vit_registers/runtime/distributed.py",
        "vit_registers/runtime/rendezvous.py",
        "vit_registers/storage/files.py",
        "vit_registers/storage/object_lock.py",
        "vit_registers/storage/objects.py",
        "vit_registers/strict_json.py",
    }
    files = [*(ROOT / "vit_registers").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    found = {str(p.relative_to(ROOT)) for p in files if "json.dump" in p.read_text()}
    assert found == others
