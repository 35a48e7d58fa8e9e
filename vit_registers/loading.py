"""Loads the config, the parameters or the model of a run folder or of a checkpoint of another code base."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from vit_registers.checkpoint_names import CheckpointName, parse_checkpoint
from vit_registers.config import (
    READ,
    Config,
    Mesh,
    Model,
    image_size,
    lookup,
    may_change,
    override,
    to_dict,
)
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.interop import reading
from vit_registers.interop.class_names import class_names_of
from vit_registers.interop.hints import Hints
from vit_registers.interop.hub import is_hub
from vit_registers.interop.image_text import (
    OpenedImageText,
    describe_image_text,
    open_image_text,
    read_image_text,
)
from vit_registers.interop.opened import OpenedWeights, describe_normalisation, describe_weights
from vit_registers.interop.preprocessing import preprocessing
from vit_registers.interop.shown import eval_ops_at
from vit_registers.interop.unwrap import COPIES
from vit_registers.loaded_model import About, LoadedModel, build_loaded
from vit_registers.models.attention_choice import choose_attention
from vit_registers.models.checks import attention_obstacle
from vit_registers.models.params import abstract_model, build_model, init_params
from vit_registers.models.vit import ViT
from vit_registers.objectives.base import BACKBONE
from vit_registers.runs import checkpoint_folder
from vit_registers.runs.mask_file import with_run_mask
from vit_registers.runs.reading import INITIAL, RunCheckpoint, trained_config
from vit_registers.runtime.mesh import make_mesh, own_mesh
from vit_registers.storage import files, paths
from vit_registers.training.sharding import parameter_shardings, put_same


def open_run(run: str, step: int | None = None, overrides: Mapping[str, Any] | None = None) -> RunCheckpoint:
    """A checkpoint of a run, by default the newest intact one, whose config has `overrides`.

    The mesh has all devices of this machine, for any sharding of the run. An attention back end that they do
    not support is replaced by "xla", and a line is printed. Raises CheckpointError if there is no intact
    checkpoint, and ConfigError as `with_overrides` does.
    """
    check_free(overrides or {})
    step = checkpoint_folder.find_step(run, step)
    config = trained_config(run, step)
    model = with_run_mask(config.model, paths.folder(run))
    config = dataclasses.replace(config, model=model, mesh=Mesh())
    config = with_overrides(config, overrides or {})
    if "model.attention" not in (overrides or {}):
        config = dataclasses.replace(config, model=_runnable(config.model, run))
    return RunCheckpoint(run=run, step=step, config=config)


def check_free(overrides: Mapping[str, Any]) -> None:
    """Raises ConfigError for an override of a setting that may not change when a checkpoint is read."""
    free = may_change(READ)
    for name in overrides:
        if name not in free:
            raise ConfigError(
                f"--config.{name}: a checkpoint keeps the settings of its training; only data.*, mesh.* "
                f"and {', '.join(sorted(one for one in free if not one.startswith(('data.', 'mesh.'))))}"
            )


def with_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """The config of a checkpoint with overrides of settings that may change when it is read.

    The model does not change: model.image_size sets the size of the images, like data.image_size, and
    positions are resampled to it. At another size data.eval_ops is scaled to show the same part of an image,
    unless it is overridden too. Raises ConfigError for other settings, and if data.eval_ops cannot be scaled.
    """
    check_free(overrides)
    given = dict(overrides)
    if "model.image_size" in given:
        size = given.pop("model.image_size")
        if given.setdefault("data.image_size", size) not in (size, None):
            raise ConfigError(
                "--config.model.image_size and --config.data.image_size differ: give one of them"
            )
        given["data.image_size"] = size
    # Other sections are not checked: an older version may have allowed other values.
    changed = override(to_dict(config), given, checked=("model", "data", "mesh", "tasks"))
    if "data.eval_ops" in given:
        return changed
    ops = eval_ops_at(config.data.eval_ops, old=image_size(config), new=image_size(changed))
    return dataclasses.replace(changed, data=dataclasses.replace(changed.data, eval_ops=ops))


def _runnable(model: Model, run: str) -> Model:
    """The model with an attention back end that these devices support. Prints a line if it differs."""
    is_first = jax.process_index() == 0
    model, slow = choose_attention(model)
    if slow is not None and is_first:
        print(f"{run}: model.attention='auto' is {model.attention}: {slow}", flush=True)
    obstacle = attention_obstacle(model)
    if obstacle is None:
        return model
    if is_first:
        print(f"{run}: computed with model.attention='xla', as {obstacle}", flush=True)
    return dataclasses.replace(model, attention="xla")


def read_model(
    checkpoint: RunCheckpoint, mesh: jax.sharding.Mesh, *, params: str | None = None
) -> tuple[nnx.GraphDef, Any]:
    """(graph definition, parameters over `mesh`) of the ViT of a checkpoint; see RunCheckpoint."""
    graphdef, _ = abstract_model(checkpoint.config.model)
    return graphdef, checkpoint.read_params(mesh, params)[BACKBONE]


def read_heads(
    checkpoint: "RunCheckpoint | ExternalCheckpoint", mesh: jax.sharding.Mesh, *, params: str | None = None
) -> dict[str, Any]:
    """The parameters over `mesh` of the modules beside the ViT, by name; see RunCheckpoint."""
    modules = checkpoint.read_params(mesh, params)
    return {name: module for name, module in modules.items() if name != BACKBONE}


def load_run(checkpoint: RunCheckpoint, *, params: str | None = None) -> ViT:
    """The model of a checkpoint of a run, on all devices of this process.

    `params` is "params" for the trained parameters, "ema" for their average, "teacher" or "student" of
    self-distillation, or None for those to evaluate.
    Raises CheckpointError if they are missing.
    """
    return build_model(*read_model(checkpoint, own_mesh(make_mesh(Mesh())), params=params))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExternalCheckpoint:
    """A checkpoint of another code base. evaluate reads it in the way of a RunCheckpoint."""

    opened: OpenedWeights
    config: Config
    normalisation_origin: str
    class_names: tuple[str, ...] | None  # of its head; None: not known
    whole: OpenedImageText | None = None  # with its text tower, if this is read too
    eval_params_name: str = "params"
    step: None = None
    is_converted: bool = True

    def build(self) -> ViT:
        """The model, on the default device."""
        if self.whole is not None:  # the head of `opened` is the projection
            return build_model(abstract_model(self.config.model)[0], read_image_text(self.whole)[BACKBONE])
        return reading.load_opened(self.opened)

    def read_params(self, mesh: jax.sharding.Mesh, name: str | None = None) -> Any:
        """The parameters over `mesh`, with the backbone under BACKBONE.

        Those of a whole model have the names of an ImageTextModel. `name` is INITIAL for those of an
        untrained backbone; others were given to open_external.
        """
        if name == INITIAL:
            initialize = functools.partial(init_params, self.config.model)
            params = {BACKBONE: jax.jit(initialize)(key=jax.random.key(self.config.run.seed))}
        elif self.whole is not None:
            params = read_image_text(self.whole)
        else:
            params = {BACKBONE: reading.read_leaves(self.opened)}
        return put_same(params, parameter_shardings(params, mesh))


def open_external(
    path: str, overrides: Mapping[str, Any], *, params: str | None = None, is_whole: bool | None = False
) -> ExternalCheckpoint:
    """A checkpoint of another code base, whose config has `overrides`. Prints a line that describes it.

    `params` selects a copy of the network in a file with several, as in load_model, or is INITIAL. With
    `is_whole`, the text tower and what joins it to the image tower are read too, and `config.text` is theirs;
    None: if there is a text tower.
    """
    hints = Hints(params=None if params == INITIAL else params)
    whole = None
    try:
        opened = None if is_whole else reading.open_path(path, source="auto", hints=hints)
        if opened is None or (is_whole is None and opened.found.text):
            whole = open_image_text(path, source="auto", hints=hints)
            opened = whole.image
    except CheckpointError as error:
        names = ("source", *(field.name for field in dataclasses.fields(Hints)))
        if any(f"give {name}" in str(error) for name in names):
            cure = "convert has flags for it, and makes a run folder: give that instead of the weights"
            raise CheckpointError(f"{error}; {cure}") from None
        raise
    data, origin = preprocessing(opened, Path(path).expanduser())
    found = Config(model=opened.model, data=data)
    if whole is not None:
        found = Config(model=whole.model, text=whole.text, data=data)
    config = with_overrides(found, overrides)
    if jax.process_index() == 0:
        print(describe_weights(opened) if whole is None else describe_image_text(whole), flush=True)
    return ExternalCheckpoint(
        opened=dataclasses.replace(opened, model=config.model) if whole is None else opened,
        whole=whole,
        config=config,
        normalisation_origin=origin,
        class_names=class_names_of(opened, Path(path).expanduser()),
        eval_params_name=params or "params",
    )


def is_run(path: str) -> bool:
    """Whether the path is a run folder. Raises ConfigError for s3://, and CheckpointError if gs:// fails."""
    if is_hub(path):
        return False
    paths.check_scheme(path, "checkpoint")
    try:
        return files.is_folder(checkpoint_folder.checkpoint_root(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def load_model(text: str, *, step: int | None, params: str | None, source: str, hints: Hints) -> LoadedModel:
    """The model of a run folder, or of a checkpoint of another code base. A line describes the latter.

    `text` is a name of checkpoint_names.py.
    """
    if params is not None:
        lookup(COPIES, params, "params")
    if step is not None and (isinstance(step, bool) or not hasattr(step, "__index__")):
        raise ConfigError(f"step={step!r}: must be a whole number, as in step=1000")
    name = parse_checkpoint(text, step, where="path")
    path = name.local()
    if is_run(path):
        refuse_hints(path, source, hints)
        checkpoint = open_run(path, name.step)
        about = About(
            config=checkpoint.config,
            origin=f"{path}, step {checkpoint.step}",
            class_names=checkpoint.class_names if checkpoint.config.model.num_classes else None,
            normalisation=checkpoint.normalisation_origin,
        )
        return build_loaded(about, read_model(checkpoint, make_mesh(Mesh()), params=params)[1])
    opened = reading.open_path(
        external_path(name), source=source, hints=dataclasses.replace(hints, params=params)
    )
    data, origin = preprocessing(opened, Path(path).expanduser())
    print(describe_weights(opened), flush=True)
    if opened.model.channels != opened.native.channels:
        print(describe_normalisation(data, origin), flush=True)
    about = About(
        config=Config(model=opened.model, data=data),
        origin=name.path,
        class_names=class_names_of(opened, Path(path).expanduser()),
        normalisation=origin,
    )
    return build_loaded(about, reading.read_leaves(opened))


def external_path(name: CheckpointName) -> str:
    """The path on this machine of weights of another code base. Raises CheckpointError for a step."""
    path = name.local()
    if name.step is not None:
        raise CheckpointError(f"{path} is not a run folder: a step, here {name.step}, is for run folders")
    return path


def refuse_hints(path: str, source: str, hints: Hints) -> None:
    """Raises ConfigError if a source or hints are given for a run folder, whose config has all settings."""
    if source != "auto" or hints != Hints():
        raise ConfigError(
            f"{path} is a run folder, whose config has all settings: source, image_size and other hints are "
            "for checkpoints of other code bases"
        )
