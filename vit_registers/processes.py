"""The flags with which several processes do the work of one command, and the block in which they do it.

This module imports nothing slow, because programs define their flags before their slow imports.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

flags.disclaim_key_flags()  # the flags are those of the program, so that its --help lists them


def define_flags() -> None:
    """Defines the flags."""
    flags.DEFINE_bool(
        "distributed", False, "Join the other processes of a TPU pod, or of a SLURM or Open MPI job."
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, on any other cluster.")
    flags.DEFINE_integer("num_processes", None, "With --coordinator: the number of processes.")
    flags.DEFINE_integer("process_id", None, "With --coordinator: the number of this process, from 0.")
    flags.DEFINE_float("connect_timeout_s", 300.0, "Seconds that processes wait for the others to start.")


def tell_others(line: str) -> None:
    """Tells the other processes of a job with --coordinator why this one ends, which they would wait for."""
    from vit_registers import cli

    names = ("coordinator", "num_processes", "process_id")
    coordinator, *numbers = (cli.early_flag(name) or "" for name in names)
    if coordinator and all(number.isdecimal() for number in numbers):
        from vit_registers.runtime import rendezvous  # imports JAX

        count, me = map(int, numbers)
        rendezvous.refuse(coordinator, num_processes=count, process_id=me, line=line)


def are_asked_for() -> bool:
    """Whether the flags describe a job."""
    return flags.FLAGS.distributed or flags.FLAGS.coordinator is not None


@contextlib.contextmanager
def job(lost_timeout_s: float) -> Iterator[None]:
    """A block in which all processes of the job work; it ends all of them when one fails.

    Without the flags, this process is alone. Raises ConfigError if the processes do not find each
    other.
    """
    from vit_registers.config import check_value
    from vit_registers.runtime import distributed  # imports JAX

    given = flags.FLAGS
    check_value("run.lost_timeout_s", lost_timeout_s)
    distributed.join(
        is_cluster=given.distributed,
        coordinator=given.coordinator,
        num_processes=given.num_processes,
        process_id=given.process_id,
        connect_timeout_s=given.connect_timeout_s,
        lost_timeout_s=lost_timeout_s,
    )
    with distributed.together(lost_timeout_s):
        yield


def require_same_command(names: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Raises ConfigError if a process has other values of the flags `names`, or other settings.

    data.data_dir may differ, as hosts may have the data in different places.
    """
    from vit_registers.runtime import rendezvous  # imports JAX

    own = {key: value for key, value in settings.items() if key != "data.data_dir"}
    rendezvous.require_same(own | {f"--{name}": flags.FLAGS[name].value for name in names})
