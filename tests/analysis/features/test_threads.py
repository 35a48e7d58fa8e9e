"""analyze runs models in one thread while another reads them."""

import sys
import threading

import numpy as np
from flax import nnx

from vit_registers.analysis.features import compute
from vit_registers.config import Model
from vit_registers.models.vit import ViT


def test_a_model_that_is_run_does_not_change():
    """Fails with nnx.jit, which clears and sets the attributes of the model in each call."""
    sizes = {"width": 16, "depth": 3, "num_heads": 2, "patch_size": 4, "image_size": (8, 8), "channels": 1}
    model = ViT(Model(**sizes), rngs=nnx.Rngs(0))
    run = compute.native(model, mean=(0.0,), std=(1.0,))
    image_HxWx3 = np.zeros((8, 8, 3), np.uint8)
    run(image_HxWx3, 1)
    runner = threading.Thread(target=lambda: [run(image_HxWx3, 1) for _ in range(200)])
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads alternate as often as they can
    try:
        runner.start()
        reads = 0
        while runner.is_alive():
            assert model.layout.num_patches == 4
            reads += 1
    finally:
        sys.setswitchinterval(interval)
        runner.join()
    assert reads > 100
