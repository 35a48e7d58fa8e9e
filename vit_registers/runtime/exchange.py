"""Small values that the processes of a job tell each other.

They go through JAX's coordination service, not through the devices: a process may wait for as long as another
one computes, and values need not have a shape. Large arrays are gathered on the devices
(training/sharding.py).
"""

import itertools
import pickle
from collections.abc import Callable
from typing import TypeVar

import jax

from vit_registers.errors import UserError
from vit_registers.runtime.rendezvous import KEYS, key_value_store

T = TypeVar("T")

_LONGEST_MS = 30 * 24 * 3600 * 1000  # distributed.together ends the wait if a process fails
_rounds = itertools.count()  # the same on all processes


def gather(make: Callable[[], T], mesh: jax.sharding.Mesh) -> list[T]:
    """make() of each process, in their order, on every process.

    All processes have to call it, unless `mesh`, which a process works on, has no devices of others: then the
    process is alone. A UserError of one process is raised on all of them. Values are pickled, and may have
    some megabytes.
    """
    if not mesh.is_multi_process:
        return [make()]
    mine, failure = None, None
    try:
        mine = make()
    except UserError as error:
        failure = error
    client, me, here = key_value_store(), jax.process_index(), next(_rounds)
    client.key_value_set_bytes(f"{_place(here)}{me:06d}", pickle.dumps((mine, failure)))
    client.wait_at_barrier(_place(here), _LONGEST_MS)
    found = sorted(client.key_value_dir_get_bytes(_place(here)))
    if here:  # all processes are here, so all of them have read the values of the round before
        client.key_value_delete(f"{_place(here - 1)}{me:06d}")
    values = [pickle.loads(value) for _, value in found]
    for _, error in values:
        if error is not None:
            raise error
    return [value for value, _ in values]


def from_first(make: Callable[[], T], mesh: jax.sharding.Mesh) -> T:
    """make() of process 0, on every process; the others wait for it. Otherwise as `gather`."""
    is_first = not mesh.is_multi_process or jax.process_index() == 0
    value = gather(make if is_first else lambda: None, mesh)[0]
    return value  # pyright: ignore[reportReturnType]  # process 0 has called `make`


def own_share(number: int, mesh: jax.sharding.Mesh) -> range:
    """Which of `number` items this process works on, the others on the rest; all if it is alone on `mesh`."""
    me, count = (jax.process_index(), jax.process_count()) if mesh.is_multi_process else (0, 1)
    return range(number * me // count, number * (me + 1) // count)


def _place(number: int) -> str:
    return f"{KEYS}exchange/{number}/"
