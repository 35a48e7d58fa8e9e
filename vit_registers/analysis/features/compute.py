"""Computes features of images with a model, batch by batch; the only file of the analysis that runs one."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from vit_registers.analysis.features.forward import Forward
from vit_registers.analysis.features.interventions import NO_INTERVENTION, Arrays, Intervention
from vit_registers.analysis.features.store import VALID, Store, Work
from vit_registers.analysis.features.table import FEATURES, LIMITS
from vit_registers.data.batch import IMAGE, LABEL, Batch, labelled_batch, normalize, pad_batch
from vit_registers.models.edits import Edits
from vit_registers.models.tokens import Grid, TokenLayout
from vit_registers.models.vit import ViT
from vit_registers.training.sharding import put_same, replicate, replicated

PATCHES = "patches"  # in what `native` returns: the patches that the last block leaves


def size_bytes(
    model: ViT,
    names: tuple[str, ...],
    *,
    image_size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int,
    num_images: int,
) -> int:
    """The size of the features on the disk. Nothing is computed.

    The model is traced as `extract_features` does with batches of that size, which then does not trace it
    again.
    """
    layout = model.layout_for(image_size)
    compute = _program(names, layout, mean, std, NO_INTERVENTION.edits)
    image = jax.ShapeDtypeStruct((batch_size, *image_size, model.model.channels), np.uint8)
    total = 0
    for name, one in compute.eval_shape(*nnx.split(model), image, {}, {}).items():
        finished = FEATURES[name].finish(np.zeros((1, *one.shape[1:]), one.dtype), layout)
        total += finished.nbytes * min(num_images, LIMITS.get(name, num_images))
    return total


def extract_features(
    model: ViT,
    batches: Iterator[Batch],
    store: Store,
    names: tuple[str, ...],
    *,
    image_size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    progress: Callable[[int, int], None] = lambda done, total: None,
    intervention: Intervention = NO_INTERVENTION,
) -> None:
    """Completes the features `names` of the store from all batches of the data set, in its order.

    Each batch is written while the next one is computed; what a stopped run has written is not computed
    again. `progress` is called with the numbers of images done and in total. `model` has the registers that
    the intervention adds.
    """
    work = store.lacking((VALID, "label", *names))
    if work is not None:
        made = computed_batches(
            model, batches, work, image_size=image_size, mean=mean, std=std, intervention=intervention
        )
        write_features(made, store, work, model.layout_for(image_size), progress)


def computed_batches(
    model: ViT,
    batches: Iterator[Batch],
    work: Work,
    *,
    image_size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    intervention: Intervention = NO_INTERVENTION,
    mesh: jax.sharding.Mesh | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The features that are lacking, before `Feature.finish`, in batches from the image work.first on.

    `batches` are all of the data set, in its order; each is yielded while the next one is computed. A `mesh`
    with devices of several processes requires all of them to take the same batches; each gets all features.
    """
    layout, spans = model.layout_for(image_size), mesh is not None and mesh.is_multi_process
    compute, (graphdef, state) = (
        _program(tuple(work.counts), layout, mean, std, intervention.edits),
        nnx.split(model),
    )
    if mesh is not None and spans:
        state = put_same(state, replicated(mesh))
    begun, pending = 0, None
    for batch in batches:
        start, begun = begun, begun + len(batch.mask_B)
        if begun <= work.first:
            continue
        rows = intervention.rows_of(slice(start, begun))
        computed = compute(graphdef, state, batch.views[IMAGE], dict(intervention.values), rows)
        computed |= {VALID: batch.mask_B, "label": batch.targets[LABEL]}
        computed = {name: value for name, value in computed.items() if work.counts.get(name, 0) > start}
        if mesh is not None and spans:
            computed = replicate(mesh)(computed)
        if pending is not None:
            yield _on_host(*pending)
        pending = computed, max(work.first - start, 0)
        if begun >= work.stop:
            break
    if pending is not None:
        yield _on_host(*pending)


def _on_host(computed: Mapping[str, jax.Array], skipped: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(value)[skipped:] for name, value in computed.items()}


def write_features(
    made: Iterator[dict[str, np.ndarray]],
    store: Store,
    work: Work,
    layout: TokenLayout,
    progress: Callable[[int, int], None],
) -> None:
    """Completes the features of `work` in the store from those of computed_batches."""
    with store.writer(tuple(work.counts)) as writer:
        for computed in made:
            size = work.stop - writer.num_done
            arrays = {name: value[:size] for name, value in computed.items()}
            for name in arrays.keys() & FEATURES.keys():
                arrays[name] = FEATURES[name].finish(arrays[name], layout)
            writer.append(arrays)
            progress(writer.num_done, work.stop)


@functools.lru_cache(maxsize=8)
def _program(
    names: tuple[str, ...],
    layout: TokenLayout,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    edits: Callable[[Arrays, Arrays, TokenLayout], Edits],
) -> Any:
    """The compiled computation of features, shared by all interventions with the same `edits`."""

    @functools.partial(jax.jit, static_argnums=0)
    def compute(
        graphdef: nnx.GraphDef, state: Any, image_BxHxWxC: jax.Array, values: Arrays, rows: Arrays
    ) -> dict[str, jax.Array]:
        # nnx.jit would update the attributes of the model after each call, while another thread reads them.
        model: ViT = nnx.merge(graphdef, state)
        out = model(normalize(image_BxHxWxC, mean=mean, std=std), edits=edits(values, rows, layout))
        forward = Forward(model, out, layout, image_BxHxWxC, values, rows)
        return {name: FEATURES[name].compute(forward) for name in names if name in FEATURES}

    return compute


def stored_batches(
    image_BxHxWxC: np.ndarray, label_B: np.ndarray, batch_size: int, sharding: jax.sharding.Sharding
) -> Iterator[Batch]:
    """Batches of images from the disk; the last one is padded with zeros."""
    for start in range(0, len(image_BxHxWxC), batch_size):
        part = slice(start, start + batch_size)
        batch = labelled_batch(image_BxHxWxC[part], label_B[part], np.ones(len(label_B[part]), bool))
        yield jax.device_put(pad_batch(batch, batch_size), sharding)


def native(
    model: ViT, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[np.ndarray, int], tuple[dict[tuple[str, int], np.ndarray], Grid]]:
    """A function (image, number of blocks) -> (q, k and v of the patches in the last blocks, the patch grid).

    The image is uint8 and of any size. The first result is {("q", 12): PxD}, and so on for "k", "v" and each
    block, counted from 1, with the heads joined. A model with fewer blocks gives all of them. For 0 blocks it
    is {("patches", depth): PxD}, the patches after the last block and before the final norm. The image is
    normalised, then padded with zeros on the right and at the bottom to whole patches, as in LOST. Each new
    grid is compiled once.
    """
    patch, depth = model.model.patch_size, len(model.blocks)
    graphdef, state = nnx.split(model)

    @functools.partial(jax.jit, static_argnums=3)
    def forward(
        state: Any, filled_1xHxWxC: np.ndarray, size_px: np.ndarray, num_blocks: int
    ) -> list[jax.Array]:
        model: ViT = nnx.merge(graphdef, state)
        height, width = filled_1xHxWxC.shape[1:3]
        is_image_HxW = (jnp.arange(height) < size_px[0])[:, None] & (jnp.arange(width) < size_px[1])[None]
        normal_1xHxWxC = normalize(jnp.asarray(filled_1xHxWxC), mean=mean, std=std)
        out = model(jnp.where(is_image_HxW[None, :, :, None], normal_1xHxWxC, 0.0))
        patches = model.layout_for((height, width)).patches
        values = [out.taps[name][block][0, patches] for block in range(-num_blocks, 0) for name in "qkv"]
        values = values or [out.taps["resid"][-1][0, patches]]
        return [value.astype(jnp.float32).reshape(len(value), -1) for value in values]

    def apply(image_HxWxC: np.ndarray, num_blocks: int) -> tuple[dict[tuple[str, int], np.ndarray], Grid]:
        if model.model.channels == 1:
            image_HxWxC = np.asarray(Image.fromarray(image_HxWxC).convert("L"))[..., None]
        height, width = image_HxWxC.shape[:2]
        # Padded before jit, so that all image sizes with one grid have one shape.
        filled_HxWxC = np.pad(image_HxWxC, ((0, -height % patch), (0, -width % patch), (0, 0)))
        num_blocks = min(num_blocks, depth)
        values = forward(state, filled_HxWxC[None], np.array([height, width]), num_blocks)
        names = [(name, block) for block in range(depth - num_blocks + 1, depth + 1) for name in "qkv"]
        names = names or [(PATCHES, depth)]
        grid = math.ceil(height / patch), math.ceil(width / patch)
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}, grid

    return apply
