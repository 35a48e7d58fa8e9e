"""TokenLayout: which tokens a model has, in which order, and on which grids.

Order: cls | registers | summaries, coarse level to fine | patches, each grid row-major. Only this file
defines the position of a group; other modules use the slices of a layout.

Axis letters of the project, used as name suffixes (`resid_BxTxD`):

    B batch             H, W image rows, columns (px)   C channels
    T tokens, all       P patches                       R registers
    S summary tokens    D width                         N heads
    K head dim          F mlp width                     L layers
    Y classes           1 broadcast
"""

import dataclasses
import math

from vit_registers.errors import ConfigError

Grid = tuple[int, int]  # rows, columns


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """The token groups of one model at one image size. Slices of absent groups are empty."""

    has_cls: bool
    num_registers: int
    summary_grids: tuple[Grid, ...]  # coarse to fine
    patch_grid: Grid

    @property
    def cls(self) -> slice:
        return slice(0, int(self.has_cls))

    @property
    def registers(self) -> slice:
        return slice(self.cls.stop, self.cls.stop + self.num_registers)

    @property
    def summaries(self) -> slice:
        return slice(self.registers.stop, self.registers.stop + self.num_summaries)

    @property
    def patches(self) -> slice:
        return slice(self.summaries.stop, self.num_tokens)

    @property
    def groups(self) -> dict[str, slice]:
        """The groups that are not empty, in order, by name: cls, registers, summaries, patches."""
        groups = {name: getattr(self, name) for name in ("cls", "registers", "summaries", "patches")}
        return {name: where for name, where in groups.items() if where.stop > where.start}

    @property
    def level_groups(self) -> dict[str, slice]:
        """As `groups`, with each summary level as a separate group."""
        names = [f"summary {rows} x {columns}" for rows, columns in self.summary_grids]
        own = {name: where for name, where in self.groups.items() if name in ("cls", "registers")}
        return own | dict(zip([*names, "patches"], self.grid_slices, strict=True))

    @property
    def grids(self) -> tuple[Grid, ...]:
        """All grids, coarse to fine: the summary levels, then the patches."""
        return (*self.summary_grids, self.patch_grid)

    @property
    def grid_slices(self) -> tuple[slice, ...]:
        """The slice of each of `grids`."""
        slices, start = [], self.registers.stop
        for rows, columns in self.grids:
            slices.append(slice(start, start + rows * columns))
            start += rows * columns
        return tuple(slices)

    @property
    def num_summaries(self) -> int:
        return sum(math.prod(grid) for grid in self.summary_grids)

    @property
    def num_patches(self) -> int:
        return math.prod(self.patch_grid)

    @property
    def num_tokens(self) -> int:
        return self.summaries.stop + self.num_patches


def summary_grids(patch_grid: Grid, factor: int | None) -> tuple[Grid, ...]:
    """The summary grids of `factor` k, coarsest first: repeated floor division of the patch grid by k.

    arXiv:2601.15506 uses square grids: 14 x 14 gives 4, 9, 17 and 59 tokens for k = 5, 4, 3 and 2. A sequence
    has a grid of one row, and only its columns are divided: 1 x 256 gives 1 x 1, 1 x 4, 1 x 16 and 1 x 64 for
    k = 4. Empty for factor None. Raises ConfigError if k < 2 or k is larger than a side that is divided.
    """
    if factor is None:
        return ()
    (rows, columns), is_sequence = patch_grid, patch_grid[0] == 1
    most = columns if is_sequence else min(patch_grid)
    if not 2 <= factor <= most:
        raise ConfigError(
            f"model.summary_factor={factor} does not fit the patch grid of {rows} x {columns}: "
            f"it must be 2 to {most}, or None for no summaries"
        )
    grids = []
    while min(rows := rows if is_sequence else rows // factor, columns := columns // factor) > 0:
        grids.append((rows, columns))
    return tuple(reversed(grids))


def patch_grid(image_size: tuple[int, int], patch_size: int) -> Grid:
    """(rows, columns) of patches. Raises ConfigError if the patch size does not divide the image."""
    height, width = image_size
    if height % patch_size or width % patch_size or not height or not width:
        raise ConfigError(
            f"an image of {height} x {width} px does not divide into patches of {patch_size} px: "
            "change model.patch_size or the image size"
        )
    return height // patch_size, width // patch_size
