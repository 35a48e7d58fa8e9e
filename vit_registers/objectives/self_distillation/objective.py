"""The objective of DINOv2: a student learns the outputs of its own average for other crops and for masks."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.config import Config, image_size
from vit_registers.data.batch import Batch, MakeTarget, View, normalize
from vit_registers.data.block_masks import BlockMasks, batch_masks
from vit_registers.models.blocks import uses_key
from vit_registers.models.params import abstract_model, init_params
from vit_registers.models.tokens import patch_grid
from vit_registers.objectives.base import BACKBONE, TEACHER, Best, Sums
from vit_registers.objectives.self_distillation.checks import check_distillation
from vit_registers.objectives.self_distillation.forward import (
    DINO_HEAD,
    IBOT_HEAD,
    NUM_GLOBALS,
    Crops,
    distillation,
)
from vit_registers.objectives.self_distillation.heads import init_head
from vit_registers.training.tables import cosine_table, line_table

MASKED = "masked"  # the target is_masked_BxVxP
_GLOBAL, _LOCAL = "global_{}", "local_{}"  # views, counted from 1


class SelfDistillation:
    """The Objective (base.py) for objective.name='self_distillation'.

    Parameters are {"vit", "dino_head"} and, with has_ibot_head, "ibot_head". `extra` is {"teacher": a copy of
    the parameters, which follows them as an exponential average, "centre": {"dino": Z, "ibot": Z}}.
    """

    best: ClassVar[Best] = Best("top1_k20", label="20-NN top-1", is_fraction=True)
    targets: ClassVar[tuple[str, ...]] = (MASKED,)
    is_additive: ClassVar[bool] = False

    def __init__(self, config: Config) -> None:
        self._config, self._settings = config, config.objective.self_distillation
        settings, (height, width) = self._settings, image_size(config)
        name = "objective.self_distillation"
        self.views = {
            _GLOBAL.format(i + 1): View(height, width, ops, f"{name}.global_ops[{i}]")
            for i, ops in enumerate(settings.global_ops)
        } | {
            _LOCAL.format(i + 1): View(
                settings.local_size, settings.local_size, settings.local_ops, f"{name}.local_ops"
            )
            for i in range(settings.num_locals)
        }

    @property
    def host_targets(self) -> dict[str, MakeTarget]:
        """{"masked": is_masked_BxVxP}, a function of the seed, the step and the place in the batch."""
        masks, seed = self.masks, self._config.run.seed

        def make(step: int, first: int, number: int) -> np.ndarray:
            return batch_masks(masks, seed=seed, step=step, first=first, number=number)

        return {MASKED: make}

    @property
    def masks(self) -> BlockMasks:
        """The masks of the global crops of a group of images."""
        settings = self._settings
        return BlockMasks(
            grid=patch_grid(image_size(self._config), self._config.model.patch_size),
            num_crops=NUM_GLOBALS * settings.mask_group,
            share=settings.mask_share,
            ratios=settings.mask_ratios,
            min_patches=settings.mask_min_patches,
            is_exact=settings.masks == "exact",
        )

    def check(self) -> None:
        """Raises ConfigError for settings with which training is not possible."""
        config = self._config
        check_distillation(
            self._settings,
            config.model,
            config.mesh,
            batch=config.data.batch_size,
            size=image_size(config),
        )

    def init(self, key: jax.Array, backbone: Any = None, heads: Any = None) -> tuple[Any, Any]:
        """(student, {"teacher": its copy, "centre": zeros})."""
        settings = self._settings
        vit_key, *head_keys = jax.random.split(key, 3)
        if backbone is None:
            backbone = init_params(self._config.model, key=vit_key)
        if heads is None:
            heads = self._init_heads(head_keys, backbone["norm"]["scale"].shape[0])
        student = {BACKBONE: backbone, **heads}
        number = settings.ibot_prototypes if settings.has_ibot_head else settings.num_prototypes
        centre = {"dino": jnp.zeros(settings.num_prototypes), "ibot": jnp.zeros(number)}
        return student, {TEACHER: jax.tree.map(jnp.copy, student), "centre": centre}

    def _init_heads(self, keys: Sequence[jax.Array], width: int) -> dict[str, Any]:
        settings = self._settings
        sizes = {DINO_HEAD: (settings.head_bottleneck, settings.num_prototypes)}
        if settings.has_ibot_head:
            sizes[IBOT_HEAD] = (settings.ibot_bottleneck, settings.ibot_prototypes)
        return {
            name: init_head(
                key, width=width, hidden=settings.head_hidden, bottleneck=bottleneck, num_prototypes=number
            )
            for key, (name, (bottleneck, number)) in zip(keys, sizes.items(), strict=False)
        }

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """The normalised views; masks and mask_B as they are."""
        del key  # crops and masks are drawn by the loader
        data = self._config.data
        views = {name: normalize(view, mean=data.mean, std=data.std) for name, view in batch.views.items()}
        return batch._replace(views=views)

    def loss(
        self, params: Any, extra: Any, batch: Batch, step: jax.Array, key: jax.Array
    ) -> tuple[Sums, Any]:
        """Sums of the losses of forward.distillation, and extra with new centres."""
        settings = self._settings
        graphdef, _ = abstract_model(self._config.model)
        local = [batch.views[_LOCAL.format(i + 1)] for i in range(settings.num_locals)]
        global_crops = jnp.stack([batch.views[_GLOBAL.format(i + 1)] for i in range(NUM_GLOBALS)], axis=1)
        size = settings.local_size
        none = jnp.zeros((len(global_crops), 0, size, size, global_crops.shape[-1]), global_crops.dtype)
        crops = Crops(
            global_BxVxHxWxC=global_crops,
            local_BxLxHxWxC=jnp.stack(local, axis=1) if local else none,
            is_masked_BxVxP=batch.targets[MASKED],
            mask_B=batch.mask_B,
        )
        found, centre = distillation(
            graphdef,
            params,
            extra[TEACHER],
            extra["centre"],
            crops,
            settings=settings,
            num_masked=self.masks.num_masked,
            temperature=self._value(self._temperatures(), step),
            key=key if uses_key(self._config.model) else None,
        )
        count = batch.mask_B.sum()
        return {name: (value * count, count) for name, value in found.items()}, {**extra, "centre": centre}

    def after_update(self, params: Any, extra: Any, step: jax.Array) -> Any:
        """The teacher moves to momentum * teacher + (1 - momentum) * student, all modules alike."""
        low, high = self._settings.momentum
        momentum = self._value(cosine_table(start=low, end=high, num_steps=self._total_steps), step)
        move = lambda t, s: momentum * t + (1.0 - momentum) * s  # noqa: E731
        return {**extra, TEACHER: jax.tree.map(move, extra[TEACHER], params)}

    def eval_params(self, params: Any, extra: Any) -> Any:
        """The teacher's parameters."""
        del params
        return extra[TEACHER]

    @property
    def _total_steps(self) -> int:
        steps = self._config.run.total_steps
        assert steps is not None, "set_up resolves the length of the run"
        return steps

    def _temperatures(self) -> np.ndarray:
        low, high = self._settings.temperatures
        return line_table(
            start=low, end=high, num_steps=round(self._settings.temperature_share * self._total_steps)
        )

    @staticmethod
    def _value(table: np.ndarray, step: jax.Array) -> jax.Array:
        return jnp.take(jnp.asarray(table, jnp.float32), step, mode="clip")
