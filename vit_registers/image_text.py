"""Whole models of images and texts: loaded from run folders and other code bases, and saved for these."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_registers import loading
from vit_registers.checkpoint_names import CheckpointName, parse_checkpoint
from vit_registers.config import Config, Mesh, Text, lookup
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.interop import image_text as interop
from vit_registers.interop.export import targets
from vit_registers.interop.export.files import check_name
from vit_registers.interop.export.image_text import IMAGE_TEXT_TARGETS, export_image_text
from vit_registers.interop.export.text_configs import is_by_timm
from vit_registers.interop.hints import Hints
from vit_registers.interop.preprocessing import preprocessing
from vit_registers.interop.tensor_map import table_text
from vit_registers.interop.values import check_leaves, compare_parameters
from vit_registers.loaded_model import About, LoadedModel
from vit_registers.models.blocks import dims
from vit_registers.models.params import abstract_model
from vit_registers.models.paths import leaves_of
from vit_registers.models.text.image_text import ImageTextModel, build_image_text
from vit_registers.models.text.tower import block_settings
from vit_registers.runs.output_folder import (
    check_output,
    no_new_folders_on_failure,
    nothing_new_on_failure,
    reported_errors,
)
from vit_registers.runtime.mesh import make_mesh
from vit_registers.storage import paths

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


class LoadedImageText(ImageTextModel):
    """An ImageTextModel that was loaded: `vit` is a LoadedModel, whose `preprocess` prepares images."""

    vit: LoadedModel

    def save(self, path: str | Path, to: str, *, dtype: str = "float32") -> list[Path]:
        """Writes the whole model for another library, reads it again, and returns the paths of its files.

        `to` is transformers, open_clip, clip (OpenAI's names) or big_vision. A path that ends in .safetensors
        or .npz is a file of tensors; others are folders, with the config that the library reads. A line says
        what differs there. Raises CheckpointError if the format cannot represent the model, or if `path` has
        something else; nothing is written then.
        """
        check_target(to, "to")
        lookup(_DTYPES, dtype, "dtype")
        path = str(path)
        check_name(path, to, is_folder=to == "transformers")
        check_output(path, self.vit.about.origin, target=to)
        params = whole_params(self)
        check_leaves(leaves_of(params), self.vit.about.origin)
        e = export_image_text(self.vit.model, self.text.text, params, to)
        for note in e.notes:
            print(f"note: {note}", flush=True)
        folder = paths.folder(path)
        with contextlib.ExitStack() as stack:
            stack.enter_context(no_new_folders_on_failure(folder))
            stack.enter_context(nothing_new_on_failure(folder))
            stack.enter_context(reported_errors(path))
            written = targets.write(e, path, jnp.dtype(_DTYPES[dtype]), self.vit.config.data)
            _check_written(e, path, to, np.dtype(_DTYPES[dtype]))
        return written


def check_target(to: str, where: str, *, others: tuple[str, ...] = ()) -> None:
    """Raises ConfigError if whole models cannot be written as `to`, the value of the setting `where`.

    The message names the `others` too.
    """
    if to not in IMAGE_TEXT_TARGETS:
        known = ", ".join((*others, *IMAGE_TEXT_TARGETS))
        raise ConfigError(f"{where}={to}: models of images and texts are written as {known}")


def _check_written(e: targets.Export, path: str, to: str, dtype: np.dtype) -> None:
    """Raises CheckpointError if what was written is not `e`, bit for bit."""
    assert e.text is not None
    hints = Hints(
        image_size=e.model.image_size,
        num_heads=dims(e.model).num_heads,
        hidden_act=e.model.activation,
        pooling=e.model.pooling,
    )
    source = "timm" if is_by_timm(e.model) and to == "open_clip" else to
    heads = dims(block_settings(e.text)).num_heads
    opened = interop.open_image_text(path, source=source, hints=hints, text_num_heads=heads)
    compare_parameters(
        leaves_of(interop.read_image_text(opened)).items(), leaves_of(e.whole_params()), dtype, path
    )


def load_both_towers(
    text: str,
    *,
    step: int | None,
    params: str | None,
    source: str,
    hints: Hints,
    text_num_heads: int | None,
) -> LoadedImageText:
    """The whole model of a run folder or of other weights; see vit_registers.load_image_text."""
    name = parse_checkpoint(text, step, where="path")
    return load_whole(name, params=params, source=source, hints=hints, text_num_heads=text_num_heads)


def whole_params(model: ImageTextModel) -> dict[str, Any]:
    """The parameters of a whole model, nested, by the names of its parts."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def load_whole(
    name: CheckpointName, *, params: str | None, source: str, hints: Hints, text_num_heads: int | None
) -> LoadedImageText:
    """The whole model of a run folder or of other weights, by its name."""
    path = name.local()
    if loading.is_run(path):
        loading.refuse_hints(path, source, hints)
        return _load_run(path, name.step, params)
    opened = _open(name, params=params, source=source, hints=hints, text_num_heads=text_num_heads)
    data, origin = preprocessing(opened.image, Path(path).expanduser())
    print(interop.describe_image_text(opened), flush=True)
    about = About(
        config=Config(model=opened.model, text=opened.text, data=data),
        origin=name.path,
        class_names=None,
        normalisation=origin,
    )
    return _build(about, opened.text, interop.read_image_text(opened))


def _load_run(run: str, step: int | None, params: str | None) -> LoadedImageText:
    checkpoint = loading.open_run(run, step)
    modules = checkpoint.read_params(make_mesh(Mesh()), params)
    if "text" not in modules:
        raise CheckpointError(f"{run} is a run without a text tower; vit_registers.load loads its model")
    about = About(
        config=checkpoint.config,
        origin=f"{run}, step {checkpoint.step}",
        class_names=None,
        normalisation=checkpoint.normalisation_origin,
    )
    return _build(about, checkpoint.config.text, modules)


def _open(
    name: CheckpointName, *, params: str | None, source: str, hints: Hints, text_num_heads: int | None
) -> interop.OpenedImageText:
    hints = dataclasses.replace(hints, params=params)
    path = loading.external_path(name)
    return interop.open_image_text(path, source=source, hints=hints, text_num_heads=text_num_heads)


def _build(about: About, text: Text, params: Mapping[str, Any]) -> LoadedImageText:
    return build_image_text(lambda rngs: LoadedModel(about, rngs=rngs), text, params, LoadedImageText)


def convert_image_text(name: CheckpointName, output: str, *, to: str, dtype: str, **how: Any) -> str:
    """Writes a whole model for another library; returns what was compared, in a line.

    `how` are the arguments of image_text_table.
    """
    written = load_whole(name, **how).save(output, to, dtype=dtype)
    for path in written:
        print(f"written: {path} ({path.stat().st_size:,} bytes)")
    return f"read again: both towers, equal bit for bit; {output}"


def image_text_table(
    name: CheckpointName, *, params: str | None, source: str, hints: Hints, text_num_heads: int | None
) -> str:
    """Which tensors of weights of another code base are which parameters, a line for each."""
    opened = _open(name, params=params, source=source, hints=hints, text_num_heads=text_num_heads)
    image = opened.image
    leaves = interop.text_leaves(opened.text, opened.joint)
    return "\n".join(
        (
            interop.describe_image_text(opened),
            table_text(image.tensor_map, leaves_of(abstract_model(image.native)[1]), image.found.in_file),
            table_text(opened.text_map, leaves, lambda name: image.found.text[name]),
        )
    )
