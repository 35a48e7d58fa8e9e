"""One forward pass of a batch, which all features read."""

from typing import NamedTuple

import jax

from vit_registers.analysis.features.interventions import Arrays
from vit_registers.models.cls_role import constants_by_block
from vit_registers.models.readout import block_weights
from vit_registers.models.tokens import TokenLayout
from vit_registers.models.vit import Outputs, ViT, static_attention


class Forward(NamedTuple):
    """One forward pass of a batch, from which features are computed."""

    model: ViT
    out: Outputs
    layout: TokenLayout
    image_BxHxWxC: jax.Array  # uint8
    values: Arrays  # of the intervention, if there is one
    rows: Arrays

    @property
    def resid_LxBxTxD(self) -> tuple[jax.Array, ...]:
        """The input of the first block, then the output of each block; L is depth + 1."""
        return tuple(self.out.taps["resid"])

    def weights_BxNxTxT(self, block: int) -> jax.Array:
        """The attention weights of a block, float32. XLA shares them with the forward pass."""
        model, layout = self.model.model, self.layout
        constants = constants_by_block(model, layout, static_attention(model, layout))
        return block_weights(self.out.taps, block, constants(block))
