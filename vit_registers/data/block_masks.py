"""Masks of rectangular blocks for masked image modelling, drawn on the host (arXiv:2106.08254, DINOv2).

A batch is masked in groups of images, as the released code masks the batch of every GPU. A group of B images
has 2 B global crops, of which a share is masked: slot k of n masked crops has a number of masked patches
between those of two neighbouring ratios. The slots are shuffled over all crops of the group, so the two crops
of an image are masked independently. Pure numpy.
"""

import dataclasses
import math

import numpy as np

_TRIES = 10  # per block; after that many without success the mask is complete


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockMasks:
    """How the crops of one group are masked.

    With `is_exact`, slot k masks exactly int(P r_{k+1}) patches: after the blocks, single patches at random
    places complete the number. Every group then has the same number of masked patches (`num_masked`). Without
    it, as in DINOv2's code, slot k draws its ratio between r_k and r_{k+1}, and a mask whose blocks find no
    place has fewer patches; `num_masked` is an upper bound.
    """

    grid: tuple[int, int]  # rows, columns
    num_crops: int  # of a group: 2 per image
    share: float = 0.5  # of the crops that are masked
    ratios: tuple[float, float] = (0.1, 0.5)  # of the patches of a masked crop
    min_patches: int = 4  # of a block; 1 for grids as small as 4 x 4
    min_aspect: float = 0.3  # blocks have an aspect ratio between this and its inverse
    is_exact: bool = True

    @property
    def num_patches(self) -> int:
        """The patches of a crop."""
        return math.prod(self.grid)

    @property
    def _borders(self) -> np.ndarray:
        return np.linspace(*self.ratios, int(self.num_crops * self.share) + 1)

    @property
    def most(self) -> tuple[int, ...]:
        """The largest number of masked patches of each slot."""
        return tuple(int(self.num_patches * ratio) for ratio in self._borders[1:])

    @property
    def num_masked(self) -> int:
        """The masked patches of a group: exactly, or at most."""
        return sum(self.most)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """is_masked_MxP, bool: the masks of the crops of one group."""
        masks = np.zeros((self.num_crops, self.num_patches), bool)
        borders = self._borders
        for k, most in enumerate(self.most):
            count = most if self.is_exact else int(self.num_patches * rng.uniform(borders[k], borders[k + 1]))
            mask = self.draw_one(rng, count).ravel()
            if self.is_exact:
                mask[rng.choice(np.flatnonzero(~mask), count - mask.sum(), replace=False)] = True
            masks[k] = mask
        return masks[rng.permutation(self.num_crops)]

    def draw_one(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """One mask of blocks on the grid, of at most `count` patches."""
        is_masked = np.zeros(self.grid, bool)
        left = count
        while left > 0 and (added := self._add_block(rng, is_masked, min(left, self.num_patches // 2))):
            left -= added
        return is_masked

    def _add_block(self, rng: np.random.Generator, is_masked: np.ndarray, budget: int) -> int:
        """The number of patches that a new block masks, in place; 0 if none fits the budget."""
        rows, columns = self.grid
        limit = math.log(1 / self.min_aspect)
        for _ in range(_TRIES):
            # With a budget below min_patches, the area lies between the two, as Python's uniform has it.
            area = self.min_patches + (budget - self.min_patches) * rng.random()
            aspect = math.exp(rng.uniform(-limit, limit))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (height < rows and width < columns):
                continue
            top, left = rng.integers(0, rows - height + 1), rng.integers(0, columns - width + 1)
            block = is_masked[top : top + height, left : left + width]
            added = block.size - int(block.sum())
            if 0 < added <= budget:
                block[...] = True
                return added
        return 0


def batch_masks(masks: BlockMasks, *, seed: int, step: int, first: int, number: int) -> np.ndarray:
    """is_masked_Bx2xP for `number` images of the global batch of a step, from image `first` on.

    The masks are a function of the seed, the step and the place in the batch. A group that is only partly
    among these images is drawn whole.
    """
    images = masks.num_crops // 2
    groups = range(first // images, -(-(first + number) // images))
    drawn = [masks.draw(np.random.default_rng([seed, step, group])) for group in groups]
    # A group is drawn crop-major: all first crops, then all second ones.
    whole = np.concatenate([one.reshape(2, images, -1).swapaxes(0, 1) for one in drawn])
    return whole[first - groups[0] * images :][:number]
