"""Object discovery from the patch features of one image: LOST (arXiv:2109.14279), CorLoc, and sweeps."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from vit_registers.errors import ConfigError, DataError
from vit_registers.models.tokens import Grid

HIT_IOU = 0.5
_NUM_ROWS = 128  # of a Gram matrix at a time: they stay in the cache; at most 255, since counts are uint8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Discovery:
    """The one object that LOST finds in an image, and what led there; arrays are [rows, columns]."""

    degree: np.ndarray  # int: to how many other patches a patch is similar; the score, lowest is seed
    seed: Grid  # its cell (row, column)
    seed_similarity: np.ndarray  # float64: of the seed to each patch, with the bias
    expansion: np.ndarray  # float64: m, the similarity to all seeds together; above 0 is foreground
    mask: np.ndarray  # bool: the component of the foreground that holds the seed
    box_xyxy_px: np.ndarray  # int [4], tight around the mask, inside the image
    is_fallback: bool  # the seed was background, so mask and box are its cell alone


def discover(
    feature_PxD: np.ndarray,
    grid: Grid,
    *,
    patch_size_px: int,
    image_size_px: Grid,
    use_center: bool = False,
    use_norm: bool = False,
    bias: float = 0.0,
    num_candidates: int = 100,
) -> Discovery:
    """The object of one image, found by LOST in the features of its patches.

    LOST (arXiv:2109.14279), as its authors' code computes it, with A = F F^T. The seed is the patch that is
    similar (A > 0) to fewest others. Among the `num_candidates` patches of lowest degree those similar to the
    seed are seeds too, and m is the sum of their rows of A, negative values and diagonal included. The object
    is the 4-connected component of m > 0 that holds the seed. In float64; of equal degrees the lowest index
    comes first, which the original leaves open.

    Extensions, none of them in the original: `use_center` takes the mean over the patches from the features;
    `use_norm` then divides each by its L2 norm (zero stays zero); `bias` is added to all of A
    (arXiv:2309.16588, Table 3). Where the seed itself is background, as a negative bias can have it, its cell
    alone is the object, and `is_fallback` says so.

    `feature_PxD` has patches only, row by row. `image_size_px` is (height, width) before it was padded,
    right and bottom, to whole patches; boxes end there. Memory: 8 bytes x P x P. Raises DataError for
    features that are not finite, ConfigError for num_candidates < 1.
    """
    cells = sweep_cells(
        {("given", 1): feature_PxD},
        grid,
        patch_size_px=patch_size_px,
        image_size_px=image_size_px,
        center_options=[use_center],
        norm_options=[use_norm],
        biases=[bias],
        num_candidates=num_candidates,
    )
    ((_, found),) = cells
    return found


def _prepared(feature_PxD: np.ndarray, *, use_center: bool, use_norm: bool) -> np.ndarray:
    feature_PxD = np.asarray(feature_PxD, np.float64)
    if not np.isfinite(feature_PxD).all():
        raise DataError("LOST got features that are not finite: look for NaN in the weights of the model")
    if use_center:
        feature_PxD = feature_PxD - feature_PxD.mean(axis=0, keepdims=True)
    if use_norm:
        norm_Px1 = np.linalg.norm(feature_PxD, axis=1, keepdims=True)
        feature_PxD = feature_PxD / np.where(norm_Px1 > 0, norm_Px1, 1)
    return feature_PxD


def _fill_gram(gram_PxP: np.ndarray, feature_PxD: np.ndarray, biases: Sequence[float]) -> np.ndarray:
    """Fills `gram_PxP`; returns for each bias to how many others a patch is similar, int [biases, P].

    A few rows are compared with all biases while they are in the cache. The matrix is symmetric, so columns
    may be counted: these are sums of whole rows of bytes.
    """
    # by a copy: NumPy makes F F^T of one array from half of it, and mirroring that takes longer than the half
    np.matmul(feature_PxD, feature_PxD.copy().T, out=gram_PxP)
    num_patches = len(gram_PxP)
    degree_VxP = np.zeros((len(biases), num_patches), np.int64)
    buffer = np.empty((_NUM_ROWS, num_patches), bool)
    for start in range(0, num_patches, _NUM_ROWS):
        rows = gram_PxP[start : start + _NUM_ROWS]
        is_similar = buffer[: len(rows)]
        for degree_P, bias in zip(degree_VxP, biases, strict=True):
            # the same as A + bias > 0 in floating point too, without a second matrix
            np.greater(rows, -bias, out=is_similar)
            degree_P += is_similar.view(np.uint8).sum(axis=0, dtype=np.uint8)
    return degree_VxP - (np.diagonal(gram_PxP) > -np.asarray(biases, np.float64)[:, None])


def _discover(
    gram_PxP: np.ndarray,
    degree_P: np.ndarray,
    grid: Grid,
    *,
    patch_size_px: int,
    image_size_px: Grid,
    bias: float,
    num_candidates: int,
) -> Discovery:
    order_P = np.argsort(degree_P, kind="stable")
    seed, candidates = order_P[0], order_P[:num_candidates]
    seeds = candidates[gram_PxP[seed, candidates] > -bias]
    expansion = (gram_PxP[seeds] + bias).sum(axis=0).reshape(grid)
    cell = (int(seed) // grid[1], int(seed) % grid[1])
    label = np.zeros(grid, np.int32)  # 4-connected; 0 is background
    ndimage.label(expansion > 0, output=label)
    is_fallback = bool(label[cell] == 0)
    if is_fallback:
        mask = np.zeros(grid, bool)
        mask[cell] = True
    else:
        mask = label == label[cell]
    return Discovery(
        degree=degree_P.reshape(grid),
        seed=cell,
        seed_similarity=(gram_PxP[seed] + bias).reshape(grid),
        expansion=expansion,
        mask=mask,
        box_xyxy_px=_box(mask, patch_size_px, image_size_px),
        is_fallback=is_fallback,
    )


def _box(mask: np.ndarray, patch_size_px: int, image_size_px: Grid) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = image_size_px
    low = columns[0] * patch_size_px, rows[0] * patch_size_px
    high = min((columns[-1] + 1) * patch_size_px, width), min((rows[-1] + 1) * patch_size_px, height)
    return np.array([*low, *high])


def iou(box_xyxy: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union of one box [4] with each of n boxes [n, 4]: [n], float64; 0 if both are empty.

    Ends are exclusive, so sides are differences, without a pixel more.
    """
    box, boxes = np.asarray(box_xyxy, np.float64)[None], np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    overlap = _area(np.maximum(box[:, :2], boxes[:, :2]), np.minimum(box[:, 2:], boxes[:, 2:]))
    union = _area(box[:, :2], box[:, 2:]) + _area(boxes[:, :2], boxes[:, 2:]) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def _area(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.clip(high - low, 0, None).prod(axis=1)


class CorLoc(NamedTuple):
    """In how many images the found box is right; num_images does not count the skipped."""

    percent: float
    num_hits: int
    num_images: int
    num_skipped: int  # without any ground-truth box


def corloc(boxes_xyxy: np.ndarray | Sequence[np.ndarray], truths_xyxy: Sequence[np.ndarray]) -> CorLoc:
    """The share of images whose one box [4] has an IoU of at least 0.5 with any of its true boxes [n, 4].

    CorLoc as in LOST (arXiv:2109.14279). Images with n = 0 are skipped and counted. Raises DataError where
    no image has a true box.
    """
    pairs = list(zip(boxes_xyxy, truths_xyxy, strict=True))
    is_hit = [bool((iou(box, truth) >= HIT_IOU).any()) for box, truth in pairs if len(truth)]
    if not is_hit:
        raise DataError(f"none of {len(pairs)} images has a ground-truth box: CorLoc needs at least one")
    num_hits, num_images = sum(is_hit), len(is_hit)
    return CorLoc(100 * num_hits / num_images, num_hits, num_images, len(pairs) - num_images)


class SweepCell(NamedTuple):
    """One setting of a sweep."""

    feature: str
    block: int  # from 1
    use_center: bool
    use_norm: bool
    bias: float


def sweep_cells(
    features: Mapping[tuple[str, int], np.ndarray],
    grid: Grid,
    *,
    patch_size_px: int,
    image_size_px: Grid,
    center_options: Sequence[bool] = (False, True),
    norm_options: Sequence[bool] = (False, True),
    biases: Sequence[float] = (0.0,),
    num_candidates: int = 100,
) -> Iterator[tuple[SweepCell, Discovery]]:
    """(cell, discovery) of one image for each feature, centring, normalising and bias, each cell once.

    `features` maps a name and a block, such as ("k", 12), to feature_PxD. The similarities are computed once
    for all biases, in one matrix for all cells. Everything else is as in `discover`.
    """
    if num_candidates < 1:
        raise ConfigError(f"num_candidates={num_candidates}: must be >= 1, such as 100")
    assert grid == tuple(-(-side // patch_size_px) for side in image_size_px)
    biases, num_patches = tuple(dict.fromkeys(biases)), grid[0] * grid[1]
    gram_PxP = np.empty((num_patches, num_patches))
    options = itertools.product(features.items(), dict.fromkeys(center_options), dict.fromkeys(norm_options))
    for ((name, block), feature_PxD), use_center, use_norm in options:
        assert len(feature_PxD) == num_patches
        prepared_PxD = _prepared(feature_PxD, use_center=use_center, use_norm=use_norm)
        degree_VxP = _fill_gram(gram_PxP, prepared_PxD, biases)
        for degree_P, bias in zip(degree_VxP, biases, strict=True):
            yield (
                SweepCell(name, block, use_center, use_norm, bias),
                _discover(
                    gram_PxP,
                    degree_P,
                    grid,
                    patch_size_px=patch_size_px,
                    image_size_px=image_size_px,
                    bias=bias,
                    num_candidates=num_candidates,
                ),
            )


class SweepSummary(NamedTuple):
    """The two cells of a sweep to print side by side."""

    best: SweepCell
    no_sweep: SweepCell


def summarize_sweep(table: Mapping[SweepCell, CorLoc], *, feature: str, block: int) -> SweepSummary:
    """The cell of most hits, and the original LOST on `feature` of `block`: no bias, centring, normalising.

    The best cell was chosen on the images that it is judged by, so its CorLoc is optimistic; the other's is
    not. Of equal cells the original comes first, then the order of the table. Raises ConfigError where the
    table lacks the original.
    """
    no_sweep = SweepCell(feature, block, use_center=False, use_norm=False, bias=0.0)
    if no_sweep not in table:
        raise ConfigError(
            f"the sweep lacks '{feature}' of block {block} with bias 0, neither centred nor normalised: "
            "add it, since the best cell alone would be optimistic"
        )
    assert len({(result.num_images, result.num_skipped) for result in table.values()}) == 1
    best = max([no_sweep, *table], key=lambda cell: table[cell].num_hits)  # max keeps the first
    return SweepSummary(best, no_sweep)
