"""Exports the forward pass of a model as StableHLO, which runs where JAX and flatbuffers are installed."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from vit_registers.config import Model
from vit_registers.errors import CheckpointError
from vit_registers.models.params import abstract_model, build_model, count_parameters
from vit_registers.models.vit import Outputs

STABLEHLO_FILE = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # by model.dtype: the compiler orders sums otherwise
_MAX_BYTES = 2**31 - 1  # of a flatbuffer, the container of the file
_OUTPUTS = ("logits", "pooled", "cls", "registers", "summaries", "patches")


def portable(model: Model) -> Model:
    """The model with the attention of XLA and unrolled blocks, which lower for every platform."""
    return dataclasses.replace(model, attention="xla", use_scan=False, remat="none")


class Signature(NamedTuple):
    """What the function in a file takes and returns; shapes are without the axis of the batch."""

    image_shape: tuple[int, ...]
    outputs: dict[str, tuple[int, ...]]
    platforms: tuple[str, ...]


def write_stablehlo(model: Model, params: Any, image_size: tuple[int, int], path: Path) -> Signature:
    """Writes the forward pass, with the parameters in it, for images of one size in batches of any size.

    It is a function from float32 images [batch, height, width, channels] to a dict of float32 arrays: those
    of Outputs that the model has. Raises CheckpointError for a model that is too large for the format.
    """
    if 4 * count_parameters(model) > _MAX_BYTES:
        raise CheckpointError(
            f"{path}: {count_parameters(model):,} parameters take more than the 2 GiB that StableHLO files "
            "can hold: export to another format"
        )
    graphdef, _ = abstract_model(portable(model))
    network = build_model(graphdef, params)

    def forward(image_BxHxWxC: jax.Array) -> dict[str, jax.Array]:
        return named_outputs(network(image_BxHxWxC))

    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_size, model.channels), jnp.float32)
    exported = export.export(jax.jit(forward), platforms=PLATFORMS)(images)
    try:
        path.write_bytes(exported.serialize())
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error.strerror}") from error
    shapes = jax.eval_shape(forward, jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32))
    outputs = {name: tuple(value.shape[1:]) for name, value in shapes.items()}
    return Signature(tuple(images.shape[1:]), outputs, PLATFORMS)


def check_stablehlo(model: Model, params: Any, path: Path, signature: Signature) -> float:
    """The largest difference of the outputs of a written file from those of the model, as a share of these.

    The file is read again and run on two images of noise. Raises CheckpointError above TOLERANCE.
    """
    images = np.random.default_rng(0).normal(size=(2, *signature.image_shape)).astype(np.float32)
    written = export.deserialize(bytearray(path.read_bytes())).call(images)
    expected = named_outputs(build_model(abstract_model(portable(model))[0], params)(jnp.asarray(images)))
    worst = 0.0
    for name, value in expected.items():
        ours, theirs = np.asarray(value, np.float32), np.asarray(written[name], np.float32)
        difference = float(np.abs(ours - theirs).max() / max(np.abs(ours).max(), 1.0))
        if not difference <= TOLERANCE[model.dtype]:  # NaN too
            raise CheckpointError(f"{path}: {name} differs by {difference:.3g} from that of the model")
        worst = max(worst, difference)
    return worst


def named_outputs(out: Outputs) -> dict[str, jax.Array]:
    """The arrays of Outputs that a model has, by name, without taps."""
    found = {name: getattr(out, name) for name in _OUTPUTS}
    return {name: value for name, value in found.items() if value is not None}
