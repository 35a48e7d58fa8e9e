"""What a linear evaluation does, by the rules of settings that are None."""

from typing import NamedTuple

from vit_registers.config import Data, LinearSettings, Model, lookup
from vit_registers.data.sources.parts import held_out_records
from vit_registers.errors import ConfigError
from vit_registers.models.blocks import dims

CHOICES = ("held_out", "test")  # tasks.*.chosen_on
_RELEASED_OPS = "random_resized_crop(0.08, 1.0) | flip"
_LEAST_PIXELS = 64  # of a side: crops of smaller images show too little
_EPOCHS, _LEAST_STEPS, _MOST_STEPS = 10, 1000, 12_500
_FIXED = {"", "decode", "resize", "resize_small", "central_crop"}  # operations that draw nothing
_BASE_BATCH = 256  # of the base learning rates


class Plan(NamedTuple):
    """A linear evaluation in numbers."""

    num_steps: int
    batch_size: int
    train_ops: str
    num_blocks: tuple[int, ...]  # of the inputs: 1 and 4, or those that the model has
    learning_rates: tuple[float, ...]  # peaks, multiplied by batch_size / 256
    num_held_out: int

    @property
    def is_cached(self) -> bool:
        """Whether features are computed once, as training images are not random."""
        return draws_nothing(self.train_ops)


def draws_nothing(ops: str) -> bool:
    """Whether a chain of operations draws nothing, so that it makes the same image each time."""
    return {part.partition("(")[0].strip() for part in ops.split("|")} <= _FIXED


def make_plan(
    settings: LinearSettings,
    model: Model,
    data: Data,
    *,
    num_images: int,
    num_shards: int,
    seed: int,
) -> Plan:
    """The plan for `num_images` training images and devices that divide a batch into `num_shards`.

    `data` has the size and the eval_ops of test images. Raises ConfigError.
    """
    lookup(dict.fromkeys(CHOICES), settings.chosen_on, "tasks.linear.chosen_on")
    if not settings.num_blocks or not settings.learning_rates:
        raise ConfigError("tasks.linear.num_blocks and tasks.linear.learning_rates: each must have a value")
    depth = max(dims(model).depth, 1)
    blocks = tuple(sorted({number for number in settings.num_blocks if number <= depth}))
    if not blocks:
        least = min(settings.num_blocks)
        raise ConfigError(
            f"tasks.linear.num_blocks={least},: the model has {depth} blocks: must be <= {depth}"
        )
    is_held = settings.chosen_on == "held_out"
    num_held_out = len(held_out_records(num_images, settings.held_out, seed)) if is_held else 0
    number = num_images - num_held_out
    if settings.batch_size % num_shards:
        raise ConfigError(
            f"tasks.linear.batch_size={settings.batch_size} does not divide over {num_shards} devices"
        )
    size = min(settings.batch_size, max(number // num_shards, 1) * num_shards)
    epochs = round(_EPOCHS * number / size)
    steps = settings.num_steps or min(max(epochs, _LEAST_STEPS), _MOST_STEPS)
    ops = settings.train_ops
    if ops is None:
        height, width = data.image_size or model.image_size
        ops = _RELEASED_OPS if min(height, width) >= _LEAST_PIXELS else data.eval_ops
    if data.loader == "pil" and not draws_nothing(ops):
        raise ConfigError(
            f"tasks.linear.train_ops={ops!r} draws random images, which data.loader='pil' does not: set "
            "data.loader=tfdata, or tasks.linear.train_ops to operations that draw nothing, such as those of "
            "data.eval_ops"
        )
    rates = tuple(rate * size / _BASE_BATCH for rate in settings.learning_rates)
    return Plan(steps, size, ops, blocks, rates, num_held_out)
