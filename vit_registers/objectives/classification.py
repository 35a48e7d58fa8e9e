"""Supervised classification: a loss of logits against labels, with mixup and CutMix."""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vit_registers.config import Config, image_size
from vit_registers.data.batch import IMAGE, LABEL, Batch, MakeTarget, View, normalize
from vit_registers.models.params import abstract_model, build_model, init_params
from vit_registers.objectives import mixing
from vit_registers.objectives.base import BACKBONE, Best, Sums
from vit_registers.objectives.losses import is_finite, make_loss_per_example


class Classification:
    """The Objective (base.py) for objective.name='classification'. Its `extra` is empty."""

    best: ClassVar[Best] = Best("top1", label="top-1", is_fraction=True)
    targets: ClassVar[tuple[str, ...]] = (LABEL,)
    is_additive: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        self._model, self._data = config.model, config.data
        self._settings = config.objective.classification
        self.host_targets: dict[str, MakeTarget] = {}
        self.views = {IMAGE: View(*image_size(config), config.data.train_ops, "data.train_ops")}

    def check(self) -> None:
        """Raises ConfigError for an unknown loss or mixing, and for settings that do not fit the data."""
        mixing.check_mixing(self._settings, self._data.batch_size)
        make_loss_per_example(self._settings, self._model.num_classes)

    def init(self, key: jax.Array, backbone: Any = None, heads: Any = None) -> tuple[Any, Any]:
        """({"vit": ...}, {}): the model with its head, from its initializers or from `backbone`."""
        assert not heads, "the classifier is part of the model"
        return {BACKBONE: init_params(self._model, key=key) if backbone is None else backbone}, {}

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """Normalised, mixed images, label distributions BxY, and the mask of valid examples."""
        label_BxY = jax.nn.one_hot(batch.targets[LABEL], self._model.num_classes)
        image, label_BxY, mask_B = mixing.mix(
            key,
            self._settings,
            batch.views[IMAGE],
            label_BxY,
            batch.mask_B,
            normalize=functools.partial(normalize, mean=self._data.mean, std=self._data.std),
        )
        return Batch(views={IMAGE: image}, targets={LABEL: label_BxY}, mask_B=mask_B)

    def loss(
        self, params: Any, extra: Any, batch: Batch, step: jax.Array, key: jax.Array
    ) -> tuple[Sums, Any]:
        """Sums of loss and top1, the latter on mixed labels."""
        del step
        loss_per_example = make_loss_per_example(self._settings, self._model.num_classes)
        graphdef, _ = abstract_model(self._model)
        logits_BxY = build_model(graphdef, params[BACKBONE])(batch.views[IMAGE], drop_key=key).logits
        assert logits_BxY is not None  # the model of a run has the classes of its data
        label_BxY, mask_B = batch.targets[LABEL], batch.mask_B
        loss_B = loss_per_example(logits_BxY, label_BxY)
        is_right_B = logits_BxY.argmax(axis=-1) == label_BxY.argmax(axis=-1)
        is_right_B &= is_finite(logits_BxY)  # argmax ranks NaN highest
        count = mask_B.sum()
        return {
            "loss": (jnp.where(mask_B, loss_B, 0.0).sum(), count),
            "top1": ((is_right_B & mask_B).sum(), count),
        }, extra

    def after_update(self, params: Any, extra: Any, step: jax.Array) -> Any:
        """`extra`, which is empty."""
        del params, step
        return extra

    def eval_params(self, params: Any, extra: Any) -> Any:
        """The parameters themselves."""
        del extra
        return params
