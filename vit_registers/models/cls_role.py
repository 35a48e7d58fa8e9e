"""Models whose cls is made of patches: cls in the last blocks only, and cls without a skip connection.

arXiv:2505.05892, section 5, argues for models without registers, without cls in hidden layers, and without
the residual connection of cls, and trains none. The definitions are those of this project:

- model.cls_blocks=n: cls enters before the last n blocks. Before them it is what the embedding makes of it,
  the same for every image. In all blocks no other token attends to it, so that patches, registers and
  summaries are those of the model without cls. It is carried along in the first blocks, which hold its value.
- model.has_cls_skip=False: in every block the output of attention replaces cls instead of being added to it.
  The MLP keeps its skip connection, which adds what attention has just read. cls still attends to itself.
"""

from collections.abc import Callable

import numpy as np

from vit_registers.config import Model
from vit_registers.errors import ConfigError
from vit_registers.models.blocks import dims
from vit_registers.models.readout import Constants
from vit_registers.models.tokens import TokenLayout


def check_cls_role(model: Model) -> None:
    """Raises ConfigError for settings of cls that exclude each other."""
    if model.cls_blocks is None and model.has_cls_skip:
        return
    given = f"model.cls_blocks={model.cls_blocks}" if model.has_cls_skip else "model.has_cls_skip=False"
    if not model.use_cls:
        raise ConfigError(f"{given} requires model.use_cls=True: set it, or leave {given} out")
    depth = dims(model).depth
    if model.cls_blocks is not None and not 1 <= model.cls_blocks <= depth:
        raise ConfigError(
            f"model.cls_blocks={model.cls_blocks}: must be 1 to {depth}, the blocks of the model"
        )
    if not model.has_cls_skip and model.drop_path:
        raise ConfigError(
            f"model.drop_path={model.drop_path} with model.has_cls_skip=False: cls would be 0 where "
            "attention is left out: set model.drop_path=0"
        )


def num_held_blocks(model: Model, depth: int) -> int:
    """The number of first blocks, of `depth`, that do not change cls."""
    return 0 if model.cls_blocks is None else depth - model.cls_blocks


def cls_rows(model: Model, layout: TokenLayout) -> np.ndarray | None:
    """is_cls_1xTx1, where blocks treat cls in another way than other tokens; None if they do not."""
    if model.cls_blocks is None and model.has_cls_skip:
        return None
    return (np.arange(layout.num_tokens) < layout.cls.stop)[None, :, None]


def without_cls_keys(model: Model, layout: TokenLayout, mask_TxT: np.ndarray | None) -> np.ndarray | None:
    """The mask where no token but cls attends to cls, if model.cls_blocks is set; else `mask_TxT`.

    Raises ConfigError for a token that may then attend to none.
    """
    if model.cls_blocks is None:
        return mask_TxT
    count = layout.num_tokens
    mask_TxT = np.ones((count, count), bool) if mask_TxT is None else mask_TxT.copy()
    mask_TxT[layout.cls.stop :, layout.cls] = False
    empty = np.flatnonzero(~mask_TxT.any(axis=1))
    if empty.size:
        raise ConfigError(
            f"model.cls_blocks={model.cls_blocks} with model.mask={model.mask!r}: token {empty[0]} may "
            "attend to cls only: let it attend to others, or leave model.cls_blocks out"
        )
    return mask_TxT


def constants_by_block(model: Model, layout: TokenLayout, constants: Constants) -> Callable[[int], Constants]:
    """A function from a block, negative from the end, to the mask and bias of its attention weights.

    `constants` are those of the model. Where a block does not change cls, what cls would attend to has no
    effect: its weights are then those of a token that attends to itself only.
    """
    depth, (mask_TxT, bias_NxTxT) = dims(model).depth, constants
    if mask_TxT is None or not num_held_blocks(model, depth):
        return lambda block: constants
    held_TxT = mask_TxT.copy()
    held_TxT[layout.cls] = np.arange(layout.num_tokens) == layout.cls.start
    held = held_TxT, bias_NxTxT
    return lambda block: held if block % depth < num_held_blocks(model, depth) else constants
