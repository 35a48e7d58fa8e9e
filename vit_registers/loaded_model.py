"""The model that `vit_registers.load` returns: a ViT that knows its images, its classes and its origin."""

import dataclasses
import math
from typing import Any

import jax
from flax import nnx

from vit_registers.config import Config, image_size
from vit_registers.data import eval_images
from vit_registers.data.class_names import some
from vit_registers.data.ops.strings import Target
from vit_registers.interop.opened import describe_normalisation
from vit_registers.interop.shown import shown_part
from vit_registers.models.blocks import dims
from vit_registers.models.vit import ViT


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """What is known of a loaded model besides its parameters."""

    config: Config
    origin: str  # where it was loaded from
    class_names: tuple[str, ...] | None  # of its head
    normalisation: str | None  # the origin of mean and deviation; None: the config


class LoadedModel(ViT):
    """A ViT with `config`, `class_names` and `preprocess`."""

    def __init__(self, about: About, *, rngs: nnx.Rngs):
        super().__init__(about.config.model, rngs=rngs)
        self.about = about

    @property
    def config(self) -> Config:
        """All settings: those of the training of a run; model and data of other weights."""
        return self.about.config

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, in the order of the logits; None if they are not known."""
        return self.about.class_names

    def preprocess(self, images: Any) -> jax.Array:
        """image_BxHxWxC, float32, as evaluate and analyze show them to the model.

        `images` is a path, a PIL image, a uint8 array HxWxC or BxHxWxC, or a list of these. They are resized
        and cropped by config.data.eval_ops and normalised. Raises DataError for what is no image, ConfigError
        for what is neither; see data/eval_images.py.
        """
        target = Target(*image_size(self.config), self.model.channels)
        return eval_images.preprocess(images, self.config.data, target)

    def __repr__(self) -> str:
        parts = _describe(self)
        width = max(map(len, parts))
        lines = [f"  {name:<{width}}  {text}" for name, text in parts.items()]
        return "\n".join([f"{type(self).__name__} of {self.about.origin}", *lines])

    __str__ = __repr__


def build_loaded(about: About, params: Any) -> LoadedModel:
    """The LoadedModel with those parameters, nested dicts."""
    abstract = nnx.eval_shape(lambda: LoadedModel(about, rngs=nnx.Rngs(0)))
    return nnx.merge(nnx.split(abstract, nnx.Param)[0], params)


def _describe(loaded: LoadedModel) -> dict[str, str]:
    """What the model is, by topic, each in a line."""
    config, about, model = loaded.config, loaded.about, loaded.model
    sizes, layout, (height, width) = dims(model), loaded.layout_for(image_size(config)), image_size(config)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(loaded, nnx.Param)))
    groups = {
        name: f"{where.stop - where.start} {name}"
        for name, where in layout.level_groups.items()
        if name not in ("cls", "patches")
    }
    tokens = ["cls"] * layout.has_cls + [*groups.values()]
    tokens.append(f"{layout.num_patches} patches ({layout.patch_grid[0]} x {layout.patch_grid[1]})")
    positions = model.positions
    if positions != "none":
        positions += f" (other image sizes: {model.position_resampling})"
    head = "none"
    if model.num_classes:
        names = "names not known" if about.class_names is None else some(about.class_names)
        head = f"{model.num_classes} classes: {names}"
    shown = shown_part(config.data.eval_ops, image_size(config))
    images = [shown.text, shown.method, describe_normalisation(config.data, about.normalisation)]
    return {
        "size": f"width {sizes.width}, depth {sizes.depth}, {sizes.num_heads} heads, {sizes.mlp} "
        f"{sizes.mlp_dim}, {model.activation}, {model.dtype}",
        "parameters": f"{count:,}",
        "images": f"{height} x {width} px, {model.channels} channels, patches of {model.patch_size} px",
        "tokens": f"{', '.join(tokens)}; {layout.num_tokens} in all",
        "mask": model.mask,
        "positions": positions,
        "pooling": model.pooling,
        "head": head,
        "preprocess": ", ".join(text for text in images if text),
    }
