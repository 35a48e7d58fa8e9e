"""Mean attention maps over a data set: entropy, centre and similarity."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vit_registers.analysis.measures.severity import attention_entropy, cosine_similarity, finite


class Focus(NamedTuple):
    """The spread of attention maps over the patch grid. NaN for a map of zeros."""

    entropy_nats_E: np.ndarray
    entropy_share_E: np.ndarray | None  # 1: uniform; 0: all on one patch; None: a grid of one patch
    centre_patches_Ex2: np.ndarray  # (y, x); the middle of the first patch is (0, 0)
    distance_patches_E: np.ndarray  # from the centre to the middle of the grid


class MapSums:
    """The mean of maps over batches, in memory of one map per query.

    arXiv:2309.16588 (figure 16) calls these maps positional focus: rows of the last block's attention, here
    averaged over heads. Maps are not normalised: images with more attention on patches have more weight.
    """

    def __init__(self) -> None:
        self.num_images = 0
        self._sum_ExHxW: np.ndarray | None = None

    def add(self, maps_BxExHxW: np.ndarray) -> None:
        """Adds a batch, of E queries such as cls and the registers. DataError: values not finite."""
        sum_ExHxW = finite(maps_BxExHxW, "the attention maps").sum(axis=0)
        assert self._sum_ExHxW is None or self._sum_ExHxW.shape == sum_ExHxW.shape, "maps of another shape"
        self._sum_ExHxW = sum_ExHxW if self._sum_ExHxW is None else self._sum_ExHxW + sum_ExHxW
        self.num_images += len(maps_BxExHxW)

    @property
    def mean_ExHxW(self) -> np.ndarray:
        """The mean map per query, of all batches so far."""
        assert self._sum_ExHxW is not None, "no maps were added"
        return self._sum_ExHxW / self.num_images


def focus(map_ExHxW: np.ndarray) -> Focus:
    """Entropy and centre of mass of each map, which is divided by its sum first.

    The entropy's share is of log(H W), the entropy of a uniform map. Points are (y, x) in patches.
    """
    num_maps, rows, columns = np.shape(map_ExHxW)
    nats_E, share_E = attention_entropy(np.reshape(map_ExHxW, (num_maps, rows * columns)))
    map_ExHxW = np.asarray(map_ExHxW, np.float64)
    moments = map_ExHxW.sum(axis=2) @ np.arange(rows), map_ExHxW.sum(axis=1) @ np.arange(columns)
    moment_Ex2 = np.stack(moments, axis=-1)
    total_Ex1 = map_ExHxW.sum(axis=(1, 2))[:, None]
    centre_Ex2 = np.divide(moment_Ex2, total_Ex1, out=np.full_like(moment_Ex2, np.nan), where=total_Ex1 > 0)
    middle = np.array([(rows - 1) / 2, (columns - 1) / 2])
    return Focus(nats_E, share_E, centre_Ex2, np.linalg.norm(centre_Ex2 - middle[None], axis=-1))


def map_similarity(maps_BxRxHxW: np.ndarray) -> np.ndarray | None:
    """Mean cosine over all pairs of an image's maps, similarity_B; None for fewer than two maps.

    "Registers in Small Vision Transformers" (OpenReview 5JflRlCt3Q, figure 11) averages it over images, for
    maps of the registers, averaged over heads, as vectors over the patches. Maps of a softmax are not
    negative, so values are between 0 and 1, and high for any two even maps. NaN if a map is zero.
    """
    maps = finite(maps_BxRxHxW, "the attention maps")
    batch, num_maps, rows, columns = maps.shape
    if num_maps < 2:
        return None
    maps_BxRxP = maps.reshape(batch, num_maps, rows * columns)
    first, second = np.triu_indices(num_maps, k=1)
    return cosine_similarity(maps_BxRxP[:, first], maps_BxRxP[:, second]).mean(axis=1)


def group_mass(weight_BxNxExT: np.ndarray, groups: Mapping[str, slice]) -> dict[str, np.ndarray]:
    """The attention of each query to each token group, mass_BxE: sum over tokens, mean over heads.

    Empty groups have 0. The masses of groups that contain every token sum to 1.
    """
    weight_BxExT = finite(weight_BxNxExT, "the attention weights").mean(axis=1)
    return {name: weight_BxExT[..., where].sum(axis=-1) for name, where in groups.items()}
