"""Models out of checkpoints, of run folders and of other people: to a config, parameters or a ViT."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from vit_registers.config import (
    READ,
    RESUME,
    Config,
    Data,
    InitFrom,
    Mesh,
    Model,
    checks,
    from_saved,
    image_size,
    lookup,
    may_change,
    override,
    to_dict,
)
from vit_registers.data.class_names import match, some
from vit_registers.errors import CheckpointError, ConfigError, UserError
from vit_registers.interop import reading, transfer
from vit_registers.interop.channels import adapt_statistics, describe_channels
from vit_registers.interop.infer import HIDDEN_ACTS, Hints
from vit_registers.interop.preprocessing import preprocessing
from vit_registers.interop.shown import eval_ops_at
from vit_registers.interop.unwrap import SOURCES
from vit_registers.interop.values import check_leaves
from vit_registers.models.checks import attention_obstacle
from vit_registers.models.params import abstract_model, build
from vit_registers.models.paths import Leaf, leaves_of
from vit_registers.models.resampling import RESAMPLINGS
from vit_registers.models.vit import ViT
from vit_registers.objectives.base import BACKBONE
from vit_registers.runs import checkpoint_folder
from vit_registers.runs.parameters import read_params, trained_config
from vit_registers.training import sharding

PARAMS = ("params", "ema")  # trained, or averaged


def read_config(
    run: str, step: int | None = None, overrides: Mapping[str, Any] | None = None
) -> tuple[int, Config]:
    """The step that is read (the newest intact one for None), and the config of the run with `overrides`.

    The devices are those that there are, however the run was sharded. An attention back end that does not run
    on them is replaced by "xla", which a line says. See `with_overrides` for what can be given.
    """
    check_free(overrides or {})
    step = checkpoint_folder.find_step(run, step)
    config = dataclasses.replace(trained_config(run, step), mesh=Mesh())
    config = with_overrides(config, overrides or {})
    if "model.attention" not in (overrides or {}):
        config = dataclasses.replace(config, model=_runnable(config.model, run))
    return step, config


def check_free(overrides: Mapping[str, Any]) -> None:
    """Raises ConfigError for an override that would make another model of a checkpoint."""
    free = may_change(READ)
    for name in overrides:
        if name not in free:
            raise ConfigError(
                f"--config.{name}: a checkpoint is read as it was trained; what can be given is data.*, "
                f"mesh.* and {', '.join(sorted(one for one in free if one.startswith('model.')))}"
            )


def with_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """The config of a checkpoint with settings put in that may differ where it is read.

    The model stays the one that the parameters are made for: model.image_size is the size of the images,
    as data.image_size is, and positions are resampled to it. At another size data.eval_ops is scaled, so that
    the model is shown the same part of an image, unless it is given too. Raises ConfigError for other
    settings, and where data.eval_ops cannot be scaled.
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
    # How it was trained is of the past, and need not be what this version would train.
    changed = override(to_dict(config), given, checked=("model", "data", "mesh"))
    if "data.eval_ops" in given:
        return changed
    ops = eval_ops_at(config.data.eval_ops, old=image_size(config), new=image_size(changed))
    return dataclasses.replace(changed, data=dataclasses.replace(changed.data, eval_ops=ops))


def _runnable(model: Model, run: str) -> Model:
    """The model with attention that these devices compute; a line is printed where it is another."""
    obstacle = attention_obstacle(model)
    if obstacle is None:
        return model
    print(f"{run}: computed with model.attention='xla', as {obstacle}", flush=True)
    return dataclasses.replace(model, attention="xla")


def trained_on(run: str, step: int) -> checkpoint_folder.TrainedOn | None:
    """What a checkpoint was trained on; None where it does not know, as of weights of others."""
    return checkpoint_folder.trained_on(checkpoint_folder.read_meta(run, step))


def trained_names(run: str, step: int) -> tuple[str, ...] | None:
    """The classes of the head of a checkpoint; None where it does not know."""
    data = trained_on(run, step)
    return None if data is None else data.class_names


def normalisation_origin(run: str, step: int) -> str | None:
    """Where the mean and deviation of a converted run come from; None: from its config, or not recorded."""
    return checkpoint_folder.read_meta(run, step).get("normalisation")


def describe_normalisation(data: Data, origin: str | None) -> str:
    """The normalisation of images in words, with where it comes from."""
    numbers = (", ".join(f"{value:g}" for value in values) for values in (data.mean, data.std))
    return "normalisation {}: mean {}, std {}".format(origin or "of the config", *numbers)


def read_model(
    run: str, step: int, config: Config, mesh: jax.sharding.Mesh, *, params: str | None = None
) -> tuple[nnx.GraphDef, Any]:
    """The graph definition and the parameters of the ViT of a checkpoint; arguments as of read_params."""
    graphdef, _ = abstract_model(config.model)
    return graphdef, read_params(run, step, config, mesh, params=params)[BACKBONE]


def load_run(run: str, *, step: int | None = None, params: str | None = None) -> ViT:
    """The model of a run folder with the parameters of one checkpoint, on all devices.

    `step` defaults to the newest intact checkpoint; `params` is "params" for the trained ones, "ema" for the
    averaged ones, or None for those that the objective evaluates, see eval_params_name.
    Raises CheckpointError where there is none.
    """
    step, config = read_config(run, step)
    return run_model(run, step, config, params=params)


def run_model(run: str, step: int, config: Config, *, params: str | None = None) -> ViT:
    """The model of a checkpoint of a run, on all devices; `config` is that of read_config."""
    graphdef, values = read_model(run, step, config, sharding.make_mesh(Mesh()), params=params)
    return build(graphdef, values)


def open_others(path: str, overrides: Mapping[str, Any]) -> tuple[ViT, Config, str]:
    """(the model of other people's checkpoint, its config with `overrides`, its normalisation's origin)."""
    opened = open_start(InitFrom(path=path))
    data, origin = preprocessing(opened, Path(path).expanduser())
    config = with_overrides(Config(model=opened.model, data=data), overrides)
    print(reading.describe(opened), flush=True)
    return reading.build(dataclasses.replace(opened, model=config.model)), config, origin


def is_run(path: str) -> bool:
    """Whether it is a run folder, and not a file or folder of other people."""
    return checkpoint_folder.checkpoint_root(path).is_dir()


def load(path: str, *, step: int | None, params: str | None, source: str, hints: Hints) -> ViT:
    """The model of a run folder, or of a checkpoint of other people, which is said in a line."""
    if params is not None:
        lookup(dict.fromkeys(PARAMS), params, "params")
    if is_run(path):
        refuse_hints(path, source, hints)
        return load_run(path, step=step, params=params)
    if step is not None:
        raise CheckpointError(f"{path} is no run folder, and step is for those")
    opened = reading.open_path(path, source=source, hints=dataclasses.replace(hints, params=params))
    print(reading.describe(opened), flush=True)
    if opened.model.channels != opened.native.channels:
        data, origin = preprocessing(opened, Path(path).expanduser())
        print(describe_normalisation(data, origin), flush=True)
    return reading.build(opened)


def refuse_hints(path: str, source: str, hints: Hints) -> None:
    """Raises ConfigError where something is said of a run folder that its config says."""
    if source != "auto" or hints != Hints():
        raise ConfigError(
            f"{path} is a run folder, whose config says all: source, image_size and such are for others"
        )


def _start_hints(settings: InitFrom) -> Hints:
    return Hints(
        num_heads=settings.num_heads,
        hidden_act=settings.hidden_act,
        interpolation=settings.interpolation,
        pooling=settings.pooling,
        mask=settings.mask,
        architecture=settings.architecture,
        leave_out=settings.leave_out,
    )


def open_start(settings: InitFrom) -> reading.Opened:
    """The checkpoint of other people that training starts from."""
    hints = dataclasses.replace(_start_hints(settings), params=settings.params)
    return reading.open_path(settings.path, source=settings.source, hints=hints)


def start_settings(settings: InitFrom, *, run: str | None = None) -> tuple[Model, Data]:
    """The Model and the Data of the weights that training starts from; none of them is read.

    Where `run` is a run folder with a checkpoint that started from them, its own: what has been trained needs
    the weights no more, and they may be gone. How the model is computed is that of a new run.
    """
    if run is not None and (config := _begun(run)) is not None and config.init_from.path == settings.path:
        free = [one.partition(".")[2] for one in may_change(RESUME) if one.startswith("model.")]
        defaults = {name: getattr(Model(), name) for name in free}
        return dataclasses.replace(config.model, **defaults), config.data
    if is_run(settings.path):
        config = read_config(settings.path)[1]
        return config.model, config.data
    opened = open_start(settings)
    return opened.model, preprocessing(opened, Path(settings.path).expanduser())[0]


def _begun(run: str) -> Config | None:
    """The config of the newest checkpoint of a run folder that can be read, intact or not."""
    meta = checkpoint_folder.newest_meta(run)
    with contextlib.suppress(UserError):  # damage is for those who restore it
        return None if meta is None else from_saved(meta["config"], checked=checks.SECTIONS)
    return None


def check_choices(settings: InitFrom) -> None:
    """Raises ConfigError for a name among the settings that is unknown, whether weights are given or not."""
    choices = {
        "registers": transfer.REGISTERS,
        "summaries": transfer.SUMMARIES,
        "source": ("auto", *SOURCES),
        "hidden_act": tuple(HIDDEN_ACTS),
        "interpolation": ("none", *RESAMPLINGS),
        "params": PARAMS,
    }
    for name, known in choices.items():
        if (value := getattr(settings, name)) is not None:
            lookup(dict.fromkeys(known), value, f"init_from.{name}")


def check_kept_head(settings: InitFrom, class_names: Sequence[str]) -> None:
    """Raises ConfigError where training starts from the head of a run of other classes than `class_names`."""
    if not settings.keep_head or settings.path is None or not is_run(settings.path):
        return
    names = trained_names(settings.path, read_config(settings.path)[0])
    if names is not None and match(class_names, names, where="init_from.keep_head: the data set") is not None:
        raise ConfigError(
            f"init_from.keep_head: the head of {settings.path} is of {len(names)} classes: {some(names)}; "
            f"the data set has {len(class_names)}: {some(class_names)}. Set it to False, or use these classes"
        )


def start_leaves(settings: InitFrom, model: Model) -> dict[Leaf, np.ndarray]:
    """The parameters of `model` that start from `settings.path`, by path; see interop/transfer.py."""
    if is_run(settings.path):
        refuse_hints(settings.path, settings.source, _start_hints(settings))
        step, config = read_config(settings.path)
        source, data = config.model, config.data
        mesh = sharding.make_mesh(Mesh())
        _, params = read_model(settings.path, step, config, mesh, params=settings.params)
        params = jax.device_get(params)
        check_leaves(leaves_of(params), f"{settings.path}, step {step}")
    else:
        opened = open_start(settings)
        data, origin = preprocessing(opened, Path(settings.path).expanduser())
        print(reading.describe(opened), describe_normalisation(data, origin), sep="\n", flush=True)
        source, params = opened.model, reading.read_leaves(opened)
    taken = transfer.taken_leaves(source, params, model, settings)
    if source.channels != model.channels:
        mean, std = (adapt_statistics(values, model.channels) for values in (data.mean, data.std))
        did = describe_channels(source.channels, model.channels)
        print(f"{did}; its normalisation there: mean {mean}, std {std}", flush=True)
    return taken
