"""Train, evaluate and dissect Vision Transformers with register tokens, summary tokens and fractal masks."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vit_registers.models.vit import ViT

__version__ = "0.1.0"


def load(path: str, *, step: int | None = None, params: str = "params") -> "ViT":
    """The model of a run folder with its parameters: `load("runs/digits")(images).logits`.

    `images` are floats [batch, height, width, channels], normalised as in training (the run's data.mean
    and data.std). `step` picks a checkpoint, by default the newest intact one; `params="ema"` the
    averaged parameters. Raises errors.CheckpointError where there is nothing to load.
    """
    from vit_registers.checkpointed import load as load_run

    return load_run(path, step=step, params=params)
