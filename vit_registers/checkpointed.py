"""Models out of checkpoints, of run folders and of other people: to a config, parameters or a ViT."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from vit_registers.config import (
    Config,
    Data,
    InitFrom,
    Mesh,
    Model,
    from_mapping,
    image_size,
    lookup,
    override,
    to_dict,
)
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.interop import convert, transfer
from vit_registers.interop.channels import adapt_statistics, describe_channels
from vit_registers.interop.entries import Leaf
from vit_registers.interop.infer import Hints
from vit_registers.interop.preprocessing import preprocessing
from vit_registers.interop.shown import eval_ops_at
from vit_registers.interop.values import check_leaves
from vit_registers.models.vit import ViT
from vit_registers.training import averages, checkpoint_folder, sharding, state

# Settings that may be given where a checkpoint is read, of a run or of other people.
FREE = ("data.", "mesh.", "model.dtype", "model.attention", "model.image_size")
PARAMS = ("params", "ema")  # trained, or averaged
_NORMALISATION = "; normalisation "  # in a converted checkpoint's origin, before where it comes from


def read_config(
    run: str, step: int | None = None, overrides: Mapping[str, Any] | None = None
) -> tuple[int, Config]:
    """The step that is read (the newest intact one for None), and the config of the run with `overrides`.

    See `with_overrides`.
    """
    check_free(overrides or {})
    step = checkpoint_folder.find_step(run, step)
    # How it was trained is of the past, and need not be what this version would train.
    config = from_mapping(checkpoint_folder.read_meta(run, step)["config"], checked=())
    return step, with_overrides(config, overrides or {})


def check_free(overrides: Mapping[str, Any]) -> None:
    """Raises ConfigError where a setting is not one of FREE."""
    for name in overrides:
        if not name.startswith(FREE):
            raise ConfigError(f"--config.{name}: a run is read as it was trained, but for {', '.join(FREE)}")


def with_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """The config of a checkpoint with settings of FREE put in.

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
    changed = override(to_dict(config), given, checked=("model", "data", "mesh"))
    if "data.eval_ops" in given:
        return changed
    ops = eval_ops_at(config.data.eval_ops, old=image_size(config), new=image_size(changed))
    return dataclasses.replace(changed, data=dataclasses.replace(changed.data, eval_ops=ops))


def origin_of(where: str, normalisation: str | None) -> str:
    """What a converted checkpoint says of where it comes from; `normalisation_origin` reads it."""
    return where if normalisation is None else f"{where}{_NORMALISATION}{normalisation}"


def normalisation_origin(run: str, step: int) -> str | None:
    """Where the mean and deviation of a converted run come from; None: from its config, or not recorded."""
    origin = checkpoint_folder.read_meta(run, step)["origin"] or ""
    return origin.rpartition(_NORMALISATION)[2] if _NORMALISATION in origin else None


def describe_normalisation(data: Data, origin: str | None) -> str:
    """The normalisation of images in words, with where it comes from."""
    numbers = (", ".join(f"{value:g}" for value in values) for values in (data.mean, data.std))
    return "normalisation {}: mean {}, std {}".format(origin or "of the config", *numbers)


def counting_params(run: str, step: int) -> str:
    """Which parameters of a checkpoint are the model: "ema" of schedule-free training, else "params"."""
    meta = checkpoint_folder.read_meta(run, step)
    if meta["origin"] is not None:  # converted: whatever run it was, what counted of it is all that is there
        return "params"
    return averages.counting_params(from_mapping(meta["config"], checked=()).optimizer)


def read_model(
    run: str, step: int, model: Model, mesh: jax.sharding.Mesh, *, params: str | None = None
) -> tuple[nnx.GraphDef, Any]:
    """The graph definition and the parameters of a checkpoint, by default those that count, over `mesh`."""
    graphdef, abstract = state.abstract_model(model)
    target = jax.tree.map(sharding.place, abstract, sharding.parameter_shardings(abstract, mesh))
    return graphdef, checkpoint_folder.read_params(
        run, step, target, name=params or counting_params(run, step)
    )


def load_run(run: str, *, step: int | None = None, params: str | None = None) -> ViT:
    """The model of a run folder with the parameters of one checkpoint, on all devices.

    `step` defaults to the newest intact checkpoint; `params` is "params" for the trained ones, "ema" for the
    averaged ones, or None for those that count: averaged of schedule-free training, else trained.
    Raises CheckpointError where there is none.
    """
    step, config = read_config(run, step)
    return build_run(run, step, config.model, params=params)


def build_run(run: str, step: int, model: Model, *, params: str | None = None) -> ViT:
    """The model of one checkpoint of a run, of its own settings but for those of FREE, on all devices."""
    graphdef, values = read_model(run, step, model, sharding.make_mesh(Mesh()), params=params)
    return state.build(graphdef, values)


def open_others(path: str, overrides: Mapping[str, Any]) -> tuple[ViT, Config, str]:
    """(the model of other people's checkpoint, its config with `overrides`, its normalisation's origin)."""
    opened = open_start(InitFrom(path=path))
    data, origin = preprocessing(opened, Path(path).expanduser())
    config = with_overrides(Config(model=opened.model, data=data), overrides)
    print(convert.describe(opened), flush=True)
    return convert.build(dataclasses.replace(opened, model=config.model)), config, origin


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
    opened = convert.open_path(path, source=source, hints=dataclasses.replace(hints, params=params))
    print(convert.describe(opened), flush=True)
    if opened.model.channels != opened.native.channels:
        data, origin = preprocessing(opened, Path(path).expanduser())
        print(f"normalisation {origin}: mean {data.mean}, std {data.std}", flush=True)
    return convert.build(opened)


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


def open_start(settings: InitFrom) -> convert.Opened:
    """The checkpoint of other people that training starts from."""
    hints = dataclasses.replace(_start_hints(settings), params=settings.params)
    return convert.open_path(settings.path, source=settings.source, hints=hints)


def start_settings(settings: InitFrom) -> tuple[Model, Data]:
    """The Model and the Data of the weights that training starts from; none of them is read."""
    if is_run(settings.path):
        config = read_config(settings.path)[1]
        return config.model, config.data
    opened = open_start(settings)
    return opened.model, preprocessing(opened, Path(settings.path).expanduser())[0]


def start_leaves(settings: InitFrom, model: Model) -> dict[Leaf, np.ndarray]:
    """The parameters of `model` that start from `settings.path`, by path; see interop/transfer.py."""
    if is_run(settings.path):
        refuse_hints(settings.path, settings.source, _start_hints(settings))
        step, config = read_config(settings.path)
        source, data = config.model, config.data
        mesh = sharding.make_mesh(Mesh())
        _, params = read_model(settings.path, step, source, mesh, params=settings.params)
        params = jax.device_get(params)
        check_leaves(convert.leaves_of(params), f"{settings.path}, step {step}")
    else:
        opened = open_start(settings)
        data, origin = preprocessing(opened, Path(settings.path).expanduser())
        print(convert.describe(opened), describe_normalisation(data, origin), sep="\n", flush=True)
        source, params = opened.model, convert.read_leaves(opened)
    taken = transfer.taken_leaves(source, params, model, settings)
    if source.channels != model.channels:
        mean, std = (adapt_statistics(values, model.channels) for values in (data.mean, data.std))
        did = describe_channels(source.channels, model.channels)
        print(f"{did}; its normalisation there: mean {mean}, std {std}", flush=True)
    return taken
