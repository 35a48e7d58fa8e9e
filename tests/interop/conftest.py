"""What the tests of other people's checkpoints share: random weights, images, forward passes, timm."""

import functools
import importlib
import importlib.util
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tools.parity import libraries
from vit_registers.config import Model
from vit_registers.interop import containers, reading
from vit_registers.interop.export import targets
from vit_registers.interop.hints import Hints
from vit_registers.models.vit import Outputs, ViT

TINY = {
    "width": 32,
    "depth": 2,
    "num_heads": 4,
    "mlp_dim": 64,
    "patch_size": 8,
    "image_size": (32, 32),
    "num_classes": 5,
}


def shared(function):
    """A fixture that is the function."""
    return pytest.fixture(scope="session", name=function.__name__.lstrip("_"))(lambda: function)


randomise = shared(libraries.randomise)
hf_model = shared(libraries.hf_model)
timm_model = shared(libraries.timm_model)


@shared
def run_hf(theirs, images: np.ndarray, **arguments):
    """(Their answer or None, the outputs of their encoder)."""
    import torch

    if "dinov2" not in theirs.config.model_type:
        arguments["interpolate_pos_encoding"] = True
    encoder = theirs
    for part in ("dinov2", "dinov2_with_registers", "vit", "deit", "vision_model"):
        encoder = getattr(theirs, part, encoder)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        encoded = encoder(x, **arguments)
        if theirs.config.model_type == "clip":  # the whole model, which requires texts too
            return theirs.visual_projection(encoded.pooler_output), encoded
        whole = theirs(x, **arguments)
    return getattr(whole, "logits", getattr(whole, "image_embeds", None)), encoded


@shared
def from_folder(folder, source: str = "auto", **hints) -> ViT:
    """The model of a checkpoint in files."""
    return reading.load_opened(reading.open_path(folder, source=source, hints=Hints(**hints)))


@shared
def make(**settings) -> ViT:
    """A model of ours of two blocks on 4 x 4 patches, all parameters random."""
    rng = np.random.default_rng(1)

    def noise(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        centre = float(path[-1].key in ("scale", "gamma"))
        return jnp.asarray(centre + rng.normal(0, 0.2, leaf.shape), jnp.float32)

    model = Model(**(TINY | settings))
    graph, shapes = nnx.split(nnx.eval_shape(lambda: ViT(model, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, jax.tree_util.tree_map_with_path(noise, nnx.to_pure_dict(shapes)))


@shared
def images(size: tuple[int, int] = (32, 32), batch: int = 2) -> np.ndarray:
    """Normal noise as images_BxHxWxC."""
    return np.random.default_rng(0).normal(size=(batch, *size, 3)).astype(np.float32)


# Half the time goes into making fast what runs once.
@shared
@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def forward(model: ViT, images: jax.Array, masked_BxP: jax.Array | None = None) -> Outputs:
    """The Outputs, compiled."""
    return model(images, masked_BxP=masked_BxP)


@shared
def tokens(outputs: Outputs) -> np.ndarray:
    """Cls, registers, summaries and patches, BxTxD."""
    first = (outputs.cls if outputs.cls is None else outputs.cls[:, None], outputs.registers)
    groups = (*first, outputs.summaries, outputs.patches)
    return np.concatenate([group for group in groups if group is not None], axis=1)


@shared
def numpy_state(module) -> dict[str, np.ndarray]:
    """The state_dict of a torch module as numpy arrays."""
    return {name: value.numpy() for name, value in module.state_dict().items()}


@shared
def params(model: ViT) -> dict:
    """The parameters of ours as nested dicts."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


# --- families that no package brings: checkpoints by name and shape, and torch's layers on them -------

_SCALES = re.compile(r"gamma|(norm_?\w*|ln(_\w+)?|Norm_\d)[./](weight|scale)$")


class _TorchLayers(dict):
    """The tensors of a state by name, and the layers of torch that they belong to."""

    def __init__(self, state: dict[str, np.ndarray], heads: int, eps: float = 1e-6):
        import torch

        super().__init__({n: torch.from_numpy(np.asarray(a, np.float32)) for n, a in state.items()})
        self.heads, self.eps, self.torch = heads, eps, torch

    def linear(self, x, name):
        return self.torch.nn.functional.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def norm(self, x, name):
        parts = self[f"{name}.weight"], self[f"{name}.bias"]
        return self.torch.nn.functional.layer_norm(x, x.shape[-1:], *parts, self.eps)

    def attend(self, x, joint, out, mask=None):
        """The attention layer of torch; {} in the names of its two layers is replaced by weight and bias."""
        parts = [self[name.format(part)] for name in (joint, out) for part in ("weight", "bias")]
        names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        module = self.torch.nn.MultiheadAttention(x.shape[-1], self.heads, batch_first=True)
        module.load_state_dict(dict(zip(names, parts, strict=True)))
        return module.requires_grad_(False)(x, x, x, need_weights=False, attn_mask=mask)[0]

    def patches(self, images, name):
        """(patch embeddings BxPxD, the grid of patches)."""
        kernel, x = self[f"{name}.weight"], self.torch.from_numpy(images).permute(0, 3, 1, 2)
        x = self.torch.nn.functional.conv2d(x, kernel, self.get(f"{name}.bias"), stride=kernel.shape[-1])
        return x.flatten(2).transpose(1, 2), tuple(x.shape[2:])


@pytest.fixture(scope="session")
def torch_layers():
    """torch_layers(state, heads, eps): the layers of a state."""
    pytest.importorskip("torch")
    return _TorchLayers


@pytest.fixture(scope="session")
def noise():
    """noise({name: shape}, seed): float32 noise in every tensor, around 1 in scales."""

    def noise(shapes, seed=0):
        rng = np.random.default_rng(seed)
        centres = {name: 1.0 if _SCALES.search(name) else 0.0 for name in shapes}
        return {n: (centres[n] + rng.normal(0, 0.2, shape)).astype(np.float32) for n, shape in shapes.items()}

    return noise


@pytest.fixture(scope="session")
def load():
    """load(state, source, **hints): (the Model, its parameters) of tensors by name."""

    def load(state, source, **hints):
        opened = reading.understand(containers.from_arrays(state), source=source, hints=Hints(**hints))
        return opened.model, reading.read_leaves(opened)

    return load


@pytest.fixture(scope="session")
def dump():
    """dump(model, params, target): the tensors of an export by name."""
    return lambda model, params, target: dict(targets.export(model, params, target).weights(np.float32))


@pytest.fixture(scope="session")
def assert_same():
    """assert_same(there, here): the same names, shapes, dtypes and bits."""

    def assert_same(there, here):
        assert set(there) == set(here)
        for name, array in there.items():
            np.testing.assert_array_equal(array, here[name], err_msg=name, strict=True)

    return assert_same


@pytest.fixture(scope="session")
def assert_close():
    """assert_close(ours, theirs, tolerance=1e-5): largest absolute difference."""

    def assert_close(ours, theirs, tolerance=1e-5):
        theirs = np.asarray(theirs)
        print("largest difference", np.abs(np.asarray(ours) - theirs).max(), "of", np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=0)

    return assert_close


@pytest.fixture(scope="session")
def timm():
    """timm, imported with stubs for torchvision where this is missing."""
    pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    return libraries.import_timm()


@pytest.fixture(scope="session")
def open_clip(timm):
    """The module of open_clip that holds its models, without its package, which needs more than torch."""
    if (spec := importlib.util.find_spec("open_clip")) is None:
        pytest.skip("open_clip_torch is not installed")
    package = types.ModuleType("open_clip")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["open_clip"] = package
    try:
        with libraries.stubbed_torchvision():
            return importlib.import_module("open_clip.model")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "open_clip"]:
            del sys.modules[name]
