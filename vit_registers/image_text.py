"""Whole models of images and texts: loaded from run folders and other code bases, and saved for these."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from vit_registers import loading
from vit_registers.checkpoint_names import parse_checkpoint
from vit_registers.config import Config, Mesh, Text, lookup
from vit_registers.errors import CheckpointError
from vit_registers.interop import image_text as interop
from vit_registers.interop.export import targets
from vit_registers.interop.export.files import check_name
from vit_registers.interop.export.image_text import export_image_text
from vit_registers.interop.hints import Hints
from vit_registers.interop.preprocessing import preprocessing
from vit_registers.loaded_model import About, LoadedModel
from vit_registers.models.text.image_text import ImageTextModel, build_image_text
from vit_registers.runtime.mesh import make_mesh

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


class LoadedImageText(ImageTextModel):
    """An ImageTextModel that was loaded: `vit` is a LoadedModel, whose `preprocess` prepares images."""

    vit: LoadedModel

    def save(self, path: str | Path, to: str, *, dtype: str = "float32") -> list[Path]:
        """Writes the whole model for another library, and returns the paths of the files.

        `to` is transformers, open_clip, clip (OpenAI's names) or big_vision. A path that ends in .safetensors
        or .npz is a file of tensors, others are folders, with the config that the library reads. A line
        names what differs there. Raises CheckpointError if the format cannot represent the model.
        """
        lookup(_DTYPES, dtype, "dtype")
        check_name(str(path), to, is_folder=to == "transformers")
        params = nnx.to_pure_dict(nnx.state(self, nnx.Param))
        e = export_image_text(self.vit.model, self.text.text, params, to)
        if e.notes:
            print(f"{path}: " + "; ".join(e.notes), flush=True)
        return targets.write(e, path, jnp.dtype(_DTYPES[dtype]), self.vit.config.data)


def load_image_text(
    path: str,
    *,
    step: int | None,
    params: str | None,
    source: str,
    hints: Hints,
    text_num_heads: int | None,
) -> LoadedImageText:
    """The whole model of a run folder or of other weights; see vit_registers.load_image_text."""
    name = parse_checkpoint(path, step, where="path")
    local = name.local()
    if loading.is_run(local):
        loading.refuse_hints(local, source, hints)
        checkpoint = loading.open_run(local, name.step)
        modules = checkpoint.read_params(make_mesh(Mesh()), params)
        if "text" not in modules:
            raise CheckpointError(
                f"{local} is a run without a text tower; vit_registers.load loads its model"
            )
        about = About(
            config=checkpoint.config,
            origin=f"{local}, step {checkpoint.step}",
            class_names=None,
            normalisation=checkpoint.normalisation_origin,
        )
        return _build(about, checkpoint.config.text, modules)
    opened = interop.open_image_text(
        loading.external_path(name),
        source=source,
        hints=dataclasses.replace(hints, params=params),
        text_num_heads=text_num_heads,
    )
    data, origin = preprocessing(opened.image, Path(local).expanduser())
    print(interop.describe_image_text(opened), flush=True)
    about = About(
        config=Config(model=opened.model, text=opened.text, data=data),
        origin=name.path,
        class_names=None,
        normalisation=origin,
    )
    return _build(about, opened.text, interop.read_image_text(opened))


def _build(about: About, text: Text, params: Mapping[str, Any]) -> LoadedImageText:
    return build_image_text(lambda rngs: LoadedModel(about, rngs=rngs), text, params, LoadedImageText)
