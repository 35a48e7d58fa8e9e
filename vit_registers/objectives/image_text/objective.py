"""Learning from images and the texts that describe them, by comparing all of a batch: CLIP and SigLIP."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vit_registers.config import Config, image_size
from vit_registers.data.batch import (
    IMAGE,
    TOKENS,
    Batch,
    MakeTarget,
    Texts,
    View,
    join_batch,
    normalize,
    split_batch,
)
from vit_registers.models.params import init_params
from vit_registers.models.pooling import pooled_width
from vit_registers.objectives.base import BACKBONE, Best, Sums
from vit_registers.objectives.image_text import towers
from vit_registers.objectives.image_text.checks import check_image_text
from vit_registers.objectives.image_text.losses import clip_losses, siglip_losses
from vit_registers.objectives.image_text.towers import IMAGE_PROJ, LOG_SCALE, LOGIT_BIAS, TEXT

# ln(scale) of CLIP, after each step. 0 is cosines themselves; 100 keeps training stable (arXiv:2103.00020).
CLIP_BOUNDS = (0.0, math.log(100.0))


class ImageText:
    """The Objective (base.py) for objective.name='image_text'. Its `extra` is empty.

    Parameters are {"vit", "text", "image_proj", "logit_scale", "logit_bias"}: the towers, the projection of
    the image tower (unless has_image_projection is False), the logarithm of the scale of cosines, and the
    bias of SigLIP.
    """

    best: ClassVar[Best] = Best(
        "top1",
        label="zero-shot top-1",
        is_fraction=True,
        otherwise=Best("mean_recall", label="mean recall of retrieval", is_fraction=True),
    )
    targets: ClassVar[tuple[str, ...]] = (TOKENS,)
    is_additive: ClassVar[bool] = False

    def __init__(self, config: Config) -> None:
        self._config, self._settings = config, config.objective.image_text
        self.host_targets: dict[str, MakeTarget] = {}
        text = config.text
        self.texts = Texts(text.context, text.vocab_size, self._settings.group)
        self.views = {IMAGE: View(*image_size(config), config.data.train_ops, "data.train_ops")}

    def check(self) -> None:
        """Raises ConfigError for settings with which training is not possible."""
        config = self._config
        check_image_text(self._settings, config.model, config.text, batch_size=config.data.batch_size)

    def init(self, key: jax.Array, backbone: Any = None, heads: Any = None) -> tuple[Any, Any]:
        """({"vit", "text", ...}, {}). `heads`, if given, are all modules but "vit"."""
        vit_key, text_key, projection_key = jax.random.split(key, 3)
        if backbone is None:
            backbone = init_params(self._config.model, key=vit_key)
        if heads is None:
            heads = self._init_heads(text_key, projection_key)
        return {BACKBONE: backbone, **heads}, {}

    def _init_heads(self, text_key: jax.Array, projection_key: jax.Array) -> dict[str, Any]:
        settings, text = self._settings, self._config.text
        heads = {
            TEXT: towers.init_text(text, key=text_key),
            LOG_SCALE: jnp.log(jnp.float32(settings.initial_scale)),
        }
        if settings.has_image_projection:
            width = pooled_width(self._config.model)
            shape = (width, text.embed_dim)
            heads[IMAGE_PROJ] = {"kernel": jax.random.normal(projection_key, shape) / math.sqrt(width)}
        if settings.loss == "siglip":
            heads[LOGIT_BIAS] = jnp.float32(settings.initial_bias)
        return heads

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """Normalised images; tokens and mask_B as they are."""
        del key
        data = self._config.data
        image = normalize(batch.views[IMAGE], mean=data.mean, std=data.std)
        return Batch(views={IMAGE: image}, targets={TOKENS: batch.targets[TOKENS]}, mask_B=batch.mask_B)

    def loss(
        self, params: Any, extra: Any, batch: Batch, step: jax.Array, key: jax.Array
    ) -> tuple[Sums, Any]:
        """Sums of the loss and of scale and bias, which do not differ between examples."""
        return self.loss_in_parts(params, extra, batch, step, key, num_parts=1)

    def loss_in_parts(
        self, params: Any, extra: Any, batch: Batch, step: jax.Array, key: jax.Array, *, num_parts: int
    ) -> tuple[Sums, Any]:
        """The same; the vectors of one of `num_parts` micro-batches are computed at a time.

        All vectors are kept, and compared at once. The backward pass computes the towers of each micro-batch
        again, so that it has the gradients of the whole batch (GradCache, arXiv:2101.06983).
        """
        del step

        def embed(inputs: tuple[Batch, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return self._embed(params, *inputs)

        if num_parts == 1:
            image_BxE, text_BxE = embed((batch, key))
        else:
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_parts))
            again = jax.checkpoint(embed, prevent_cse=False)  # a loop, so nothing could be shared
            found = jax.lax.map(again, (split_batch(batch, num_parts), keys))
            image_BxE, text_BxE = join_batch(found)
        return self._sums(params, image_BxE, text_BxE, batch.mask_B), extra

    def _embed(self, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Unit vectors (image_BxE, text_BxE) of a prepared batch."""
        config = self._config
        return (
            towers.embed_images(config.model, params, batch.views[IMAGE], drop_key=key),
            towers.embed_texts(config.text, params, batch.targets[TOKENS]),
        )

    def _sums(
        self, params: Mapping[str, Any], image_BxE: jax.Array, text_BxE: jax.Array, mask_B: jax.Array
    ) -> Sums:
        settings, log_scale, count = self._settings, params[LOG_SCALE], mask_B.sum()
        sizes = {"chunk": settings.chunk, "group": settings.group}
        scalars = {"scale": jnp.exp(log_scale)}
        if settings.loss == "siglip":
            scalars["bias"] = bias = params[LOGIT_BIAS]
            loss_B = siglip_losses(image_BxE, text_BxE, log_scale, bias, mask_B, **sizes)
        else:
            loss_B = clip_losses(image_BxE, text_BxE, log_scale, mask_B, **sizes)
        return {"loss": (loss_B.sum(), count)} | {name: (x * count, count) for name, x in scalars.items()}

    def bound(self, params: Any) -> Any:
        """The parameters with CLIP's scale from 1 to 100. SigLIP's has no bounds."""
        if self._settings.loss != "clip":
            return params
        return {**params, LOG_SCALE: jnp.clip(params[LOG_SCALE], *CLIP_BOUNDS)}

    def after_update(self, params: Any, extra: Any, step: jax.Array) -> Any:
        """`extra`, which is empty."""
        del params, step
        return extra

    def eval_params(self, params: Any, extra: Any) -> Any:
        """The parameters themselves."""
        del extra
        return params
