"""Rehearses what happens to a run on a cluster, with local processes, and says what was lost.

    python -m tools.rehearse                               # 2 processes with 2 fake CPU devices each
    python -m tools.rehearse --processes=4 --devices=2 --events=preempt,kill,storage
    python -m tools.rehearse --store=gs                    # in gs:// of tools.emulator
    python -m tools.rehearse --steps=300 -- --config=configs/digits.py:mask=fractal,k=2

The processes are those of vit_registers.train, joined with --coordinator over loopback. First a run is
trained that nothing disturbs. Then the same run is trained through all events: preempted, killed, slowed
down, without storage, and at the end restarted from its last checkpoint, by all processes and by half of
them. A table says what the processes did. Nothing was lost if metrics.jsonl, without times, and the final
state are those of the undisturbed run: bit for bit with the same devices, and up to rounding with half of
them, whose sums over the batch have another order. The exit code is 1 if something was lost.

Arguments after -- are passed to vit_registers.train.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from absl import logging

os.environ["JAX_PLATFORMS"] = "cpu"  # of this program and of all processes

from tools.emulator import Emulator
from tools.ports import free_port
from tools.rehearsal import life as life_lib
from tools.rehearsal.jobs import Command, Job
from tools.rehearsal.life import EVENTS, LOST_TIMEOUT_S, Life, Row
from tools.rehearsal.losses import compare
from tools.rehearsal.stores import GsStore, LocalStore, Store, enter_small_disk
from vit_registers.errors import UserError

LOGS = "logs"  # in the folder
TOLERANCE = 1e-4
# The large epsilon: Adam divides by it where gradients are rounding only.
TRAIN = ("--config=configs/digits.py:registers=4", "--config.optimizer.eps=1e-4")
_SAVE_EVERY, _LIMIT_S = 10, 600.0


def settings(args: argparse.Namespace, cache: Path) -> list[str]:
    """The flags of all processes."""
    return [
        *(args.train or TRAIN),
        "--config.mesh.data=1",
        "--config.mesh.fsdp=-1",  # every process has a part of the parameters, and writes it
        f"--config.checkpoint.every_steps={_SAVE_EVERY}",
        "--config.checkpoint.max_failed_saves=1000",  # a step takes milliseconds here, and not a second
        f"--config.run.total_steps={args.steps}",
        f"--config.run.eval_every_steps={5 * _SAVE_EVERY}",
        "--config.run.log_every_steps=1",
        "--config.run.log_every_s=0.01",  # every step is printed
        f"--config.run.lost_timeout_s={LOST_TIMEOUT_S:g}",
        f"--config.run.compile_cache={cache}",
    ]


def rehearse(
    args: argparse.Namespace, store: Store, folder: Path, rows: list[Row]
) -> tuple[list[str], list[str]]:
    """(what was lost, what was compared), after adding the events to `rows`.

    Raises RuntimeError if a run cannot go on.
    """
    command = Command(
        settings(args, folder / "compiled"), args.devices, free_port(), store.environment, _LIMIT_S
    )
    reference, run, other = (store.run(name) for name in ("undisturbed", "run", "copy"))
    with Job(command, processes=args.processes, workdir=reference, logs=folder / LOGS / "undisturbed") as job:
        job.wait_until_ended()
        if any(job.codes()):
            raise RuntimeError(f"the undisturbed run failed: {job.ends()}")
    names = [name for name in args.events if name in EVENTS or (name == "storage" and store.outages)]
    with Life(command, store=store, run=run, processes=args.processes, logs=folder / LOGS, rows=rows) as life:
        for number, name in enumerate(names, start=1):
            step = args.steps * number // 20
            life.job.wait_for(lambda step=step: life.job.last_step() >= step, f"step {step}")
            if name == "storage":
                for how in store.outages:
                    life.add(life_lib.lose_storage(life, how, args.storage_s))
            else:
                life.add(EVENTS[name](life))
        step = args.steps * 9 // 10
        life.job.wait_for(lambda: life.job.last_step() >= step, f"step {step}")
        life.add(life_lib.lose_all(life))
        store.copy(run, other)
        life.add(life_lib.finish(life, other, args.processes))
        life.add(life_lib.finish(life, run, args.processes // 2))
    compared, lost = [], list(life.faults)
    for where, processes, tolerance in (
        (other, args.processes, 0.0),
        (run, args.processes // 2, TOLERANCE),
    ):
        result = compare(where, reference, step=args.steps, tolerance=tolerance)
        lost += [f"finished with {life_lib.count(processes)}: {line}" for line in result.lost]
        limit = "bit for bit" if not tolerance else f"up to {tolerance:g}"
        compared.append(
            f"finished with {life_lib.count(processes)}: "
            f"{'differs from' if result.lost else 'equals'} the undisturbed run {limit}; the largest "
            f"difference in the final state is {result.largest:.2g}"
        )
    return lost, compared


@contextlib.contextmanager
def open_store(args: argparse.Namespace, folder: Path) -> Iterator[Store]:
    """The store of --store. A small local disk starts this program again."""
    if args.store == "gs":
        with Emulator() as emulator:
            os.environ.update(emulator.environment)  # this program reads the run folders too
            yield GsStore(emulator)
        return
    disk = folder / "store"
    disk.mkdir(parents=True, exist_ok=True)
    if "storage" in args.events:
        enter_small_disk(disk, "tools.rehearse")
    yield LocalStore(disk)


def table(rows: list[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = ["| event | processes | after | saved | computed twice |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row.event} | {row.processes} | {row.noticed} | {row.saved} | {row.repeated} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.rehearse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = [*EVENTS, "storage"]
    parser.add_argument("--store", choices=("local", "gs"), default="local", help="where run folders are")
    parser.add_argument("--processes", type=int, default=2, help="number of processes, at least 2")
    parser.add_argument("--devices", type=int, default=2, help="fake CPU devices of each")
    parser.add_argument("--steps", type=int, default=600, help="length of the run")
    parser.add_argument("--storage_s", type=float, default=30.0, help="time without storage")
    parser.add_argument("--events", default=",".join(known), help=f"of {', '.join(known)}, in this order")
    parser.add_argument("--folder", type=Path, help="folder for all files; a temporary one if not given")
    parser.add_argument("train", nargs="*", help="flags of vit_registers.train", metavar="-- FLAGS")
    args = parser.parse_args()
    args.events = args.events.split(",")
    if unknown := {*args.events} - {*known}:
        parser.error(f"--events: {', '.join(sorted(unknown))}: must be of {', '.join(known)}")
    if args.folder is not None and (args.folder / LOGS).exists():
        parser.error(f"--folder={args.folder} holds an earlier rehearsal: give another one")
    if args.processes < 2:
        parser.error(f"--processes={args.processes}: must be at least 2")
    return args


def main() -> int:
    """The command line."""
    args = parse()
    logging.set_verbosity(logging.ERROR)  # Orbax warns of files that its own reader does not need
    folder = args.folder or Path(tempfile.mkdtemp(prefix="rehearsal-"))
    rows: list[Row] = []
    with open_store(args, folder) as store:
        if "storage" in args.events and not store.outages:
            print("storage is not lost: this system allows no mount namespace for a small disk")
        try:
            lost, compared = rehearse(args, store, folder, rows)
        except (RuntimeError, UserError) as error:
            lost, compared = [str(error)], []
    print(table(rows))
    print(f"\nlost: {'nothing' if not lost else ''}".rstrip())
    for line in [*lost, *compared, f"computed twice: {sum(row.repeated for row in rows)} steps"]:
        print(line)
    print(f"logs of all processes: {folder / LOGS}")
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
