"""Models of bytes: each byte is predicted from those before it, or hidden ones from the others.

A patch is a byte (model.pixels='byte'); texts are images of one row. Axis letter M: values of a byte.
"""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from vit_registers.config import Config, LanguageModelSettings, Model, image_size, lookup
from vit_registers.data.batch import IMAGE, Batch, MakeTarget, View
from vit_registers.errors import ConfigError
from vit_registers.models.blocks import dims
from vit_registers.models.causal_masks import is_causal
from vit_registers.models.params import abstract_model, build_model, init_params
from vit_registers.models.pixels import NUM_BYTES, reads_bytes
from vit_registers.models.vit import static_attention, token_layout
from vit_registers.objectives.base import BACKBONE, Best, Sums

BYTE_HEAD = "byte_head"  # the key of the classifier of bytes in the parameters
WEIGHT = (
    "weight"  # the target weight_BxP of a prepared batch: of each loss, 0 for bytes that are not predicted
)
BITS = 1.0 / math.log(2.0)  # in a nat
NEXT, _HIDDEN, ANY_ORDER = "next", "hidden", "any_order"  # of LanguageModelSettings.predicts


def byte_losses(
    settings: LanguageModelSettings,
    model: Model,
    params: Any,
    image_BxHxWx1: jax.Array,
    hidden_BxP: jax.Array,
    drop_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(loss_BxP in nats, is_right_BxP, is_finite_BxP) of each byte of `image_BxHxWx1`, integers 0 to 255.

    The mask token stands for the bytes of `hidden_BxP`; the losses of other bytes, which the model sees, are
    of no use. With predicts=next, `hidden_BxP` gives only the shape: the token of a byte has the byte before
    it, and the first has the mask token.
    """
    byte_BxP = image_BxHxWx1.reshape(hidden_BxP.shape).astype(jnp.int32)
    seen_BxP, masked_BxP = byte_BxP, hidden_BxP
    if settings.predicts == NEXT:
        seen_BxP = jnp.roll(byte_BxP, 1, axis=1)
        masked_BxP = jnp.broadcast_to(jnp.arange(byte_BxP.shape[1])[None] == 0, byte_BxP.shape)
    graphdef, _ = abstract_model(model)
    image = seen_BxP.reshape(image_BxHxWx1.shape).astype(jnp.float32)
    outputs = build_model(graphdef, params[BACKBONE])(image, drop_key=drop_key, masked_BxP=masked_BxP)
    head = params[BYTE_HEAD]
    logits_BxPxM = outputs.patches @ head["kernel"] + head["bias"][None, None]
    loss_BxP = optax.softmax_cross_entropy_with_integer_labels(logits_BxPxM, byte_BxP)
    is_finite_BxP = jnp.isfinite(logits_BxPxM).all(axis=-1)  # argmax ranks NaN highest
    return loss_BxP, is_finite_BxP & (logits_BxPxM.argmax(axis=-1) == byte_BxP), is_finite_BxP


def num_hidden(share: float, num_patches: int) -> int:
    """The number of hidden bytes of a sequence of `num_patches`."""
    return round(share * num_patches)


class LanguageModel:
    """The Objective (base.py) for objective.name='language_model'. Its `extra` is empty.

    Parameters are {"vit", "byte_head"}. The head starts at zero: all bytes are then equally probable.
    """

    best: ClassVar[Best] = Best("bits_per_byte", label="bits per byte", is_higher_better=False)
    targets: ClassVar[tuple[str, ...]] = ()
    is_additive: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        self._model, self._settings = config.model, config.objective.language_model
        self.host_targets: dict[str, MakeTarget] = {}
        self._size = image_size(config)
        self.views = {IMAGE: View(*self._size, config.data.train_ops, "data.train_ops")}

    def check(self) -> None:
        """Raises ConfigError for a model that reads no bytes, or the bytes that it predicts."""
        model, share, name = self._model, self._settings.share, "objective.name='language_model'"
        lookup(
            dict.fromkeys((NEXT, _HIDDEN, ANY_ORDER)),
            self._settings.predicts,
            "objective.language_model.predicts",
        )
        if not reads_bytes(model):
            raise ConfigError(f"{name} requires model.pixels='byte', not '{model.pixels}'")
        if not model.use_mask_token or model.num_classes:
            raise ConfigError(
                f"{name} requires model.use_mask_token=True and model.num_classes=0 (the head is its own)"
            )
        count, layout = math.prod(self._size), token_layout(model)
        if count != layout.num_patches:
            raise ConfigError(
                f"data.image_size={self._size}: must be model.image_size={model.image_size}, or be unset"
            )
        if self._settings.predicts == NEXT:
            if not is_causal(static_attention(model, layout)[0], layout):
                raise ConfigError(
                    f"objective.language_model.predicts='next' with model.mask='{model.mask}', in which "
                    "bytes see later ones: set model.mask to causal or fractal_causal"
                )
        elif self._settings.predicts == _HIDDEN and not 0 < num_hidden(share, count) < count:
            raise ConfigError(
                f"objective.language_model.share={share}: hides {num_hidden(share, count)} of the {count} "
                "bytes of a sequence: some must be hidden, and some seen"
            )

    def init(self, key: jax.Array, backbone: Any = None, heads: Any = None) -> tuple[Any, Any]:
        """({"vit", "byte_head"}, {}); the head is zero unless `heads` has it."""
        if backbone is None:
            backbone = init_params(self._model, key=key)
        if heads is None:
            width = dims(self._model).width
            heads = {BYTE_HEAD: {"kernel": jnp.zeros((width, NUM_BYTES)), "bias": jnp.zeros(NUM_BYTES)}}
        return {BACKBONE: backbone, **heads}, {}

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """The bytes, and the weights of their losses.

        They are 1 for predicted bytes: all, or as many in each sequence, drawn uniformly. With
        predicts=any_order the number n of hidden bytes of a sequence of P is drawn uniformly from 1 to P, and
        their weights are P / n: the expectation is the loss of all bytes, each predicted from those before it
        in a random order (arXiv:2110.02037, equation 5).
        """
        image = batch.views[IMAGE]
        shape = (len(image), math.prod(image.shape[1:]))
        number_key, rank_key = jax.random.split(key)
        rank_BxP = jax.random.uniform(rank_key, shape).argsort(axis=1).argsort(axis=1)
        if self._settings.predicts == NEXT:
            weight_BxP = jnp.ones(shape)
        elif self._settings.predicts == _HIDDEN:
            weight_BxP = (rank_BxP < num_hidden(self._settings.share, shape[1])).astype(jnp.float32)
        else:
            number_Bx1 = jax.random.randint(number_key, (shape[0], 1), 1, shape[1] + 1)
            weight_BxP = jnp.where(rank_BxP < number_Bx1, shape[1] / number_Bx1, 0.0)
        return Batch(views={IMAGE: image}, targets={WEIGHT: weight_BxP}, mask_B=batch.mask_B)

    def loss(
        self, params: Any, extra: Any, batch: Batch, step: jax.Array, key: jax.Array
    ) -> tuple[Sums, Any]:
        """Sums of loss (nats), bits_per_byte and accuracy over the predicted bytes, with their weights."""
        del step
        weight_BxP = batch.targets[WEIGHT] * batch.mask_B[:, None]
        loss_BxP, is_right_BxP, _ = byte_losses(
            self._settings, self._model, params, batch.views[IMAGE], batch.targets[WEIGHT] > 0, key
        )
        loss = jnp.where(weight_BxP > 0, weight_BxP * loss_BxP, 0.0).sum()
        count = weight_BxP.sum()
        return {
            "loss": (loss, count),
            "bits_per_byte": (loss * BITS, count),
            "accuracy": ((weight_BxP * is_right_BxP).sum(), count),
        }, extra

    def after_update(self, params: Any, extra: Any, step: jax.Array) -> Any:
        """`extra`, which is empty."""
        del params, step
        return extra

    def eval_params(self, params: Any, extra: Any) -> Any:
        """The parameters themselves."""
        del extra
        return params
