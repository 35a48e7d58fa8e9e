"""tools/bench/startup.py, with a stand-in for training that takes longer without a filled cache."""

import sys

import pytest

from tools.bench import startup as bench_startup

FAKE = """
import json, os, pathlib, signal, sys, time
if "--help" in sys.argv:
    sys.exit(0)
if "--config=broken" in sys.argv:
    sys.exit("a line\\nerror: this is why")
assert "--config.run.log_every_steps=1" in sys.argv
run = pathlib.Path(next(a for a in sys.argv if a.startswith("--workdir=")).partition("=")[2])
run.mkdir(parents=True, exist_ok=True)
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
if not cache or not pathlib.Path(cache).exists():
    time.sleep(0.5)
if cache:
    pathlib.Path(cache).mkdir(exist_ok=True)
metrics = run / "metrics.jsonl"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
while not stop:
    done += 1
    with metrics.open("a") as file:
        file.write(json.dumps({"step": done}) + "\\n")
    time.sleep(0.01)
sys.exit("not saved" if "--config=full" in sys.argv else 0)
"""


@pytest.fixture(autouse=True)
def fake(tmp_path, monkeypatch):
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(bench_startup, "TRAIN", (sys.executable, str(tmp_path / "fake.py")))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))  # the caller's own, which must not count


@pytest.mark.slow
def test_starts_and_restarts(tmp_path):
    times = bench_startup.measure(["--config=x"], tmp_path, None)
    slow = ["first start, no cache", "first start, cache empty", "restart, no cache"]
    assert list(times) == [
        "import vit_registers",
        "--help",
        "imports of train",
        *slow,
        "restart, cache filled",
    ]
    assert all(times[name] >= 0.5 for name in slow)
    assert times["restart, cache filled"] < min(times[name] for name in slow)


@pytest.mark.parametrize(("config", "message"), [("broken", "error: this is why"), ("full", "not saved")])
def test_a_command_that_fails(tmp_path, config, message):
    with pytest.raises(RuntimeError, match=f"--config={config} .* ended with 1: {message}"):
        bench_startup.measure([f"--config={config}"], tmp_path, None)
