"""Object discovery from the patch features of one image: LOST (arXiv:2109.14279), CorLoc, and sweeps."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from vit_registers.analysis.measures.severity import finite
from vit_registers.errors import ConfigError, DataError
from vit_registers.models.tokens import Grid

HIT_IOU = 0.5
_NUM_ROWS = 128  # of a Gram matrix at a time: they stay in the cache; at most 255, since counts are uint8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Discovery:
    """The object that LOST finds in an image, with the intermediate results; arrays are [rows, columns]."""

    degree: np.ndarray  # int: the number of other patches that a patch is similar to; the lowest is the seed
    seed: Grid  # its cell (row, column)
    seed_similarity: np.ndarray  # float64: of the seed to each patch, with the bias
    expansion: np.ndarray  # float64: m, the similarity to all seeds together; above 0 is foreground
    mask: np.ndarray  # bool: the component of the foreground that contains the seed
    box_xyxy_px: np.ndarray  # int [4], tight around the mask, inside the image
    is_fallback: bool  # the seed was background, so mask and box are its cell alone


def _prepared(feature_PxD: np.ndarray, *, use_center: bool, use_norm: bool) -> np.ndarray:
    feature_PxD = finite(feature_PxD, "the features of LOST")
    if use_center:
        feature_PxD = feature_PxD - feature_PxD.mean(axis=0, keepdims=True)
    if use_norm:
        norm_Px1 = np.linalg.norm(feature_PxD, axis=1, keepdims=True)
        feature_PxD = feature_PxD / np.where(norm_Px1 > 0, norm_Px1, 1)
    return feature_PxD


def _fill_gram(gram_PxP: np.ndarray, feature_PxD: np.ndarray, biases: Sequence[float]) -> np.ndarray:
    """Fills `gram_PxP`; returns the degree of each patch for each bias, int [biases, P].

    A few rows are compared with all biases while they are in the cache. The matrix is symmetric, so columns
    are counted instead of rows: these are sums of whole rows of bytes.
    """
    # A copy: of one array NumPy computes half of F F^T and mirrors it, which is slower than computing both.
    np.matmul(feature_PxD, feature_PxD.copy().T, out=gram_PxP)
    num_patches = len(gram_PxP)
    degree_VxP = np.zeros((len(biases), num_patches), np.int64)
    buffer = np.empty((_NUM_ROWS, num_patches), bool)
    for start in range(0, num_patches, _NUM_ROWS):
        rows = gram_PxP[start : start + _NUM_ROWS]
        is_similar = buffer[: len(rows)]
        for degree_P, bias in zip(degree_VxP, biases, strict=True):
            # equal to A + bias > 0 in floating point too, without a second matrix
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
    ((rows, columns),) = ndimage.find_objects(mask.astype(int))
    height, width = image_size_px
    bottom, right = min(rows.stop * patch_size_px, height), min(columns.stop * patch_size_px, width)
    return Discovery(
        degree=degree_P.reshape(grid),
        seed=cell,
        seed_similarity=(gram_PxP[seed] + bias).reshape(grid),
        expansion=expansion,
        mask=mask,
        box_xyxy_px=np.array([columns.start * patch_size_px, rows.start * patch_size_px, right, bottom]),
        is_fallback=is_fallback,
    )


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


def find_hits(boxes_xyxy: np.ndarray | Sequence[np.ndarray], truths_xyxy: Sequence[np.ndarray]) -> np.ndarray:
    """Whether the one box [4] of an image has an IoU of at least 0.5 with any of its true boxes [n, 4].

    One bool for each image with n > 0; others are left out. Raises DataError where no image has a true box.
    """
    pairs = list(zip(boxes_xyxy, truths_xyxy, strict=True))
    is_hit = [bool((iou(box, truth) >= HIT_IOU).any()) for box, truth in pairs if len(truth)]
    if not is_hit:
        raise DataError(f"none of {len(pairs)} images has a ground-truth box: CorLoc needs at least one")
    return np.array(is_hit)


def count_hits(is_hit_B: np.ndarray, *, num_images: int) -> CorLoc:
    """CorLoc from `find_hits`, of `num_images` images with and without true boxes."""
    num_hits, count = int(is_hit_B.sum()), len(is_hit_B)
    return CorLoc(100 * num_hits / count, num_hits, count, num_images - count)


def corloc(boxes_xyxy: np.ndarray | Sequence[np.ndarray], truths_xyxy: Sequence[np.ndarray]) -> CorLoc:
    """The share of images whose one box [4] has an IoU of at least 0.5 with any of its true boxes [n, 4].

    CorLoc as in LOST (arXiv:2109.14279). Images with n = 0 are skipped and counted. Raises DataError where
    no image has a true box.
    """
    return count_hits(find_hits(boxes_xyxy, truths_xyxy), num_images=len(truths_xyxy))


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
    biases: Sequence[float] = (0.0,),
    num_candidates: int = 100,
) -> Iterator[tuple[SweepCell, Discovery]]:
    """(cell, discovery) of one image for each feature, with and without centring and normalising, and bias.

    LOST (arXiv:2109.14279), as its authors' code computes it, with A = F F^T. The seed is the patch that is
    similar (A > 0) to the fewest others. Among the `num_candidates` patches of lowest degree those similar to
    the seed are seeds too, and m is the sum of their rows of A, negative values and diagonal included. The
    object is the 4-connected component of m > 0 that contains the seed. In float64; of equal degrees the
    lowest index comes first, which the original does not define.

    Extensions that the original does not have: `use_center` subtracts the mean over the patches from the
    features; `use_norm` then divides each by its L2 norm (zero stays zero); the bias is added to all of A
    (arXiv:2309.16588, Table 3). With a negative bias the seed itself may be background: then its cell alone
    is the object, and `is_fallback` is True.

    `features` maps a name and a block, such as ("k", 12), to feature_PxD: the patches only, row-major.
    `image_size_px` is (height, width) before the image was padded, right and bottom, to whole patches; boxes
    end there. Memory: 8 bytes x P x P; the similarities are computed once for all biases. Raises DataError
    for features that are not finite, ConfigError for num_candidates < 1.
    """
    if num_candidates < 1:
        raise ConfigError(f"num_candidates={num_candidates}: must be >= 1, such as 100")
    assert grid == tuple(-(-side // patch_size_px) for side in image_size_px)
    biases, num_patches = tuple(dict.fromkeys(biases)), grid[0] * grid[1]
    gram_PxP = np.empty((num_patches, num_patches))
    switches = (False, True)
    for ((name, block), feature_PxD), use_center, use_norm in itertools.product(
        features.items(), switches, switches
    ):
        assert len(feature_PxD) == num_patches
        prepared_PxD = _prepared(feature_PxD, use_center=use_center, use_norm=use_norm)
        degree_VxP = _fill_gram(gram_PxP, prepared_PxD, biases)
        for degree_P, bias in zip(degree_VxP, biases, strict=True):
            found = _discover(
                gram_PxP,
                degree_P,
                grid,
                patch_size_px=patch_size_px,
                image_size_px=image_size_px,
                bias=bias,
                num_candidates=num_candidates,
            )
            yield SweepCell(name, block, use_center, use_norm, bias), found


def summarize_sweep(
    table: Mapping[SweepCell, CorLoc], *, feature: str, block: int
) -> tuple[SweepCell, SweepCell]:
    """(the cell of most hits, the original LOST on `feature` of `block`: no bias, centring, normalising).

    The best cell is chosen on the images that it is evaluated on, so its CorLoc is optimistic; the other's is
    not. Of equal cells the original comes first, then the order of the table. Raises ConfigError if the table
    lacks the original.
    """
    no_sweep = SweepCell(feature, block, use_center=False, use_norm=False, bias=0.0)
    if no_sweep not in table:
        raise ConfigError(
            f"the sweep lacks '{feature}' of block {block} with bias 0, neither centred nor normalised: "
            "add it, since the best cell alone would be optimistic"
        )
    assert len({(result.num_images, result.num_skipped) for result in table.values()}) == 1
    best = max([no_sweep, *table], key=lambda cell: table[cell].num_hits)  # max returns the first
    return best, no_sweep


def choose_by_halves(
    hits: Mapping[SweepCell, np.ndarray], *, first: SweepCell, seed: int = 0
) -> list[tuple[SweepCell, CorLoc]]:
    """(cell, CorLoc) of each half of the images: the cell of most hits on the other half, judged on this one.

    `hits` are those of `find_hits` for each cell. The halves are drawn at random with `seed`. Of equal cells
    `first` comes first, then the order of `hits`. Empty for fewer than two images.
    """
    count = len(hits[first])
    if count < 2:
        return []
    mixed, choices = np.random.default_rng(seed).permutation(count), []
    halves = mixed[: count - count // 2], mixed[count - count // 2 :]
    for judge, choose in (halves, halves[::-1]):
        best = max([first, *hits], key=lambda cell: hits[cell][choose].sum())
        choices.append((best, count_hits(hits[best][judge], num_images=len(judge))))
    return choices
