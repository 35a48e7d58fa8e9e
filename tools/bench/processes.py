"""Measures what several processes add to a run: the time to meet, to wait for each other and to save.

    python -m tools.bench.processes              # 2, 4 and 8 processes: some minutes on 2 CPU cores
    python -m tools.bench.processes --counts=2,4 --rounds=3

The processes run on this machine, with one fake CPU device each, and use the code of vit_registers.train. A
line a + b N is fitted to the medians and extended to 64 and 256 processes. Where processes have to share
cores, the times are mostly those of the CPU. What process 0 does alone is measured at 64 and 256 directly.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from tools.ports import free_port
from vit_registers.config import Checkpoint, Config, Data, Mesh, Run
from vit_registers.data.order import training_order
from vit_registers.runs.checkpoint_folder import checkpoint_root
from vit_registers.runs.checkpoints import Checkpoints
from vit_registers.runs.manifest import MANIFEST
from vit_registers.runs.retention import is_any, reason
from vit_registers.runtime import distributed, rendezvous
from vit_registers.runtime.barrier import Barrier
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training import sharding
from vit_registers.training.state import TrainState

LATER = (64, 256)  # processes: hosts with 4 chips each, or one process per chip
IMAGES = 1_281_167
_STATE_MIB, _BARRIERS, _SAVES, _CALLS = 16, 20, 5, 200
_LIMIT_S = 300.0
SET, LIST = "a key set", "{} keys listed"
TOGETHER, ALONE = "together", "alone"
CONFIG = Config(checkpoint=Checkpoint(keep_last=_SAVES), run=Run(total_steps=1))
Times = dict[str, float]


# --- in each process -----------------------------------------------------------------------------


def _timed(call: Callable[[], object], number: int = 1) -> float:
    started = time.monotonic()
    for _ in range(number):
        call()
    return (time.monotonic() - started) / number


def work(port: int, count: int, me: int, run: str) -> None:
    """One process of a job: says that it is ready, waits for a line, and prints its times as JSON."""
    print("ready", flush=True)
    sys.stdin.readline()
    times: Times = {}
    times["meet and join, s"] = _timed(
        lambda: distributed.join(
            is_cluster=False,
            coordinator=f"127.0.0.1:{port}",
            num_processes=count,
            process_id=me,
            connect_timeout_s=_LIMIT_S,
            lost_timeout_s=_LIMIT_S,
        )
    )
    with distributed.together(_LIMIT_S):
        times["compare settings, ms"] = 1000 * _timed(lambda: rendezvous.require_same({"a": 1}))
        is_any(False)  # compiles
        times["agree on a flag, ms"] = 1000 * _timed(lambda: is_any(False), _BARRIERS)
        barrier, keys = Barrier(reason), map(str, range(_BARRIERS))
        barrier.begin()
        times["barrier, ms"] = 1000 * _timed(lambda: barrier(key=next(keys), timeout_ms=60_000), _BARRIERS)
        mesh = make_mesh(Mesh(data=1, fsdp=count))
        with jax.set_mesh(mesh):
            times |= _save(run, mesh)
        times[f"open a run folder with {_SAVES} checkpoints, s"] = _timed(lambda: _open(run))
        alone = {} if me else _ask_store()
    print(json.dumps({TOGETHER: times, ALONE: alone}), flush=True)


def _save(run: str, mesh: jax.sharding.Mesh) -> Times:
    layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    whole = sharding.replicated(mesh)
    num_rows = _STATE_MIB * 256 // jax.process_count() * jax.process_count()
    rows = np.zeros((num_rows, 1024), np.float32)
    params = {"kernel": jax.make_array_from_callback(rows.shape, layout, lambda where: rows[where])}

    def state(step: int) -> TrainState:
        number = jax.make_array_from_callback((), whole, lambda _: np.int32(step))
        return TrainState(step=number, params=params, opt_state=(), ema=None)

    steps = iter(range(1, 2 + _SAVES))
    with Checkpoints(run, CONFIG) as checkpoints:
        checkpoints.save_surely(state(next(steps)), None)
        taken = [_timed(lambda: checkpoints.save_surely(state(next(steps)), None)) for _ in range(_SAVES)]
    opened = rendezvous.key_value_store().key_value_dir_get(f"{rendezvous.KEYS}saves/")  # of the last save
    folder = checkpoint_root(run) / str(1 + _SAVES)
    return {
        f"save {_STATE_MIB} MiB to the commit, s": statistics.median(taken),
        "barriers of a save": sum(key.endswith("/open") for key, _ in opened),
        "files of a checkpoint": len(json.loads((folder / MANIFEST).read_text())["files"]),
    }


def _open(run: str) -> None:
    with Checkpoints(run, CONFIG) as checkpoints:
        assert checkpoints.restorable_step


def _ask_store() -> Times:
    """Seconds that process 0 takes to set a key of JAX's key-value store, and to list those of a barrier."""
    client, keys = rendezvous.key_value_store(), map(str, range(_CALLS))
    times = {SET: _timed(lambda: client.key_value_set(f"bench/{next(keys)}", ""), _CALLS)}
    for number in LATER:
        for key in range(number):
            client.key_value_set(f"bench-{number}/{key}", "")
        folder = f"bench-{number}/"
        times[LIST.format(number)] = _timed(lambda folder=folder: client.key_value_dir_get(folder), _CALLS)
    return times


# --- in this program -----------------------------------------------------------------------------


def measure(count: int) -> dict[str, Times]:
    """The times of one job of `count` processes. Raises RuntimeError if it fails.

    TOGETHER are those of the slowest process, ALONE those of what process 0 does alone, in seconds.
    """
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    with tempfile.TemporaryDirectory() as folder:
        shared = [str(free_port()), str(count)]
        jobs = [
            subprocess.Popen(
                [sys.executable, "-m", "tools.bench.processes", "--work", *shared, str(me), f"{folder}/run"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for me in range(count)
        ]
        try:
            for job in jobs:
                assert job.stdout is not None and job.stdout.readline() == "ready\n"
            for job in jobs:
                assert job.stdin is not None
                job.stdin.write("\n")
                job.stdin.flush()
            lines = [job.communicate(timeout=_LIMIT_S)[0].splitlines()[-1:] for job in jobs]
        finally:
            for job in jobs:
                job.kill()
                job.wait()
    if any(job.returncode for job in jobs):
        raise RuntimeError(f"exit codes of {count} processes: {[job.returncode for job in jobs]}")
    found = [json.loads(line) for (line,) in lines]
    slowest = {name: max(times[TOGETHER][name] for times in found) for name in found[0][TOGETHER]}
    return {TOGETHER: slowest, ALONE: found[0][ALONE]}


def meeting_s(count: int) -> float:
    """Seconds until process 0 and count - 1 callers have met, all of them threads of this program."""
    port, words = free_port(), {"num_processes": count, "timeout_s": _LIMIT_S}
    calls = [
        threading.Thread(
            target=rendezvous.meet, args=(f"127.0.0.1:{port}",), kwargs={"process_id": me, **words}
        )
        for me in range(count)
    ]
    started = time.monotonic()
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    return time.monotonic() - started


def order_bytes(images: int) -> tuple[float, float]:
    """(kept, peak) bytes for each image of the order of examples, of a batch that straddles two epochs."""
    order = training_order(Data(), images, seed=0, groups=1)
    tracemalloc.start()
    order.records(np.arange(images - 512, images + 512))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept / images, peak / images


def line(counts: list[int], values: list[float]) -> tuple[float, float]:
    """(a, b) of the line a + b N with the least squares."""
    b, a = np.polyfit(counts, values, 1)
    return float(a), float(b)


def row(name: str, counts: list[int], values: list[float]) -> str:
    """A row of the table: the values, the line through them, and its values at LATER."""
    a, b = line(counts, values)
    fit = f"{a:.3g} + {b:.3g} N" if b > 0 else "does not grow"
    later = [f"{a + b * number:.3g}" if b > 0 else f"{max(values):.3g}" for number in LATER]
    return f"| {' | '.join([name, *(f'{value:.3g}' for value in values), fit, *later])} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.processes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--counts", default="2,4,8", help="numbers of processes")
    parser.add_argument("--rounds", type=int, default=3, help="jobs of each number; the medians are printed")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        port, count, me, run = args.work
        work(int(port), int(count), int(me), run)
        return
    counts = [int(count) for count in args.counts.split(",")]
    found = {count: [measure(count) for _ in range(args.rounds)] for count in counts}
    print(f"{len(os.sched_getaffinity(0))} CPU cores; medians of {args.rounds} jobs; the slowest process\n")
    print(f"| processes | {' | '.join(map(str, counts))} | a + b N | {' | '.join(map(str, LATER))} |")
    print(f"|---|{'---|' * (len(counts) + 1 + len(LATER))}")
    for name in found[counts[0]][0][TOGETHER]:
        values = [statistics.median(times[TOGETHER][name] for times in found[count]) for count in counts]
        print(row(name, counts, values))
    alone = [times for count in counts for times in found[count]]
    print("\nprocess 0 alone, with JAX's key-value store:")
    for name in (SET, *(LIST.format(number) for number in LATER)):
        print(f"{name}: {1000 * statistics.median(times[ALONE][name] for times in alone):.2f} ms")
    meeting = [f"{count}: {meeting_s(count):.2f} s" for count in (*counts, *LATER)]
    print(f"\nmeeting only, with callers that are threads: {', '.join(meeting)}")
    kept, peak = order_bytes(IMAGES)
    print(f"order of examples, for each image and process: {kept:.1f} bytes kept, {peak:.1f} at the peak")


if __name__ == "__main__":
    main()
