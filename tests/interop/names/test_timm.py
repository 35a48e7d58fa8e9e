"""Live models of timm with random weights as ours: out of memory, and out of folders as on its hub."""

import contextlib
import functools
import importlib.util

import jax
import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from vit_registers.errors import CheckpointError
from vit_registers.interop import reading
from vit_registers.interop.containers import Weights
from vit_registers.interop.hints import Hints
from vit_registers.interop.settings import plain_settings

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("timm")

QUICK, EXACT = {"hidden_act": "quick_gelu"}, {"hidden_act": "gelu"}  # CLIP's tensors do not tell
ORIGINS = {  # name -> (timm's name, arguments, what its tensors do not tell)
    "dinov2 with registers": ("vit_small_patch14_reg4_dinov2", {}, {}),
    "dinov2 with registers, giant": ("vit_giant_patch14_reg4_dinov2", {}, {}),
    "dinov2": ("vit_small_patch14_dinov2", {"num_classes": 0}, {}),
    "deit3": ("deit3_small_patch16_224", {}, {}),
    "augreg": ("vit_small_patch16_224", {}, {}),
    "clip": ("vit_base_patch16_clip_224", {}, EXACT),
    "clip quickgelu": ("vit_base_patch16_clip_quickgelu_224", {}, QUICK),
    "registers, mean": ("vit_medium_patch16_reg4_gap_256", {}, {}),
    "registers with positions": ("vit_small_patch16_224", {"reg_tokens": 3}, {}),
    "registers with positions, mean": ("vit_so150m_patch16_reg4_gap_256", {}, {}),
    "registers, attention pooling": ("vit_so150m_patch16_reg4_map_256", {}, {}),
    "siglip": ("vit_base_patch16_siglip_224", {"num_classes": 0}, {}),
    "cls and mean": ("vit_small_patch16_224", {"global_pool": "avg", "qkv_bias": False}, {}),
    "cls and mean of norms": (
        "vit_small_patch16_224",
        {"global_pool": "avg", "fc_norm": False},
        {"pooling": "gap"},
    ),
    "deit distilled": ("deit_small_distilled_patch16_224", {}, {}),
    "deit distilled, headless": ("deit_small_distilled_patch16_224", {"num_classes": 0}, {}),
}
# The size that the positions are made for, a larger, a non-square one, and one with as many patches.
IMAGE_SIZES = [(32, 32), (48, 48), (24, 56), (16, 64)]


@pytest.fixture(scope="module")
def origin(timm_model):
    """origin(name): the model of ORIGINS. Each is made once."""
    return functools.cache(lambda name: timm_model(ORIGINS[name][0], **ORIGINS[name][1]))


@pytest.fixture
def assert_agree(images, forward, tokens, assert_close):
    """assert_agree(ours, theirs, size): asserts the same tokens, pooled vector and answer."""

    def assert_agree(ours, theirs, size):
        outputs = forward(ours, images(size))
        with torch.no_grad():
            features = theirs.forward_features(torch.from_numpy(images(size)).permute(0, 3, 1, 2))
            pooled, answer = theirs.forward_head(features, pre_logits=True), theirs.forward_head(features)
        # Tokens that no norm follows are of numbers around 20.
        assert_close(tokens(outputs), features, 3e-5 if ours.model.use_norm_after_pool else 1e-5)
        if hasattr(theirs, "head_dist"):  # theirs is the mean of two, whose answers are averaged
            pooled = features[:, 0] if ours.model.pooling == "cls" else features[:, :2].flatten(1)
        assert_close(outputs.pooled, pooled)
        if theirs.num_classes:
            assert_close(outputs.logits, answer)
        else:
            assert outputs.logits is None

    return assert_agree


def from_memory(name, theirs, numpy_state, **hints):
    hints = {"source": "timm", "num_heads": 4} | ORIGINS[name][2] | hints
    return reading.from_state_dict(numpy_state(theirs), **hints)


def assert_same_model(ours, other, params):
    assert ours.model == other.model
    jax.tree.map(np.testing.assert_array_equal, params(ours), params(other))


@parametrize_quick("name", ORIGINS)
def test_answers_and_tokens_at_every_size(name, origin, numpy_state, assert_agree):
    """Within 1e-5 of numbers around 4, but for tokens without norm; below 4e-6 is measured."""
    ours = from_memory(name, origin(name), numpy_state)
    for size in IMAGE_SIZES:
        assert_agree(ours, origin(name), size)


@parametrize_quick("name", [n for n in ORIGINS if "distilled" not in n], number=4)
def test_names_tell_timm(name, origin, numpy_state, params):
    there = from_memory(name, origin(name), numpy_state, source="auto")
    assert_same_model(there, from_memory(name, origin(name), numpy_state), params)


@pytest.mark.slow
def test_a_distillation_token_tells_deit(origin, numpy_state, assert_agree):
    """Which resamples positions otherwise than timm does; at the size of training they are the same."""
    theirs = origin("deit distilled")
    ours = from_memory("deit distilled", theirs, numpy_state, source="auto")
    assert ours.model.position_resampling == "bicubic"
    assert_agree(ours, theirs, (32, 32))
    ours = from_memory(
        "deit distilled", theirs, numpy_state, source="deit", interpolation="bicubic_aa", image_size=(24, 56)
    )
    assert_agree(ours, theirs, (24, 56))


@parametrize_quick("name", ["dinov2 with registers", "augreg", "registers with positions", "clip"])
@parametrize_quick("size", [(24, 56), (16, 64)])
def test_loading_at_an_image_size_is_their_interpolation(name, size, origin, numpy_state, assert_agree):
    ours = from_memory(name, origin(name), numpy_state, image_size=size)
    assert ours.model.image_size == size
    assert_agree(ours, origin(name), size)


@parametrize_quick("name", ORIGINS, number=4)
def test_a_folder_of_the_hub_tells_all(name, timm, origin, numpy_state, params, tmp_path, from_folder):
    """config.json has model_args where arguments differ from those of the architecture."""
    arguments = ORIGINS[name][1] | {"num_heads": 4, "img_size": 32}
    with_args = {"model_args": arguments, "safe_serialization": True}
    timm.models.save_for_hf(origin(name), tmp_path, **with_args)
    assert_same_model(from_folder(tmp_path), from_memory(name, origin(name), numpy_state), params)


def test_a_table_that_is_no_square(
    timm, timm_model, numpy_state, params, tmp_path, from_folder, assert_agree
):
    theirs = timm_model("vit_small_patch14_reg4_dinov2", img_size=(24, 40))
    ours = reading.from_state_dict(numpy_state(theirs), source="timm", num_heads=4, image_size=(24, 40))
    assert ours.model.image_size == (24, 40)
    assert_agree(ours, theirs, (24, 40))
    assert_agree(ours, theirs, (40, 24))
    with pytest.raises(CheckpointError, match="give image_size"):
        reading.from_state_dict(numpy_state(theirs), source="timm", num_heads=4)
    arguments = {"model_args": {"num_heads": 4, "img_size": (24, 40)}, "safe_serialization": True}
    timm.models.save_for_hf(theirs, tmp_path, **arguments)
    assert_same_model(from_folder(tmp_path), ours, params)


@parametrize_quick("act", ["gelu", "gelu_tanh", "quick_gelu"])
def test_the_activation_of_a_folder(act, timm, timm_model, tmp_path, from_folder, assert_agree):
    theirs = timm_model("vit_small_patch16_224", act_layer=act)
    arguments = {"num_heads": 4, "img_size": 32, "act_layer": act}
    timm.models.save_for_hf(theirs, tmp_path, model_args=arguments, safe_serialization=True)
    assert_agree(from_folder(tmp_path), theirs, (32, 32))


@pytest.mark.slow
def test_the_size_of_a_folder_tells_positions_from_patches(
    timm, timm_model, numpy_state, tmp_path, from_folder, assert_agree
):
    """16 rows are 4 x 4 patches, or those of cls and of 3 x 5 patches, the size that is asked for."""
    theirs = timm_model("deit3_small_patch16_224")
    with pytest.raises(CheckpointError, match="or none if the patches are a square"):
        reading.from_state_dict(numpy_state(theirs), source="timm", num_heads=4, image_size=(24, 40))
    arguments = {"num_heads": 4, "img_size": 32}
    timm.models.save_for_hf(theirs, tmp_path, model_args=arguments, safe_serialization=True)
    assert_agree(from_folder(tmp_path, image_size=(24, 40)), theirs, (24, 40))


def test_no_stub_of_torchvision_is_left_for_others():
    spec = importlib.util.find_spec("torchvision")
    assert spec is None or spec.origin is not None


def test_clip_needs_to_be_told_its_activation(origin, numpy_state):
    with pytest.raises(CheckpointError, match="give hidden_act"):
        from_memory("dinov2", origin("clip"), numpy_state)


def _layers(model):
    """The settings that change outputs at the image size of training; swiglu has one activation."""
    names = (
        "num_heads",
        "mlp",
        "norm_eps",
        "pooling",
        "use_final_norm",
        "use_norm_after_pool",
        "num_registers",
    )
    return [getattr(model, name) for name in names] + [model.mlp == "swiglu" or model.activation]


@pytest.mark.slow
def test_every_vit_of_timm_is_read_as_timm_makes_it_or_refused(timm):
    """Heads, activation, eps and pooling of all architectures, of which config.json has the name only."""
    refused, num_bare = [], 0
    for name in [n for module in ("vision_transformer", "deit") for n in timm.list_models(module=module)]:
        theirs = timm.create_model(name, depth=1, device="meta")
        facts = {n: (tuple(v.shape), np.dtype(np.float32)) for n, v in theirs.state_dict().items()}
        weights = Weights(name, "safetensors", facts, {}.__getitem__)
        try:
            settings = plain_settings({"architecture": name, "global_pool": theirs.global_pool})
            model = reading.understand(weights, source="auto", hints=Hints(), settings=settings).model
        except CheckpointError:
            refused.append(name)
            continue
        with contextlib.suppress(CheckpointError):  # a file without config.json is read alike, or asks
            bare = reading.understand(weights, source="auto", hints=Hints()).model
            assert _layers(bare) == _layers(model), name
            num_bare += 1
        block = theirs.blocks[0]
        act = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
        act = "gelu" if model.mlp == "swiglu" else act[type(block.mlp.act).__name__]
        if getattr(block.mlp.act, "approximate", None) == "tanh":
            act = "gelu_tanh"
        pooling = {"token": "cls", "avg": "gap", "map": "map"}[theirs.global_pool]
        pooling = "cls_registers" if hasattr(theirs, "head_dist") else pooling
        have = (model.num_heads, model.activation, model.norm_eps, model.pooling)
        assert have == (block.attn.num_heads, act, block.norm1.eps, pooling), name
        assert type(block).__name__ == "Block", name
        assert (model.mlp == "swiglu") == ("GluMlp" in type(block.mlp).__name__), name
    assert num_bare > 80
    strange = ("aimv2", "test_vit", "_rpn_", "vit_d", "vit_p", "_xp_", "18x2")
    assert all(any(part in name for part in strange) for name in refused), refused
