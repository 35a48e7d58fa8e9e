"""Extracts the features of open checkpoints to the disk: of the models and of edited models."""

import collections
import functools
import itertools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from vit_registers.analysis.features import compute
from vit_registers.analysis.features.finite import NotFiniteError, describe_not_finite, not_finite
from vit_registers.analysis.features.interventions import NO_INTERVENTION, Intervention
from vit_registers.analysis.features.store import VALID, Store, Work
from vit_registers.analysis.features.table import LIMITS
from vit_registers.analysis.opening import OpenedModel
from vit_registers.analysis.options import Options
from vit_registers.analysis.subject import Native, Subject
from vit_registers.config import image_size
from vit_registers.data.batch import IMAGE
from vit_registers.data.loaders import EvalSplit
from vit_registers.errors import DataError
from vit_registers.evaluation.task import FrozenModel
from vit_registers.models.edits import Edits
from vit_registers.models.tokens import TokenLayout
from vit_registers.models.vit import ViT
from vit_registers.models.zero_registers import add_zero_registers
from vit_registers.runs.class_vector_files import ClassVectorFiles
from vit_registers.runs.task_results import results_folder
from vit_registers.runtime.exchange import from_first
from vit_registers.runtime.mesh import ordered_mesh, own_mesh
from vit_registers.storage import paths
from vit_registers.training import sharding

Images = Callable[[str, int, int], None]  # shows progress: what is computed, images done, images in total


def extract(
    one: OpenedModel,
    names: tuple[str, ...],
    out: Path,
    options: Options,
    show: Images = lambda what, done, total: None,
    *,
    train_names: tuple[str, ...] = (),
) -> Subject | None:
    """The subject, with the features `names` on disk under out/features.

    `train_names` are those of the images that probes are trained on, if the model has such images.
    `show` is called with the progress of this extraction, of edited models (total 0) and of experiments.
    Several processes have to call it together. Each computes its share; process 0 gets the subject, which
    uses no other process any more, and the others get None and write nothing.
    """
    data, mesh = one.config.data, ordered_mesh()
    store = None
    if jax.process_index() == 0:
        store = Store(out / "features", one.name, one.provenance(), LIMITS)
    with jax.set_mesh(mesh):
        _complete(one, names, store, mesh, functools.partial(show, f"features of {one.name}"))
        number = one.num_images if store is None or not names else store.num_read()
        if not number:
            raise DataError(f"{one.describe()}: not one of them can be decoded")
        # in the same mesh, so that the loader compiles nothing again
        first = next(iter(one.loader.eval_batches(data.eval_split, sharding.batch_sharding(mesh))))
        first = sharding.replicate(mesh)(first) if mesh.is_multi_process else first
    trained = extract(one.train, train_names, out, options, show) if one.train and train_names else None
    if store is None:
        return None
    is_valid_B = np.asarray(first.mask_B)
    parameters = jax.tree.leaves(nnx.state(one.model, nnx.Param))
    return Subject(
        name=one.name,
        run=None if one.step is None else paths.folder(one.path),
        step=one.step,
        params=one.params,
        params_name=one.params_name,
        num_parameters=sum(leaf.size for leaf in parameters),
        num_not_finite=sum(int(np.sum(~np.isfinite(np.asarray(leaf)))) for leaf in parameters),
        model=one.config.model,
        store=store,
        images=one.describe_data(),
        train=trained,
        layout=one.layout,
        class_names=one.loader.class_names,
        split=EvalSplit(one.loader, data.eval_split),
        tasks=one.config.tasks,
        unread_texts=one.unread_texts,
        head_names=one.head_names,
        mean=data.mean,
        std=data.std,
        rerun=_rerun(one, store, out / "features", show),
        native=_native(one),
        frozen=functools.partial(_frozen, one, _kept(one, out)),
        progress=lambda what, done, total: show(f"{one.name}, {what}", done, total),
        example_NxHxWxC=np.asarray(first.views[IMAGE])[is_valid_B][: min(options.num_examples, number)],
    )


def _complete(
    one: OpenedModel,
    names: tuple[str, ...],
    store: Store | None,
    mesh: jax.sharding.Mesh,
    progress: Callable[[int, int], None],
) -> None:
    """Completes the features in the store, which only process 0 has. All processes compute their share."""

    def find_work() -> Work | None:
        assert store is not None  # this is process 0
        work = store.lacking((VALID, "label", *names) if names else ())
        if work is not None:
            _say_cost(one, tuple(work.counts), store)
        return work

    work, data = from_first(find_work, mesh), one.config.data
    if work is None:
        return
    made = compute.computed_batches(
        one.model,
        one.loader.eval_batches(data.eval_split, sharding.batch_sharding(mesh)),
        work,
        image_size=image_size(one.config),
        mean=data.mean,
        std=data.std,
        mesh=mesh,
    )
    if store is None:
        collections.deque(made, maxlen=0)
    else:
        compute.write_features(made, store, work, one.layout, progress)


def _say_cost(one: OpenedModel, names: tuple[str, ...], store: Store) -> None:
    """Prints the size of the features to compute. Raises DataError if the disk has not enough space."""
    size, number = image_size(one.config), store.num_images
    needed = compute.size_bytes(
        one.model,
        names,
        image_size=size,
        mean=one.config.data.mean,
        std=one.config.data.std,
        batch_size=one.config.data.eval_batch_size,
        num_images=number,
    )
    free = shutil.disk_usage(store.folder).free
    print(f"{one.name}: {number} images, {_readable(needed)} of features to {store.folder}", file=sys.stderr)
    if needed > free:
        raise DataError(
            f"{store.folder}: the features require {_readable(needed)}, and {_readable(free)} are free: "
            "take fewer images with --num_images, or another --out"
        )


def _readable(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"


def _rerun(
    one: OpenedModel, store: Store, root: Path, show: Images
) -> Callable[[Intervention, tuple[str, ...], int], Store]:
    """A function that extracts features of the model under an intervention, from images in the store.

    It raises NotFiniteError if they are not finite.
    """
    number = itertools.count(1)

    @functools.cache
    def model(num_registers: int) -> ViT:
        return add_zero_registers(one.model, num_registers) if num_registers else one.model

    def rerun(intervention: Intervention, names: tuple[str, ...], num_images: int) -> Store:
        images, label = store.read("image_HxWxC")[:num_images], store.read("label")[:num_images]
        changed = {"num_images": len(images), "intervention": intervention.provenance()}
        edited = Store(root, f"{one.name}-{intervention.name}", one.provenance() | changed)
        mesh, data = own_mesh(ordered_mesh()), one.config.data
        if edited.missing((*names, VALID, "label")):
            show(f"{one.name}, edited model {next(number)}", 0, 0)
            with jax.set_mesh(mesh):
                compute.extract_features(
                    model(intervention.num_registers),
                    compute.stored_batches(
                        images, label, data.eval_batch_size, sharding.batch_sharding(mesh)
                    ),
                    edited,
                    names,
                    image_size=image_size(one.config),
                    mean=data.mean,
                    std=data.std,
                    intervention=intervention,
                )
        if flaw := not_finite(edited, names):
            raise NotFiniteError(one.name, f"{flaw}, once the model is edited ({intervention.name})")
        return edited

    return rerun


def _kept(one: OpenedModel, out: Path) -> ClassVectorFiles:
    """The vectors of classes beside the results of evaluate, or of analyze for weights in other formats."""
    return ClassVectorFiles(epath.Path(out) if one.step is None else results_folder(paths.folder(one.path)))


def _frozen(one: OpenedModel, kept: ClassVectorFiles, intervention: Intervention) -> FrozenModel:
    """The model for tasks, with the registers of the intervention; its rows are made for any tokens."""
    added = intervention.num_registers
    values = {name: jnp.asarray(value) for name, value in intervention.values.items()}
    vit = add_zero_registers(one.model, added) if added else one.model
    mesh = own_mesh(ordered_mesh())
    params = nnx.to_pure_dict(nnx.state(vit, nnx.Param))

    def edits(layout: TokenLayout) -> Edits:
        is_target_1xT = np.zeros((1, layout.num_tokens), bool)
        is_target_1xT[:, layout.registers.stop - added : layout.registers.stop] = True
        return intervention.edits(values, {"is_target_BxT": jnp.asarray(is_target_1xT)}, layout)

    backbone = jax.device_put(params, sharding.replicated(mesh))
    return FrozenModel(
        name=one.name,
        model=vit.model,
        data=one.config.data,
        backbone=backbone,
        mesh=mesh,
        edits=None if intervention is NO_INTERVENTION else edits,
        texts=None if one.texts is None else one.texts.with_backbone(backbone)._replace(kept=kept),
    )


def _native(one: OpenedModel) -> Callable[[np.ndarray, int], Native]:
    """`compute.native` of the model, which raises NotFiniteError for results that are not finite."""
    measure = compute.native(one.model, mean=one.config.data.mean, std=one.config.data.std)
    shown = itertools.count(1)

    def native(image_HxWxC: np.ndarray, num_blocks: int) -> Native:
        values, grid = measure(image_HxWxC, num_blocks)
        number = next(shown)
        if flawed := [name for (name, _), value in values.items() if not np.isfinite(value).all()]:
            raise NotFiniteError(one.name, describe_not_finite(", ".join(dict.fromkeys(flawed)), 1, number))
        return values, grid

    return native
