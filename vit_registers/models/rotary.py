"""Rotary positions: queries and keys are rotated by angles that are linear in the coordinates of a token.

The score of a rotated query and a rotated key depends on the difference of their coordinates only
(arXiv:2104.09864; in two dimensions arXiv:2403.13298). Tokens without coordinates are not rotated.

Axis letters beside those of tokens.py: A angles, one for each pair of channels of a head.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.errors import ConfigError
from vit_registers.models.tokens import Grid, TokenLayout

COORDINATES = ("centres", "centres_max", "centres_min", "index")
PAIRS = ("half", "interleaved")
ORDERS = ("yx", "xy")
IN_TRAINING = ("shift", "jitter", "rescale")  # arguments that evaluation does not read
PERIODS = ("float32", "bfloat16")
BASE = 100.0  # of DINOv3


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Rotary:
    """A rotation of heads of one width, on any grid. See `rope2d` for its settings."""

    frequency_2xA: np.ndarray  # float64: radians for a unit of the first and of the second coordinate
    coordinates: str
    reference: int
    offset: float
    order: str
    is_interleaved: bool
    is_learned: bool  # frequencies are parameters of each block and head, and begin at rotated ones of these
    has_summaries: bool
    shift: float
    jitter: float
    rescale: float

    @property
    def is_jittered(self) -> bool:
        """Whether coordinates are changed at random in training."""
        return bool(self.shift) or self.jitter != 1.0 or self.rescale != 1.0

    @property
    def periods(self) -> np.ndarray:
        """The K/4 periods of an axis, float32; see `rope2d`."""
        unit = 1.0 if self.coordinates == "index" else 2.0 * math.pi
        return (unit / self.frequency_2xA[0, : self.frequency_2xA.shape[1] // 2]).astype(np.float32)

    def coords_Tx2(self, layout: TokenLayout) -> np.ndarray:
        """The coordinates of all tokens in the order of the angles, float64; 0 where there are none.

        A summary has those of the centre of its cell, on the grid of patches.
        """
        coords_Tx2 = np.zeros((layout.num_tokens, 2))
        for grid, where in zip(layout.grids, layout.grid_slices, strict=True):
            if where == layout.patches or self.has_summaries:
                coords_Tx2[where] = self._grid_coords(grid, layout.patch_grid)
        return coords_Tx2

    def _grid_coords(self, grid: Grid, patch_grid: Grid) -> np.ndarray:
        denominators = {
            "centres": patch_grid,
            "centres_max": (max(patch_grid),) * 2,
            "centres_min": (min(patch_grid),) * 2,
        }
        axes = []
        for i, (cells, patches) in enumerate(zip(grid, patch_grid, strict=True)):
            index = (np.arange(cells) + 0.5) * patches / cells - 0.5 + self.offset
            if self.coordinates != "index":
                axes.append(2.0 * (index + 0.5) / denominators[self.coordinates][i] - 1.0)
            else:
                axes.append(index / patches * self.reference if self.reference else index)
        y, x = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
        return np.stack((y, x) if self.order == "yx" else (x, y), axis=1)

    def rotated_T(self, layout: TokenLayout) -> np.ndarray:
        """True for tokens that are rotated."""
        is_rotated_T = np.zeros(layout.num_tokens, bool)
        is_rotated_T[layout.summaries if self.has_summaries else layout.patches] = True
        is_rotated_T[layout.patches] = True
        return is_rotated_T

    def at(self, layout: TokenLayout, key: jax.Array | None = None) -> "Rotation":
        """The rotation of the tokens of `layout`, with coordinates that are drawn if there is a key.

        As in DINOv3's code: a shift of each axis, uniform in [-shift, shift], then a factor for each axis,
        log-uniform in [1 / jitter, jitter], then one for both, log-uniform in [1 / rescale, rescale]. They
        are the same for all tokens, images and blocks of a forward pass.
        """
        coords_Tx2 = self.coords_Tx2(layout)
        if key is None or not self.is_jittered:
            if self.is_learned:
                return Rotation(self.is_interleaved, coords_Tx2=coords_Tx2.astype(np.float32))
            angles_TxA = coords_Tx2 @ self.frequency_2xA
            cos_TxA, sin_TxA = (f(angles_TxA).astype(np.float32) for f in (np.cos, np.sin))
            return Rotation(self.is_interleaved, cos_TxA=cos_TxA, sin_TxA=sin_TxA)
        keys = jax.random.split(key, 3)
        shift_2 = jax.random.uniform(keys[0], (2,), minval=-self.shift, maxval=self.shift)
        bound = math.log(self.jitter)
        jitter_2 = jnp.exp(jax.random.uniform(keys[1], (2,), minval=-bound, maxval=bound))
        bound = math.log(self.rescale)
        rescale_1 = jnp.exp(jax.random.uniform(keys[2], (1,), minval=-bound, maxval=bound))
        drawn_Tx2 = (jnp.asarray(coords_Tx2, jnp.float32) + shift_2[None]) * (jitter_2 * rescale_1)[None]
        drawn_Tx2 = jnp.where(self.rotated_T(layout)[:, None], drawn_Tx2, 0.0)
        if self.is_learned:
            return Rotation(self.is_interleaved, coords_Tx2=drawn_Tx2)
        angles_TxA = _angles(drawn_Tx2, jnp.asarray(self.frequency_2xA, jnp.float32))
        return Rotation(self.is_interleaved, cos_TxA=jnp.cos(angles_TxA), sin_TxA=jnp.sin(angles_TxA))

    def init(self, key: jax.Array, num_heads: int) -> jax.Array:
        """Initial frequencies frequency_2xNxA of a block: each head turns the two axes by a random angle.

        As in arXiv:2403.13298, where both halves of the angles have the same frequencies, along axes at a
        right angle.
        """
        turn_Nx1 = jax.random.uniform(key, (num_heads, 1), maxval=2.0 * math.pi)
        along_1xA = jnp.asarray(self.frequency_2xA.sum(axis=0), jnp.float32)[None]
        is_second_1xA = jnp.asarray(self.frequency_2xA[1] != 0)[None]
        turn_NxA = turn_Nx1 + jnp.where(is_second_1xA, math.pi / 2, 0.0)
        return jnp.stack([along_1xA * jnp.cos(turn_NxA), along_1xA * jnp.sin(turn_NxA)])


class Rotation(NamedTuple):
    """What the blocks need of a rotation: cosines and sines, or coordinates if frequencies are learned.

    Arrays of numpy are constants of the compiled program.
    """

    is_interleaved: bool
    cos_TxA: np.ndarray | jax.Array | None = None
    sin_TxA: np.ndarray | jax.Array | None = None
    coords_Tx2: np.ndarray | jax.Array | None = None

    def with_unseen(self) -> "Rotation":
        """The rotation with one more token, which is not rotated."""
        more = [(0, 1), (0, 0)]
        if self.coords_Tx2 is not None:
            return self._replace(coords_Tx2=jnp.pad(self.coords_Tx2, more))
        assert self.cos_TxA is not None and self.sin_TxA is not None
        return self._replace(
            cos_TxA=jnp.pad(self.cos_TxA, more, constant_values=1.0), sin_TxA=jnp.pad(self.sin_TxA, more)
        )

    def rotate(self, x_BxTxNxK: jax.Array, frequency_2xNxA: jax.Array | None) -> jax.Array:
        """x in its dtype, rotated in float32. `frequency_2xNxA` are learned frequencies.

        Pair i of channels is (i, i + K/2), or (2i, 2i + 1) if pairs are interleaved.
        """
        if self.coords_Tx2 is not None:
            assert frequency_2xNxA is not None
            angles_TxNxA = _angles(jnp.asarray(self.coords_Tx2), frequency_2xNxA)
            cos_TxNxA, sin_TxNxA = jnp.cos(angles_TxNxA), jnp.sin(angles_TxNxA)
        else:
            cos_TxNxA, sin_TxNxA = (jnp.asarray(one)[:, None] for one in (self.cos_TxA, self.sin_TxA))
        cos, sin = cos_TxNxA[None], sin_TxNxA[None]
        x = x_BxTxNxK.astype(jnp.float32)
        if self.is_interleaved:
            x = x.reshape(*x.shape[:-1], -1, 2)
            first, second = x[..., 0], x[..., 1]
        else:
            first, second = jnp.split(x, 2, axis=-1)
        turned = (first * cos - second * sin, second * cos + first * sin)
        joined = jnp.stack(turned, axis=-1) if self.is_interleaved else jnp.concatenate(turned, axis=-1)
        return joined.reshape(x_BxTxNxK.shape).astype(x_BxTxNxK.dtype)


def _angles(coords_Tx2: jax.Array, frequency: jax.Array) -> jax.Array:
    """angles [T, ...] of frequencies [2, ...], float32. A matrix product might be of lower precision."""
    first, second = (
        coords_Tx2[:, i].reshape(-1, *[1] * (frequency.ndim - 1)) * frequency[i][None] for i in range(2)
    )
    return first + second


def rope2d(
    head_width: int,
    base: float = BASE,
    min_period: float = 0.0,
    max_period: float = 0.0,
    coordinates: str = "centres",
    reference: int = 0,
    offset: float = 0.0,
    order: str = "yx",
    pairs: str = "half",
    learned: bool = False,
    summaries: bool = True,
    shift: float = 0.0,
    jitter: float = 1.0,
    rescale: float = 1.0,
    periods: str = "float32",
) -> Rotary:
    """The rotation that the arguments describe; those of DINOv3 are the defaults.

    Half of the angles belong to the first coordinate (`order`) and half to the second. Their periods are
    base ** (4 i / K), i < K/4, or K/4 of them from min_period to max_period, evenly spaced in the logarithm;
    rounded to bfloat16 with periods="bfloat16", as in some files of DINOv3.
    `coordinates`: centres (of patches, from -1 to 1 along each axis), centres_max and centres_min (both axes
    divided by the longer or the shorter side), for which an angle is 2 pi x / period; or index (of row and
    column, plus `offset`, and scaled so that a side counts `reference` patches, if that is not 0), for which
    it is x / period. `pairs` of channels: half or interleaved; see Rotation.rotate.
    `learned`: see Rotary.init. `summaries`: whether summary tokens are rotated as well. `shift`, `jitter`,
    `rescale`: see Rotary.at.

    Raises ConfigError for a value out of range.
    """
    _check_names({"coordinates": coordinates, "order": order, "pairs": pairs, "periods": periods})
    least = {"reference": (reference, 0), "shift": (shift, 0), "jitter": (jitter, 1), "rescale": (rescale, 1)}
    for name, (value, minimum) in least.items():
        if value < minimum:
            _refuse(f"{name}={value}", f"be >= {minimum}")
    if coordinates != "index" and reference:
        _refuse(f"reference={reference}", "be left out, or coordinates be 'index'")
    if head_width % 4:
        _refuse(f"{head_width} channels of a head", "be a multiple of 4: set model.num_heads")
    period = _periods(head_width // 4, base, min_period, max_period)
    if periods == "bfloat16":
        period = period.astype(np.float32).astype(jnp.bfloat16).astype(np.float64)
    frequency = (1.0 if coordinates == "index" else 2.0 * math.pi) / period
    zeros = np.zeros(head_width // 4)
    return Rotary(
        frequency_2xA=np.stack([np.append(frequency, zeros), np.append(zeros, frequency)]),
        coordinates=coordinates,
        reference=reference,
        offset=offset,
        order=order,
        is_interleaved=pairs == "interleaved",
        is_learned=learned,
        has_summaries=summaries,
        shift=shift,
        jitter=jitter,
        rescale=rescale,
    )


def _check_names(values: Mapping[str, str]) -> None:
    names = {"coordinates": COORDINATES, "order": ORDERS, "pairs": PAIRS, "periods": PERIODS}
    for name, value in values.items():
        if value not in names[name]:
            _refuse(f"{name}={value!r}", f"be one of {', '.join(names[name])}")


def _periods(number: int, base: float, min_period: float, max_period: float) -> np.ndarray:
    if bool(min_period) != bool(max_period) or not 0 <= min_period <= max_period:
        _refuse(f"min_period={min_period}, max_period={max_period}", "both be > 0, and in order")
    if base <= 0:
        _refuse(f"base={base}", "be > 0")
    if min_period and base != BASE:
        _refuse(f"base={base}, min_period={min_period}", "have one of the two")
    if min_period:
        return min_period * (max_period / min_period) ** np.linspace(0.0, 1.0, number)
    return np.power(base, np.arange(number) / number)


def _refuse(what: str, must: str) -> None:
    raise ConfigError(f"model.positions: rope2d with {what}: must {must}")
