"""Patch embeddings for images with other channels, as in timm's models.adapt_input_conv."""

import math

import numpy as np

from vit_registers.errors import CheckpointError


def can_adapt(there: int, here: int) -> bool:
    """Whether a patch kernel for `there` channels can be adapted to `here` channels."""
    return here == there or (here == 1 and there in (2, 3)) or (here > 1 and there in (1, 3))


def check_channels(there: int, here: int, where: str) -> None:
    """Raises CheckpointError if the patch kernel of `where` cannot be adapted to `here` channels."""
    if not can_adapt(there, here):
        raise CheckpointError(
            f"{where} has patch embeddings of images with {there} channels, and {here} are asked for: 3 "
            "channels can be adapted to any number, and 1 channel to a larger number"
        )


def adapt_kernel(kernel_PxPxCxD: np.ndarray, channels: int) -> np.ndarray:
    """The kernel for images of `channels`: summed over channels for one, else repeated and scaled.

    A grey image gives the same embedding as three equal channels, if all have the same normalisation.
    """
    there = kernel_PxPxCxD.shape[2]
    if channels == there:
        return kernel_PxPxCxD
    if channels == 1:
        return kernel_PxPxCxD.sum(axis=2, keepdims=True)
    repeated = np.tile(kernel_PxPxCxD, (1, 1, math.ceil(channels / there), 1))[:, :, :channels]
    return repeated * np.float32(there / channels)


def adapt_statistics(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Means or deviations of channels for `channels` of them: averaged for one, else repeated."""
    if channels == len(values):
        return values
    if channels == 1:
        return (sum(values) / len(values),)
    return (values * math.ceil(channels / len(values)))[:channels]


def describe_channels(there: int, here: int) -> str:
    """How the patch kernel was adapted, in words."""
    how = "summed over them" if here == 1 else f"repeated and scaled by {there}/{here}"
    return f"patch kernel of {there} channels for images of {here}: {how}"
