"""Measures the time from the command to the end of the first step.

A first start and a restart are measured, with and without JAX's compilation cache.

    python -m tools.bench.startup                                 # digits: one to two minutes on 2 CPU cores
    python -m tools.bench.startup --rounds=3 -- --config=configs/vit_s16_i1k.py --config.data.data_dir=...

Arguments after -- are passed to vit_registers.train. Each start is a separate process: it runs until its
first step is in metrics.jsonl, is stopped with SIGTERM, saves, and ends. A restart resumes from there. Each
cache is a separate folder, empty at first.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vit_registers.runs.metrics_log import read_records

TRAIN = (sys.executable, "-m", "vit_registers.train")
_POLL_S = 0.005


def steps_logged(run: Path) -> int:
    """The last step in the run's metrics, or 0 if there is none."""
    return max((record["step"] for record in read_records(run).records), default=0)


def first_step_s(settings: list[str], run: Path, environment: dict[str, str]) -> float:
    """Seconds from the command to the first step that it logs.

    Then stops the command, and waits until it has saved. Raises RuntimeError if the command fails.
    """
    command = [*TRAIN, *settings, f"--workdir={run}", "--config.run.log_every_steps=1"]
    before = steps_logged(run)
    elapsed = None
    with tempfile.TemporaryFile("w+") as log:
        started = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            while process.poll() is None and elapsed is None:
                if steps_logged(run) > before:
                    elapsed = time.monotonic() - started
                time.sleep(_POLL_S)
            process.send_signal(signal.SIGTERM)  # no effect on a process that has ended
            process.wait(timeout=300)
        finally:
            process.kill()
            process.wait()
        if elapsed is None or process.returncode:
            log.seek(0)
            lines = log.read().strip().splitlines() or ["no output"]
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {lines[-1]}")
    return elapsed


def command_s(command: list[str], environment: dict[str, str]) -> float:
    """Seconds of a command."""
    started = time.monotonic()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - started


def measure(settings: list[str], folder: Path, min_compile_s: str | None) -> dict[str, float]:
    """{kind of start: seconds}, each measured once, in `folder`."""
    plain = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
    plain["JAX_COMPILATION_CACHE_DIR"] = ""  # none, rather than that of the user
    cached = plain | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    if min_compile_s is not None:
        cached["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = min_compile_s
    return {
        "import vit_registers": command_s([sys.executable, "-c", "import vit_registers"], plain),
        "--help": command_s([*TRAIN, "--help"], plain),
        "imports of train": command_s([sys.executable, "-c", "import vit_registers.train"], plain),
        "first start, no cache": first_step_s(settings, folder / "plain", plain),
        "first start, cache empty": first_step_s(settings, folder / "cached", cached),
        "restart, no cache": first_step_s(settings, folder / "plain", plain),
        "restart, cache filled": first_step_s(settings, folder / "cached", cached),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.startup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=1, help="number of measurements of each start")
    parser.add_argument(
        "--min_compile_s", help="minimum compile time of programs that JAX caches; 1 if not given"
    )
    parser.add_argument("train", nargs="*", help="flags of vit_registers.train", metavar="-- FLAGS")
    args = parser.parse_args()
    settings = args.train or ["--config=configs/digits.py:registers=4"]
    rounds = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(measure(settings, Path(folder), args.min_compile_s))
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} CPU cores; from the command to the end of the first step: {' '.join(settings)}")
    for name in rounds[0]:
        times = [times[name] for times in rounds]
        print(f"{name:<26}{statistics.median(times):7.2f} s  ({min(times):.2f} to {max(times):.2f})")
    ratio = statistics.median(r["restart, cache filled"] / r["restart, no cache"] for r in rounds)
    print(f"restart with the cache takes {ratio:.2f} of the time without")


if __name__ == "__main__":
    main()
