"""Writes converted parameters as a run folder: of an image tower, or of a whole model of images and texts."""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers import cli, loading
from vit_registers import config as config_lib
from vit_registers.checkpoint_names import CheckpointName
from vit_registers.config import Config, ImageTextSettings, Mesh, ObjectiveSettings
from vit_registers.conversion import Input
from vit_registers.data.tokenizers.base import Tokenizer
from vit_registers.errors import CheckpointError
from vit_registers.image_text import LoadedImageText, load_whole, whole_params
from vit_registers.interop.opened import OpenedWeights
from vit_registers.interop.values import check_leaves, compare_parameters
from vit_registers.models.paths import leaves_of
from vit_registers.objectives.base import BACKBONE
from vit_registers.runs.checkpoint_folder import TrainedOn
from vit_registers.runs.checkpoints import Checkpoints
from vit_registers.runs.mask_file import write_mask_file
from vit_registers.runs.output_folder import (
    check_output,
    no_new_folders_on_failure,
    nothing_new_on_failure,
    reported_errors,
)
from vit_registers.runs.tokenizer_file import read_tokenizer, write_tokenizer
from vit_registers.runs.writers import write_parameter_overview
from vit_registers.runtime.mesh import make_mesh
from vit_registers.storage import files, paths
from vit_registers.storage.run_lock import lock_run
from vit_registers.text_readers import fitting_tokenizer
from vit_registers.training.state import TrainState


def to_run(source: Input, output: str) -> None:
    """Writes an image tower as a run folder with one checkpoint at step 0."""
    origin, config, data = f"from {source.path}", source.config, None
    if isinstance(source.checkpoint, OpenedWeights):
        origin += f", read as {source.checkpoint.found.source}"
    else:
        data = source.checkpoint.trained_on
    if config.objective.name == "image_text":  # without its text tower
        config = dataclasses.replace(config, objective=ObjectiveSettings())
    _write_run(
        output,
        config,
        {BACKBONE: source.read()},
        origin=origin,
        normalisation=source.normalisation,
        class_names=source.class_names if data is None else None,
        data=data,
    )


def _write_run(
    output: str,
    config: Config,
    params: Any,
    *,
    origin: str,
    normalisation: str | None,
    class_names: tuple[str, ...] | None = None,
    data: TrainedOn | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Writes a run folder with one checkpoint at step 0. `params` have the backbone under BACKBONE."""
    run = cli.writable_folder(output, "--output")
    write_parameter_overview(params, run / "parameters.txt")
    write_mask_file(config.model, run)
    write_tokenizer(tokenizer, run, is_resumed=False)
    files.write_json(run / "config.json", config_lib.to_dict(config))
    with Checkpoints(output, config, data=data) as written:
        state = TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=None, ema=None)
        written.save(state, None, origin=origin, normalisation=normalisation, class_names=class_names)


def convert_to_text_run(name: CheckpointName, output: str, *, tokenizer: str, **how: Any) -> str:
    """Writes a whole model as a run folder, which is read again; returns what was compared, in a line.

    `tokenizer` is a value of data.captions.tokenizer, for weights of another code base; `how` are the
    arguments of image_text_table. Raises CheckpointError for a model that no run can hold, ConfigError,
    DataError or MissingPackageError without a fitting tokenizer. Nothing is written then.
    """
    model = load_whole(name, **how)
    config, params = _config(model, tokenizer), whole_params(model)
    check_leaves(leaves_of(params), model.vit.about.origin)
    path = name.local()
    opened = (
        read_tokenizer(paths.folder(path))
        if loading.is_run(path)
        else fitting_tokenizer(config.data, config.text, flag="--tokenizer")
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(no_new_folders_on_failure(paths.folder(output)))
        stack.enter_context(lock_run(cli.writable_folder(output, "--output")))
        check_output(output, name.path, target="run")  # again: the lock now excludes other writers
        stack.enter_context(nothing_new_on_failure(paths.folder(output)))
        stack.enter_context(reported_errors(output))
        origin, normalisation = f"from {model.vit.about.origin}", model.vit.about.normalisation
        _write_run(output, config, params, origin=origin, normalisation=normalisation, tokenizer=opened)
        mesh = make_mesh(Mesh(), devices=jax.local_devices()[:1])
        written = leaves_of(loading.open_run(output).read_params(mesh))
        count = compare_parameters(leaves_of(params).items(), written, np.dtype(np.float32), output)
    return f"read again: {count} parameters of both towers are equal bit for bit; {output}"


def _config(model: LoadedImageText, tokenizer: str) -> Config:
    """The config of a run that holds the model, with the objective image_text."""
    config, origin = model.vit.config, model.vit.about.origin
    if config.objective.name == "image_text":  # a run
        return config
    if model.image_proj is not None and model.image_proj.bias is not None:
        raise CheckpointError(
            f"{origin}: the projection of images has a bias, which runs do not have: evaluate the weights "
            "themselves"
        )
    settings = ImageTextSettings(
        loss="clip" if model.logit_bias is None else "siglip",
        has_image_projection=model.image_proj is not None,
    )
    captions = dataclasses.replace(config.data.captions, tokenizer=tokenizer)
    found = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, captions=captions),
        objective=ObjectiveSettings(name="image_text", image_text=settings),
    )
    return config_lib.check_config(found, ("model", "data"))
