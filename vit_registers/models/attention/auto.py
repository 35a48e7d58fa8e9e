"""The back end that measurements speak for on the platform; plain XLA where there are none."""

from collections.abc import Callable

import jax
import numpy as np

from vit_registers.models.attention.mesh import platform
from vit_registers.models.attention.xla import attend_xla

# What was found faster than plain XLA, by platform. So far nothing:
#
# cpu: CPU time in ms, forward and backward, float32, 6 heads of 64, one thread, on a busy machine (jax
#   0.10.2); `cudnn` and `splash` do not run there.
#                                               pairs computed   xla   structured
#     14 x 14, k=2, fractal_local, batch 8            0.14        74      172
#     14 x 14, k=3, fractal, batch 8                  0.88        51      108
#     14 x 14, k=4, fractal_local, batch 8            0.27        48      334
#      8 x 8,  k=2, fractal, batch 8                  0.73         7       23
#      8 x 8,  k=2, fractal_local, batch 8            0.26         7       34
#     28 x 28, k=2, fractal, batch 1                  0.65       215      198
# tpu: not measured. By the compiler for a v5p a ViT-S/16's step takes 39.5 ms with xla; with splash 40.3,
#   without its kernels, which the estimate leaves out. Keys come in 128 lanes: the 198 that patches of 14
#   x 14, k=2 with cls see densely take as many as all 256. Up to 512 tokens are one block of `splash`,
#   which no mask makes less.
# gpu: not measured.
FASTER: dict[str, Callable[..., jax.Array]] = {}


def attend_auto(
    q_BxTxNxK: jax.Array,
    k_BxTxNxK: jax.Array,
    v_BxTxNxK: jax.Array,
    *,
    mask_TxT: np.ndarray | None = None,
    bias_NxTxT: np.ndarray | None = None,
) -> jax.Array:
    """Attention output out_BxTxNxK in the dtype of v, by the back end of FASTER, else in plain XLA."""
    attend = FASTER.get(platform(), attend_xla)
    return attend(q_BxTxNxK, k_BxTxNxK, v_BxTxNxK, mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT)
