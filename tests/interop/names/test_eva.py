"""Live models of timm's class Eva with random weights as ours: EVA-02, Perception Encoders, vit_*_rope_*."""

import functools
import re

import jax
import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from vit_registers.errors import CheckpointError
from vit_registers.interop import reading
from vit_registers.interop.containers import Weights
from vit_registers.interop.hints import Hints
from vit_registers.interop.settings import plain_settings
from vit_registers.models.blocks import dims, rotary

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("timm")

NATIVE = {"ref_feat_shape": 4}  # as published: the grid of patches of the models below
ORIGINS = {  # name -> (timm's name, arguments, whether the tensors tell the rotation)
    "PE core": ("vit_pe_core_base_patch16_224", NATIVE | {"attn_pool_mlp_ratio": 3.0}, True),
    "PE spatial": ("vit_pe_spatial_small_patch16_512", NATIVE | {"num_classes": 0}, True),
    "EVA-02 CLIP": ("eva02_base_patch16_clip_224", {}, True),
    "rope mixed": ("vit_small_patch16_rope_mixed_ape_224", {}, True),
    "PE core without cls": ("vit_pe_core_gigantic_patch14_448", NATIVE, True),
    "PE lang": ("vit_pe_lang_large_patch14_448", NATIVE, True),
    "EVA-02": ("eva02_large_patch14_448", {}, True),
    "EVA-02, packed": ("eva02_tiny_patch14_224", {}, True),
    "EVA": ("eva_giant_patch14_224", {}, False),
    "rope": ("vit_small_patch16_rope_224", {}, True),
    "rope, learned table": ("vit_base_patch16_rope_ape_224", {}, False),
    "rope, registers": ("vit_betwixt_patch16_rope_reg4_gap_256", {}, True),
    "rope, registers, no bias": ("vit_mediumd_patch16_rope_reg1_gap_256", {}, True),
}
TRAINED, OTHER = (32, 32), (24, 56)


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
        is_normed = ours.model.use_final_norm and not ours.model.use_norm_after_pool
        # Tokens that no norm follows are of numbers around 20.
        assert_close(tokens(outputs), features, 1e-5 if is_normed else 3e-5)
        assert_close(outputs.pooled, pooled)
        if ours.model.num_classes:
            assert_close(outputs.logits, answer)

    return assert_agree


def from_memory(name, theirs, numpy_state, **hints):
    known = {} if ORIGINS[name][2] else {"architecture": ORIGINS[name][0]}
    return reading.from_state_dict(numpy_state(theirs), source="auto", num_heads=4, **known, **hints)


@parametrize_quick("name", ORIGINS, number=4)
def test_answers_and_tokens_at_the_size_of_training_and_another(name, origin, numpy_state, assert_agree):
    ours = from_memory(name, origin(name), numpy_state)
    for size in (TRAINED, OTHER):
        assert_agree(ours, origin(name), size)


@pytest.mark.parametrize("name", ORIGINS)
def test_a_folder_of_the_hub_tells_all(name, timm, origin, numpy_state, params, tmp_path, from_folder):
    arguments = {key: value for key, value in ORIGINS[name][1].items() if key != "num_classes"}
    arguments |= {"num_heads": 4, "img_size": 32}
    timm.models.save_for_hf(origin(name), tmp_path, model_args=arguments, safe_serialization=True)
    ours, other = from_folder(tmp_path), from_memory(name, origin(name), numpy_state, image_size=32)
    assert ours.model == other.model
    jax.tree.map(np.testing.assert_array_equal, params(ours), params(other))


@pytest.mark.parametrize("name", [name for name, origin in ORIGINS.items() if not origin[2]])
def test_what_no_tensor_tells_is_asked_for(name, origin, numpy_state):
    with pytest.raises(CheckpointError, match="architecture, timm's name of the model"):
        reading.from_state_dict(numpy_state(origin(name)), source="auto", num_heads=4)


def test_an_argument_of_timm_changes_the_rotation(timm_model, timm, tmp_path, from_folder, assert_agree):
    arguments = {
        "rope_temperature": 20.0,
        "rope_grid_offset": 0.5,
        "ref_feat_shape": 6,
        "rope_rotate_half": True,
        "rope_grid_indexing": "xy",
    }
    theirs = timm_model("eva02_tiny_patch14_224", depth=1, **arguments)
    arguments |= {"num_heads": 4, "img_size": 32}
    timm.models.save_for_hf(theirs, tmp_path, model_args=arguments, safe_serialization=True)
    assert_agree(from_folder(tmp_path), theirs, (40, 24))


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("eva02_tiny_patch14_224", {"rope_type": "mrope"}, "model_args.rope_type='mrope' is not supported"),
        ("eva02_tiny_patch14_224", {"ref_feat_shape": [4, 6]}, r"ref_feat_shape=\[4, 6\]: must be a square"),
        ("eva02_tiny_patch14_224", {"scale_mlp": True}, "scale_mlp is True in config.json, and False in"),
        ("eva02_tiny_patch14_224", {"use_post_norm": True}, "use_post_norm is True in config.json"),
        ("eva02_tiny_patch14_224", {"rope_temperature": "1"}, "rope_temperature='1': must be a number"),
        ("eva02_tiny_patch14_224", {"num_kv_heads": 2}, "num_kv_heads=2: not supported"),
    ],
)
def test_an_argument_that_is_not_supported_is_refused_by_name(
    name, arguments, match, timm, timm_model, tmp_path, from_folder
):
    theirs = timm_model(name, depth=1)
    said = {"num_heads": 4, "img_size": 32} | arguments
    timm.models.save_for_hf(theirs, tmp_path, model_args=said, safe_serialization=True)
    with pytest.raises(CheckpointError, match=match):
        from_folder(tmp_path)


SUPPORTED = r"eva_giant|eva02_(tiny|small|base|large)|vit_pe_|_rope_"


def test_every_architecture_is_read_as_timm_makes_it(timm):
    """Heads, norms, pooling and rotation of all architectures, of which config.json has the name only."""
    names = [name for name in timm.list_models(module="eva") if re.search(SUPPORTED, name)]
    assert len(names) > 40
    for name in names:
        theirs = timm.create_model(name, depth=1, device="meta")
        facts = {n: (tuple(v.shape), np.dtype(np.float32)) for n, v in theirs.state_dict().items()}
        weights = Weights(name, "safetensors", facts, {}.__getitem__)
        settings = plain_settings({"architecture": name, "global_pool": theirs.global_pool})
        model = reading.understand(weights, source="auto", hints=Hints(), settings=settings).model
        block, pool = theirs.blocks[0], theirs.attn_pool
        pooling = {"token": "cls", "avg": "gap", "map": "map"}[theirs.global_pool]
        have = (dims(model).num_heads, model.norm_eps, model.pooling, model.pool_num_heads)
        assert have == (block.attn.num_heads, block.norm1.eps, pooling, pool and pool.num_heads), name
        ours, rope = rotary(model), theirs.rope
        assert (ours is None) == (rope is None), name
        if rope is None:
            continue
        have = (ours.order, ours.is_interleaved, ours.is_learned, ours.coordinates)
        is_mixed = type(rope).__name__ == "RotaryEmbeddingMixed"
        order = {"ij": "yx", "xy": "xy"}[rope.grid_indexing]
        assert have == (order, not getattr(rope, "rotate_half", False), is_mixed, "index"), name
        reference = getattr(rope, "ref_feat_shape", None) or (0, 0)
        assert (ours.reference, ours.reference) == tuple(reference), name
        assert ours.offset == getattr(rope, "grid_offset", 0.0), name
        if not is_mixed:
            number = ours.frequency_2xA.shape[1] // 2
            expected = rope.temperature ** (-np.arange(number) / number)
            np.testing.assert_allclose(ours.frequency_2xA[0, :number], expected, rtol=1e-6, err_msg=name)
