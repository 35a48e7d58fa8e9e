"""The back end that was measured to be the fastest on the platform; `xla` where no other was measured."""

from collections.abc import Callable

import jax
import numpy as np

from vit_registers.models.attention.mesh import platform
from vit_registers.models.attention.xla import attend_xla

# The back ends measured to be faster than `xla`, by platform. There are none yet: GPUs and TPUs are not
# measured. On a v5p, the compiler estimates 39.5 ms for a train step of a ViT-S/16 with xla, and 40.3 ms with
# splash, without the time of its kernels. Keys are padded to multiples of 128 lanes, and sequences of up to
# 512 tokens are one block of `splash`, so no mask makes its kernels faster.
FASTER: dict[str, Callable[..., jax.Array]] = {}


def attend_auto(
    q_BxTxNxK: jax.Array,
    k_BxTxNxK: jax.Array,
    v_BxTxNxK: jax.Array,
    *,
    mask_TxT: np.ndarray | None = None,
    bias_NxTxT: np.ndarray | None = None,
) -> jax.Array:
    """Attention output out_BxTxNxK in the dtype of v, by the platform's back end in FASTER, or by `xla`."""
    attend = FASTER.get(platform(), attend_xla)
    return attend(q_BxTxNxK, k_BxTxNxK, v_BxTxNxK, mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT)
