"""The terms of the cls output: patches, registers, cls itself, skip connection (arXiv:2505.05892).

"Register and [CLS] tokens induce a decoupling of local and global features in large ViTs", Lappe and Giese.
Functions take the terms by name, term_BxD each, whose sum is the output of an attention. The paper does not
specify whether terms are taken before or after the output projection. The skip connection is in the space
after projection and LayerScale, so terms that are compared with it must be in that space.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vit_registers.analysis.measures.focus import group_mass
from vit_registers.analysis.measures.severity import (
    ROUNDING,
    Summary,
    cosine_similarity,
    finite,
    mean_pairwise_cosine,
    summarize_values,
)

# If terms cancel, a variance of their sum below this share of their own variance is rounding of float32.
_CANCELLED = 1e-13


class NormTable(NamedTuple):
    """Per image: L2 norms, also of the "full" sum; norm / sum of all terms' norms; cosine with the sum."""

    norm: dict[str, np.ndarray]
    share: dict[str, np.ndarray]
    cosine: dict[str, np.ndarray]  # NaN where a vector is zero

    @classmethod
    def joined(cls, parts: Sequence["NormTable"]) -> "NormTable":
        """The table of all images, from tables of parts of them."""

        def join(column: str) -> dict[str, np.ndarray]:
            first = getattr(parts[0], column)
            return {name: np.concatenate([getattr(part, column)[name] for part in parts]) for name in first}

        return cls(*map(join, cls._fields))

    def summary(self) -> dict[str, dict[str, Summary]]:
        """{"norm": {name: Summary}, "share": ..., "cosine": ...}: mean, median and deviation over images."""
        columns = self._asdict().items()
        return {
            column: {name: summarize_values(x) for name, x in values.items()} for column, values in columns
        }


class RegisterActivations(NamedTuple):
    """How similar the register of highest norm is between images, before and after the norm layer."""

    norm_BxR: np.ndarray
    register: int  # has the highest norm in the most images; the fields below are of this register
    consistency: float  # share of the images in which it has the highest norm
    ratio_B: np.ndarray | None  # highest norm to second highest norm; None for one register
    cosine_before: float | None  # mean over all pairs of images; None: fewer than two images
    cosine_after: float | None
    dimensions: np.ndarray  # of the largest mean activation before the norm, largest first
    mean_before: np.ndarray  # at these dimensions, mean over images
    mean_after: np.ndarray


class CkaSums:
    """Sums for the linear CKA between sums of E terms, from batches, in memory O(E^2 D^2).

    Linear centred kernel alignment (arXiv:2505.05892, equation 4) of column-centred X and Y is
    ||Y'X||^2 / (||X'X|| ||Y'Y||) with Frobenius norms, from 0 to 1. Orthogonal maps and scaling of X or Y do
    not change it. It is biased upward: unrelated X and Y of white noise have D / (N + D), about, and not 0.
    `unbiased_cka` is an estimate without that. Centred sums are merged, since plain sums of products would
    lose small variances beside large means.
    """

    def __init__(self) -> None:
        self.num_images = 0
        self._grams: list[np.ndarray] = []  # BxExE, products of the terms of an image, of the second pass
        self._mean: dict[str, np.ndarray] = {}
        self._cross: dict[tuple[str, str], np.ndarray] = {}  # DxD, each pair of names in one order

    def add(self, terms: Mapping[str, np.ndarray]) -> None:
        """Adds a batch: term_BxD by name, the same names and D each time. DataError: not finite."""
        batch = {name: finite(term_BxD, f"the term '{name}'") for name, term_BxD in terms.items()}
        shapes = {term_BxD.shape for term_BxD in batch.values()}
        assert len(shapes) == 1, f"terms of different shapes: {shapes}"
        added, width = shapes.pop()
        if not self._mean:
            self._mean = {name: np.zeros(width) for name in batch}
            pairs = itertools.combinations_with_replacement(batch, 2)
            self._cross = {pair: np.zeros((width, width)) for pair in pairs}
        assert batch.keys() == self._mean.keys(), "terms of other names than before"
        if not added:
            return
        mean = {name: term_BxD.mean(axis=0) for name, term_BxD in batch.items()}
        step = {name: mean[name] - self._mean[name] for name in batch}
        batch = {name: term_BxD - mean[name][None] for name, term_BxD in batch.items()}
        total = self.num_images + added
        for (a, b), cross_DxD in self._cross.items():
            cross_DxD += batch[a].T @ batch[b]
            cross_DxD += np.outer(step[a] * (self.num_images * added / total), step[b])
        for name in batch:
            self._mean[name] += step[name] * (added / total)
        self.num_images = total

    def cka(self, first: Sequence[str], second: Sequence[str]) -> float | None:
        """Linear CKA between the sum of the terms `first` and the sum of the terms `second`.

        None if a sum has no variance, such as a bias, terms that cancel, or a single image.
        """
        if self._is_constant(first) or self._is_constant(second):
            return None
        norm = np.linalg.norm
        own = norm(self._products(first, first)) * norm(self._products(second, second))
        return float(norm(self._products(first, second)) ** 2 / own)

    @classmethod
    def of(cls, parts: Callable[[], Iterable[Mapping[str, np.ndarray]]]) -> "CkaSums":
        """The sums of all batches of `parts()`, called twice: `unbiased_cka` requires the mean first."""
        sums = cls()
        for part in parts():
            sums.add(part)
        for part in parts():
            sums.add_grams(part)
        return sums

    def add_grams(self, terms: Mapping[str, np.ndarray]) -> None:
        """Adds a batch to what `unbiased_cka` reads, once `add` has had all of them."""
        term_ExBxD = [np.asarray(terms[name], np.float64) - mean[None] for name, mean in self._mean.items()]
        self._grams.append(np.einsum("ebd,fbd->bef", term_ExBxD, term_ExBxD))

    def unbiased_cka(self, first: Sequence[str], second: Sequence[str]) -> float | None:
        """As `cka`, with the unbiased estimator of HSIC in numerator and denominator; may be negative.

        HSIC_1 of Song et al. (JMLR 13, 2012, equation 5), in CKA by Nguyen et al. (arXiv:2010.15327,
        equation 3). For centred X and Y, with k = |x_i|^2 and l = |y_i|^2, it is, but for a factor,
        |Y'X|^2 - n / (n - 2) sum(k l) + sum(k) sum(l) / ((n - 1) (n - 2)). Numerator and denominator are
        unbiased, and their ratio only nearly. None as in `cka`, for fewer than 4 images, and if a denominator
        is not positive. After `of`.
        """
        n = self.num_images
        if n < 4 or self._is_constant(first) or self._is_constant(second):
            return None
        assert sum(map(len, self._grams)) == n, "add_grams has not had all batches"
        own = self._hsic(first, first), self._hsic(second, second)
        if min(own) <= 0:
            return None
        return float(self._hsic(first, second) / np.sqrt(own[0] * own[1]))

    def leading_directions(self, names: Sequence[str], most: int) -> np.ndarray | None:
        """axes_DxK, orthonormal: the first K principal axes over images of the sum of the terms `names`.

        K is `most`, or as many as it varies along. None if the sum has no variance.
        """
        if self._is_constant(names):
            return None
        variance_D, axes_DxD = np.linalg.eigh(self._products(names, names))
        count = min(most, int(np.count_nonzero(variance_D > 1e-9 * variance_D[-1])))
        return axes_DxD[:, ::-1][:, :count]

    def with_full(self, full: Sequence[str]) -> dict[str, float | None]:
        """CKA of the sum of the terms `full` with each term alone: figures 3a and 6 of arXiv:2505.05892."""
        return {name: self.cka(full, [name]) for name in self._mean}

    def _hsic(self, first: Sequence[str], second: Sequence[str]) -> float:
        n = self.num_images
        k_N, l_N = self._squares(first), self._squares(second)
        square = np.linalg.norm(self._products(first, second)) ** 2
        return square - n / (n - 2) * (k_N @ l_N) + k_N.sum() * l_N.sum() / ((n - 1) * (n - 2))

    def _squares(self, names: Sequence[str]) -> np.ndarray:
        at = [list(self._mean).index(name) for name in names]
        return np.concatenate([gram_BxExE[:, at][:, :, at].sum(axis=(1, 2)) for gram_BxExE in self._grams])

    def _products(self, first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        pairs = itertools.product(first, second)
        crosses = (self._cross[a, b] if (a, b) in self._cross else self._cross[b, a].T for a, b in pairs)
        return functools.reduce(np.add, crosses)

    def _is_constant(self, names: Sequence[str]) -> bool:
        alone = sum(np.trace(self._cross[name, name]) for name in names)
        size = alone + self.num_images * sum(np.square(self._mean[name]).sum() for name in names)
        return np.trace(self._products(names, names)) <= max(_CANCELLED * alone, ROUNDING * size)


def _nan_for_zero(value_B: np.ndarray) -> np.ndarray:
    return np.where(value_B > 0, value_B, np.nan)


def norm_table(terms: Mapping[str, np.ndarray], full: Sequence[str]) -> NormTable:
    """Norms of each term_BxD and of the sum of the terms `full`, and each term's cosine with that sum.

    arXiv:2505.05892, figure 5a, compares the norms of patches and skip, and figure 4 has cos(patches, full).
    The paper's sum excludes the skip connection in section 3 and includes it in section 4. Shares (norm / sum
    of all terms' norms) are an addition of this project; NaN where all norms are zero.
    """
    assert "full" not in terms, "this name is for the sum"
    values = {name: finite(term_BxD, f"the term '{name}'") for name, term_BxD in terms.items()}
    full_BxD = functools.reduce(np.add, (values[name] for name in full))
    norm = {name: np.linalg.norm(term_BxD, axis=-1) for name, term_BxD in values.items()}
    total_B = _nan_for_zero(functools.reduce(np.add, norm.values()))
    return NormTable(
        norm={**norm, "full": np.linalg.norm(full_BxD, axis=-1)},
        share={name: norm_B / total_B for name, norm_B in norm.items()},
        cosine={name: cosine_similarity(term_BxD, full_BxD) for name, term_BxD in values.items()},
    )


def attention_shares(
    weight_BxNxT: np.ndarray, groups: Mapping[str, slice], *, use_renormalised: bool
) -> dict[str, np.ndarray]:
    """The share of the cls query's attention that each group gets, share_B; mean over heads.

    arXiv:2505.05892, section 3.1 and figure 2a. There the shares of patches and registers sum to 1, while the
    softmax includes cls itself. `use_renormalised` excludes the group "cls" and divides the rest by its sum,
    after the mean over heads; NaN where cls attends to itself only. Groups must not overlap.
    """
    indices = np.concatenate([np.arange(weight_BxNxT.shape[-1])[where] for where in groups.values()])
    assert len(set(indices)) == len(indices), "a token is in two groups"
    mass = group_mass(weight_BxNxT[:, :, None], groups)
    shares = {name: mass_Bx1[:, 0] for name, mass_Bx1 in mass.items()}
    if not use_renormalised:
        return shares
    shares.pop("cls", None)
    total_B = _nan_for_zero(functools.reduce(np.add, shares.values()))
    return {name: share_B / total_B for name, share_B in shares.items()}


def layer_similarity(cls_BxLxD: np.ndarray) -> np.ndarray:
    """Cosine of the cls token after each layer with that after the last, similarity_BxL (figure 5b).

    arXiv:2505.05892, section 4.1. The last column is 1. NaN where a vector is zero.
    """
    cls_BxLxD = finite(cls_BxLxD, "the cls tokens")
    return cosine_similarity(cls_BxLxD, cls_BxLxD[:, -1:])


def register_activations(
    hidden_BxRxD: np.ndarray, normed_BxRxD: np.ndarray, *, num_dimensions: int = 100
) -> RegisterActivations:
    """Norms, similarity between images and largest activations of the registers that enter a block.

    arXiv:2505.05892, section 3.2 and figure 2b: `hidden` is the input of the last block, `normed` is `hidden`
    after the block's first norm. The paper's register has the highest norm in every image; here it has it in
    the most images. Dimensions are ranked by the absolute mean over images of `hidden` (the paper does not
    specify the sign), and are the same for `normed`. Norms are of `hidden`.
    """
    assert hidden_BxRxD.shape == normed_BxRxD.shape and hidden_BxRxD.size, "no registers, or other shapes"
    norm_BxR = np.linalg.norm(finite(hidden_BxRxD, "the registers"), axis=-1)
    counts_R = np.bincount(norm_BxR.argmax(axis=1), minlength=norm_BxR.shape[1])
    register = int(counts_R.argmax())
    ratio_B = None
    if norm_BxR.shape[1] > 1:
        second_B, first_B = np.sort(norm_BxR, axis=1)[:, -2:].T
        ratio_B = first_B / _nan_for_zero(second_B)
    before_BxD = finite(hidden_BxRxD[:, register], "the registers")
    after_BxD = finite(normed_BxRxD[:, register], "the registers after the norm")
    mean_D = before_BxD.mean(axis=0)
    dimensions = np.argsort(-np.abs(mean_D), kind="stable")[:num_dimensions]
    return RegisterActivations(
        norm_BxR=norm_BxR,
        register=register,
        consistency=float(counts_R[register] / len(norm_BxR)),
        ratio_B=ratio_B,
        cosine_before=mean_pairwise_cosine(before_BxD),
        cosine_after=mean_pairwise_cosine(after_BxD),
        dimensions=dimensions,
        mean_before=mean_D[dimensions],
        mean_after=after_BxD.mean(axis=0)[dimensions],
    )


def highest_of_all(norm_BxT: np.ndarray, token: int) -> tuple[float, np.ndarray | None]:
    """(share of the images where `token` has the highest norm of all, ratio_B to the highest other one).

    arXiv:2505.05892, section 3.2: one register has the highest norm of all tokens, in every image, by an
    order of magnitude. The ratio is None for a single token.
    """
    norm_BxT = finite(norm_BxT, "the norms")
    others_B = np.delete(norm_BxT, token, axis=1).max(axis=1, initial=0.0)
    if norm_BxT.shape[1] == 1:
        return 1.0, None
    return float((norm_BxT[:, token] > others_B).mean()), norm_BxT[:, token] / _nan_for_zero(others_B)
