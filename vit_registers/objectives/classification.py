"""Supervised classification: a loss of logits against labels, with mixup and CutMix."""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vit_registers.config import Config, image_size
from vit_registers.data.batch import IMAGE, LABEL, Batch, MakeTarget, View, normalize
from vit_registers.errors import ConfigError
from vit_registers.models.blocks import dims
from vit_registers.models.params import abstract_model, build_model, init_params
from vit_registers.models.vit import token_layout
from vit_registers.objectives import mixing
from vit_registers.objectives.base import BACKBONE, Best, Sums
from vit_registers.objectives.losses import (
    is_finite,
    make_loss_per_example,
    neighbour_distance,
    smooth_labels,
)


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
        """Raises ConfigError for an unknown loss or mixing, and settings that do not fit data or model."""
        mixing.check_mixing(self._settings, self._data.batch_size)
        make_loss_per_example(self._settings, self._model.num_classes)
        weight, depth = self._settings.neighbour_weight, dims(self._model).depth
        if weight and (not depth or token_layout(self._model).num_patches < 2):
            raise ConfigError(
                f"objective.classification.neighbour_weight={weight} requires a block and two patches: set "
                "it to 0, or change model.depth or model.patch_size"
            )

    def init(self, key: jax.Array, backbone: Any = None, heads: Any = None) -> tuple[Any, Any]:
        """({"vit": ...}, {}): the model with its head, from its initializers or from `backbone`."""
        assert not heads, "the classifier is part of the model"
        return {BACKBONE: init_params(self._model, key=key) if backbone is None else backbone}, {}

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """Normalised, mixed images, smoothed label distributions BxY, and the mask of valid examples."""
        label_BxY = jax.nn.one_hot(batch.targets[LABEL], self._model.num_classes)
        image, label_BxY, mask_B = mixing.mix(
            key,
            self._settings,
            batch.views[IMAGE],
            label_BxY,
            batch.mask_B,
            normalize=functools.partial(normalize, mean=self._data.mean, std=self._data.std),
        )
        label_BxY = smooth_labels(label_BxY, self._settings.label_smoothing)
        return Batch(views={IMAGE: image}, targets={LABEL: label_BxY}, mask_B=mask_B)

    def loss(
        self, params: Any, extra: Any, batch: Batch, step: jax.Array, key: jax.Array
    ) -> tuple[Sums, Any]:
        """Sums of loss and top1, the latter on mixed labels, and of neighbour_distance if the loss has it."""
        del step
        loss_per_example = make_loss_per_example(self._settings, self._model.num_classes)
        graphdef, _ = abstract_model(self._model)
        image_BxHxWxC = batch.views[IMAGE]
        model = build_model(graphdef, params[BACKBONE])
        outputs = model(image_BxHxWxC, drop_key=key)
        logits_BxY = outputs.logits
        assert logits_BxY is not None  # the model of a run has the classes of its data
        label_BxY, mask_B = batch.targets[LABEL], batch.mask_B
        loss_B = loss_per_example(logits_BxY, label_BxY)
        is_right_B = logits_BxY.argmax(axis=-1) == label_BxY.argmax(axis=-1)
        is_right_B &= is_finite(logits_BxY)  # argmax ranks NaN highest
        count = mask_B.sum()
        sums = {"top1": ((is_right_B & mask_B).sum(), count)}
        if weight := self._settings.neighbour_weight:
            layout = model.layout_for(image_BxHxWxC.shape[1:3])
            distance_B = neighbour_distance(list(outputs.taps["resid"])[1:], layout)
            loss_B += weight * distance_B
            sums["neighbour_distance"] = (jnp.where(mask_B, distance_B, 0.0).sum(), count)
        return {"loss": (jnp.where(mask_B, loss_B, 0.0).sum(), count)} | sums, extra

    def after_update(self, params: Any, extra: Any, step: jax.Array) -> Any:
        """`extra`, which is empty."""
        del params, step
        return extra

    def eval_params(self, params: Any, extra: Any) -> Any:
        """The parameters themselves."""
        del extra
        return params
