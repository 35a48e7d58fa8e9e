"""The model that `vit_registers.load` returns: a ViT that knows its images, its classes and its origin."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from vit_registers.config import Config, image_size
from vit_registers.data import eval_images
from vit_registers.data.class_names import some
from vit_registers.data.ops.strings import Target
from vit_registers.interop.summary import describe_model, describe_preprocessing
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
        about, size = self.about, image_size(self.config)
        classes = None if about.class_names is None else some(about.class_names)
        parts = describe_model(self.config.model, size, classes)
        parts["preprocess"] = describe_preprocessing(self.config.data, size, about.normalisation)
        width = max(map(len, parts))
        lines = [f"  {name:<{width}}  {text}" for name, text in parts.items()]
        return "\n".join([f"{type(self).__name__} of {about.origin}", *lines])

    __str__ = __repr__


def build_loaded(about: About, params: Any) -> LoadedModel:
    """The LoadedModel with those parameters, nested dicts."""
    abstract = nnx.eval_shape(lambda: LoadedModel(about, rngs=nnx.Rngs(0)))
    return nnx.merge(nnx.split(abstract, nnx.Param)[0], params)
