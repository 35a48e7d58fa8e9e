"""Loads the weights that training starts from, as the settings of `init_from` specify them."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_registers import loading
from vit_registers.checkpoint_names import CheckpointName, parse_checkpoint
from vit_registers.config import (
    RESUME,
    Config,
    Data,
    InitFrom,
    Mesh,
    Model,
    Text,
    checks,
    from_saved,
    lookup,
    may_change,
)
from vit_registers.data.class_names import match, names_to_match, some
from vit_registers.errors import ConfigError, UserError
from vit_registers.interop import image_text, reading, transfer
from vit_registers.interop.channels import adapt_statistics, describe_channels
from vit_registers.interop.hints import HIDDEN_ACTS, Hints
from vit_registers.interop.names.projection_heads import check_heads, head_leaves
from vit_registers.interop.opened import describe_normalisation, describe_weights
from vit_registers.interop.preprocessing import preprocessing
from vit_registers.interop.unwrap import COPIES, SOURCES
from vit_registers.interop.values import check_leaves
from vit_registers.models.paths import Leaf, leaves_of, path_text
from vit_registers.models.resampling import RESAMPLINGS
from vit_registers.objectives.base import BACKBONE
from vit_registers.objectives.image_text.towers import TEXT
from vit_registers.runs import checkpoint_folder
from vit_registers.runs.mask_file import with_run_mask
from vit_registers.runtime.mesh import make_mesh
from vit_registers.storage import paths
from vit_registers.training.setup import Setup
from vit_registers.training.state import TrainState, put_parameters

# Settings of a text tower that the shapes of its parameters do not determine.
_TEXT_SETTINGS = ("is_causal", "pool", "activation", "norm_eps")


def start_settings(settings: InitFrom, *, run: str | None = None) -> tuple[Model, Data]:
    """(Model, Data) of the weights that training starts from. No parameters are read.

    If the newest checkpoint of the run folder `run` started from the same weights, its settings are returned,
    because a resumed run does not require the weights. Settings that may change on resume have their defaults
    then.
    """
    name = _name(settings)
    config = None if run is None else _newest_config(run)
    if run is not None and config is not None and config.init_from.path == settings.path:
        names = [name.partition(".")[2] for name in may_change(RESUME) if name.startswith("model.")]
        defaults = {name: getattr(Model(), name) for name in names}
        model = with_run_mask(config.model, paths.folder(run))
        return dataclasses.replace(model, **defaults), config.data
    path = name.local()
    if loading.is_run(path):
        config = loading.open_run(path, name.step).config
        return config.model, config.data
    opened = _open_external(settings, name)
    return opened.model, preprocessing(opened, Path(path).expanduser())[0]


def start_leaves(settings: InitFrom, model: Model) -> dict[Leaf, np.ndarray]:
    """The parameters of `model` that are loaded from `settings.path`, by path; see interop/transfer.py."""
    name = _name(settings)
    path = name.local()
    if loading.is_run(path):
        loading.refuse_hints(path, settings.source, _hints(settings))
        checkpoint = loading.open_run(path, name.step)
        source, data = checkpoint.config.model, checkpoint.config.data
        _, params = loading.read_model(checkpoint, make_mesh(Mesh()), params=settings.params)
        params = jax.device_get(params)
        check_leaves(leaves_of(params), f"{path}, step {checkpoint.step}")
    else:
        opened = _open_external(settings, name)
        data, origin = preprocessing(opened, Path(path).expanduser())
        print(describe_weights(opened), describe_normalisation(data, origin), sep="\n", flush=True)
        source, params = opened.model, reading.read_leaves(opened)
        if opened.found.text and not model.num_classes:  # the head is the projection: see start_heads
            source = dataclasses.replace(source, num_classes=0, use_head_bias=True)
            params = {name: part for name, part in params.items() if name != "head"}
    taken = transfer.taken_leaves(source, params, model, settings)
    if source.channels != model.channels:
        mean, std = (adapt_statistics(values, model.channels) for values in (data.mean, data.std))
        did = describe_channels(source.channels, model.channels)
        print(f"{did}; its normalisation there: mean {mean}, std {std}", flush=True)
    return taken


def start_heads(
    settings: InitFrom, heads: Mapping[str, Any], text: Text | None = None
) -> dict[Leaf, np.ndarray] | None:
    """The parameters of the modules beside the backbone, by path, if they are loaded too; None if not.

    `heads` has the shapes of these modules by name. With settings.keep_head they are those of the copy that
    the backbone is from, of a run, of a training checkpoint (interop/names/projection_heads.py), or of a
    whole model of images and texts. Raises CheckpointError if it lacks them, or if they have other sizes.
    `text` has the settings of the text tower, which are compared with those of the weights.
    """
    if not settings.keep_head or not heads:
        return None
    name = _name(settings)
    path = name.local()
    if loading.is_run(path):
        checkpoint = loading.open_run(path, name.step)
        there = loading.read_heads(checkpoint, make_mesh(Mesh()), params=settings.params)
        there = leaves_of(jax.device_get(there))
        check_leaves(there, f"{path}, step {checkpoint.step}")
    elif TEXT in heads:
        there = _text_leaves(settings, name, text)
    else:
        there = head_leaves(_open_external(settings, name))
    return check_heads(there, {leaf: value.shape for leaf, value in leaves_of(heads).items()}, name.path)


def _text_leaves(settings: InitFrom, name: CheckpointName, text: Text | None) -> dict[Leaf, np.ndarray]:
    """The modules of a whole model beside the backbone. Raises ConfigError for other settings of its text."""
    hints = dataclasses.replace(_hints(settings), params=settings.params)
    path = loading.external_path(name)
    opened = image_text.open_image_text(path, source=settings.source, hints=hints)
    for setting in _TEXT_SETTINGS if text is not None else ():
        here, there = getattr(text, setting), getattr(opened.text, setting)
        if here != there:
            raise ConfigError(
                f"text.{setting}={here!r}, and the text tower of {path} has {there!r}: set that, or "
                "init_from.keep_head=False, and the text tower is initialised"
            )
    modules = image_text.read_image_text(opened)
    del modules[BACKBONE]
    return leaves_of(jax.device_get(modules))


def first_state(
    settings: InitFrom,
    model: Model,
    setup: Setup,
    *,
    text: Text | None = None,
    say: Callable[[str], None],
) -> TrainState:
    """The initial state of a new run: from the initializers, or from the weights of init_from.path."""
    if settings.path is None:
        return setup.make_state()
    taken = start_leaves(settings, model)
    heads = start_heads(settings, heads_of(setup), text)
    fresh = {path_text(path) for path in leaves_of(setup.abstract.params[BACKBONE]) if path not in taken}
    fresh |= set() if heads else set(heads_of(setup))
    names = ", ".join(sorted(fresh)) or "nothing"
    parts = [path_text(path) for path, value in taken.items() if np.ma.isMaskedArray(value)]
    partly = f"; initialised in part: {', '.join(parts)}" if parts else ""
    number = len(taken) + len(heads or {})
    say(f"starts from {settings.path}: {number} tensors; initialised: {names}{partly}")
    own = dict(setup.make_state().params)
    backbone = put_parameters(own.pop(BACKBONE), taken)
    return setup.start_from(backbone, put_parameters(own, heads) if heads else None)


def heads_of(setup: Setup) -> dict[str, Any]:
    """The shapes of the modules beside the backbone; none for classification, whose head is the model's."""
    return {name: module for name, module in setup.abstract.params.items() if name != BACKBONE}


def check_choices(settings: InitFrom) -> None:
    """Raises ConfigError for a setting with an unknown name, whether `path` is set or not."""
    choices = {
        "registers": transfer.REGISTERS,
        "summaries": transfer.SUMMARIES,
        "source": ("auto", *SOURCES),
        "hidden_act": tuple(HIDDEN_ACTS),
        "interpolation": ("none", *RESAMPLINGS),
        "params": COPIES,
    }
    for name, known in choices.items():
        if (value := getattr(settings, name)) is not None:
            lookup(dict.fromkeys(known), value, f"init_from.{name}")


def check_kept_head(settings: InitFrom, class_names: Sequence[str]) -> None:
    """Raises ConfigError if `keep_head` loads the head of a run with other classes than `class_names`."""
    if not settings.keep_head or settings.path is None:
        return
    name = _name(settings)
    if not loading.is_run(name.path):
        return
    head = loading.open_run(name.path, name.step)
    names = names_to_match(class_names, head.class_names, is_converted=head.is_converted)
    if names is not None and match(class_names, names, where="init_from.keep_head: the data set") is not None:
        raise ConfigError(
            f"init_from.keep_head: the head of {settings.path} has {len(names)} classes: {some(names)}; the "
            f"data set has {len(class_names)}: {some(class_names)}. Set it to False, or use the same classes"
        )


def _name(settings: InitFrom) -> CheckpointName:
    if settings.path is None:
        raise ConfigError("init_from.path is not set: give a run folder or a checkpoint")
    return parse_checkpoint(settings.path, where="init_from.path")


def _newest_config(run: str) -> Config | None:
    """The config of the newest readable checkpoint of a run folder. Its parameters may be damaged."""
    meta = checkpoint_folder.newest_meta(run)
    with contextlib.suppress(UserError):  # restoring the checkpoint reports damage
        return None if meta is None else from_saved(meta["config"], checked=checks.SECTIONS)
    return None


def _hints(settings: InitFrom) -> Hints:
    return Hints(
        num_heads=settings.num_heads,
        hidden_act=settings.hidden_act,
        interpolation=settings.interpolation,
        pooling=settings.pooling,
        mask=settings.mask,
        architecture=settings.architecture,
        leave_out=settings.leave_out,
    )


def _open_external(settings: InitFrom, name: CheckpointName) -> reading.OpenedWeights:
    """The weights of another code base. Raises CheckpointError also for a step, which only runs have."""
    path, hints = loading.external_path(name), dataclasses.replace(_hints(settings), params=settings.params)
    return reading.open_path(path, source=settings.source, hints=hints)
