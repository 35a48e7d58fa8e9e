"""Orders of training examples in which the groups of a batch have no class twice. Pure numpy.

Images of one class have captions that say the same. A contrastive loss over a group with two of them would
count each as wrong for the other.
"""

import dataclasses
import functools

import numpy as np

from vit_registers.data.order import Order
from vit_registers.errors import ConfigError

_OF_CLASSES, _OF_IMAGES = 1, 2  # kinds of draws


@functools.lru_cache(maxsize=1 << 14)
def _permutation(number: int, *entropy: int) -> np.ndarray:
    return np.random.default_rng(entropy).permutation(number)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ClassUnique(Order):
    """The order in which each `group` consecutive positions have images of different classes.

    A round is a permutation of the classes, cut into groups; classes that do not fill a group are left out of
    the round. A class has one image in each round, from a stream of permutations of its images. So all
    classes are equally frequent, whatever their number of images. The epoch of a length keeps its size. Any
    position is computed without those before it.
    """

    label_N: np.ndarray  # of all examples; those without a class (-1) do not occur
    group: int

    def __post_init__(self) -> None:
        """Raises ConfigError if the examples have fewer classes than a group."""
        super().__post_init__()
        if self.group > len(self._members):
            raise ConfigError(
                f"objective.image_text.group={self.group}: the {len(self._members)} classes of the training "
                f"split give no {self.group} images of different classes: set at most {len(self._members)}"
            )
        if self.batch_size % self.group:
            raise ConfigError(
                f"data.batch_size={self.batch_size} does not consist of groups of "
                f"objective.image_text.group={self.group}: set it to a multiple"
            )

    @functools.cached_property
    def _members(self) -> list[np.ndarray]:
        """The records of each class that has any."""
        return [np.flatnonzero(self.label_N == label) for label in np.unique(self.label_N) if label >= 0]

    def records(self, position_B: np.ndarray) -> np.ndarray:
        group_B, place_B = np.divmod(np.asarray(position_B, np.int64), self.group)
        round_B, part_B = np.divmod(group_B, len(self._members) // self.group)
        rank_B = part_B * self.group + place_B
        return np.array([self._record(*at) for at in zip(round_B.tolist(), rank_B.tolist(), strict=True)])

    def _record(self, number: int, rank: int) -> int:
        label = int(_permutation(len(self._members), self.seed, _OF_CLASSES, number)[rank])
        members = self._members[label]
        epoch, index = divmod(number, len(members))
        return int(members[_permutation(len(members), self.seed, _OF_IMAGES, label, epoch)[index]])
