"""Settings of live rotary models that no tensor has: no registers, the image size, heads of the pooling."""

import functools
import re

import numpy as np
import pytest

from vit_registers.config import Data
from vit_registers.interop import reading
from vit_registers.interop.export import json_configs, targets
from vit_registers.interop.export.files import write_safetensors

torch = pytest.importorskip("torch")

OTHER = (24, 56)


def _channels_first(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.fixture
def assert_tokens(images, forward, tokens, assert_close):
    """assert_tokens(ours, theirs): the tokens of a model of transformers at two sizes."""

    def assert_tokens(ours, theirs):
        for size in ((32, 32), OTHER):
            with torch.no_grad():
                expected = theirs(_channels_first(images(size))).last_hidden_state
            assert_close(tokens(forward(ours, images(size))), expected)

    return assert_tokens


@pytest.mark.parametrize("kind", ["DINOv3ViTModel", "Dinov2WithRegistersModel"])
def test_no_registers(kind, hf_model, tmp_path, from_folder, assert_tokens):
    pytest.importorskip("transformers")
    theirs = hf_model(kind, num_register_tokens=0)
    theirs.save_pretrained(tmp_path)  # with a tensor of registers that has no number
    ours = from_folder(tmp_path)
    assert ours.model.num_registers == 0
    assert_tokens(ours, theirs)


def test_ours_without_registers_in_transformers(make, params, tmp_path, assert_tokens):
    transformers = pytest.importorskip("transformers")
    ours = make(positions="rope2d", norm_eps=1e-5, num_registers=0, num_classes=0, pooling="cls")
    targets.write(
        targets.export(ours.model, params(ours), "transformers"), tmp_path, np.dtype("float32"), Data()
    )
    theirs, info = transformers.DINOv3ViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) <= {"embeddings.register_tokens"} and not info["unexpected_keys"]
    assert_tokens(ours, theirs.eval())


def test_a_folder_of_transformers_at_another_image_size(hf_model, tmp_path, from_folder, assert_tokens):
    pytest.importorskip("transformers")
    theirs = hf_model("DINOv3ViTModel", num_register_tokens=2)
    theirs.save_pretrained(tmp_path)
    ours = from_folder(tmp_path, image_size=OTHER)
    assert ours.model.image_size == OTHER
    assert_tokens(ours, theirs)


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_patch16_rope_224"])
def test_a_folder_of_timm_at_another_image_size(name, timm, timm_model, tmp_path, from_folder):
    arguments = {"num_heads": 4, "img_size": 32}
    timm.models.save_for_hf(timm_model(name), tmp_path, model_args=arguments, safe_serialization=True)
    assert from_folder(tmp_path, image_size=OTHER).model.image_size == OTHER


@pytest.mark.parametrize(
    ("name", "arguments", "num_heads"),
    [
        ("vit_small_patch16_rope_224", {}, None),  # those of the blocks
        ("vit_small_patch16_rope_224", {"class_token": False, "attn_pool_num_heads": 2}, 2),
        ("vit_pe_core_base_patch16_224", {}, 8),  # as its architecture
    ],
)
def test_the_heads_of_attention_pooling(
    name, arguments, num_heads, timm, timm_model, tmp_path, from_folder, images, forward, assert_close
):
    arguments = {"global_pool": "map", "num_heads": 4, "img_size": 32} | arguments
    theirs = timm_model(name, **arguments)
    timm.models.save_for_hf(theirs, tmp_path, model_args=arguments, safe_serialization=True)
    ours = from_folder(tmp_path)
    assert ours.model.pool_num_heads == num_heads
    with torch.no_grad():
        expected = theirs(_channels_first(images(OTHER)))
    assert_close(forward(ours, images(OTHER)).logits, expected)


EPS = {  # arguments that change what usually tells the eps of norms
    "rotation of DINOv3": ("vit_small_patch16_rope_224", {"rope_type": "dinov3"}, 1e-6),
    "norm before the blocks": ("eva02_base_patch14_224", {"use_pre_transformer_norm": True}, 1e-6),
    "rotation of indices": ("vit_small_patch16_dinov3", {"rope_type": "cat"}, 1e-5),
    "norm before the blocks of a ViT": ("vit_small_patch16_224", {"pre_norm": True}, 1e-6),
    "no norm before the blocks of CLIP": ("vit_base_patch16_clip_224", {"pre_norm": False}, 1e-5),
    "no norm before the blocks": ("vit_pe_core_base_patch16_224", {"use_pre_transformer_norm": False}, 1e-5),
}


@pytest.mark.parametrize("name", EPS)
def test_the_epsilon_of_norms_is_that_of_the_architecture(name, timm, timm_model, tmp_path, from_folder):
    kind, arguments, eps = EPS[name]
    theirs = timm_model(kind, **arguments)
    arguments = arguments | {"num_heads": 4, "img_size": 32}
    timm.models.save_for_hf(theirs, tmp_path, model_args=arguments, safe_serialization=True)
    assert from_folder(tmp_path).model.norm_eps == theirs.blocks[0].norm1.eps == eps


@pytest.mark.parametrize(
    "told", [{"architecture": "vit_small_patch16_dinov3"}, {}], ids=["named", "not named"]
)
def test_dinov3_of_timm_pools_the_mean_without_a_folder(
    told, timm_model, numpy_state, images, forward, assert_close
):
    theirs = timm_model("vit_small_patch16_dinov3")
    ours = reading.from_state_dict(numpy_state(theirs), source="auto", num_heads=4, image_size=32, **told)
    with torch.no_grad():
        expected = theirs(_channels_first(images(OTHER)))
    assert_close(forward(ours, images(OTHER)).logits, expected)


ROTARY = {
    "centres": {"positions": "rope2d(base=30)", "use_qkv_bias": False, "num_registers": 2},
    "indices": {"positions": "learned + rope2d(coordinates='index', pairs='interleaved', reference=6)"},
    "neither": {"positions": "learned"},
}


@pytest.mark.parametrize("name", ROTARY)
def test_the_printed_call_of_timm_makes_the_model(
    name, timm, make, params, tmp_path, images, forward, assert_close
):
    ours = make(**ROTARY[name], norm_eps=1e-3)  # which no config.json of timm tells
    exported, file = targets.export(ours.model, params(ours), "timm"), tmp_path / "model.safetensors"
    assert not targets.is_config_complete(exported)
    write_safetensors(file, exported.weights(np.dtype(np.float32)), {"format": "pt"})
    call = json_configs.timm_call(exported.model)
    more = ", norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-3), dynamic_img_size=True)"
    theirs = eval(re.sub(r"\)$", more, call), {"timm": timm, "torch": torch, "functools": functools})
    timm.models.load_checkpoint(theirs.eval(), str(file))
    with torch.no_grad():
        expected = theirs(_channels_first(images(OTHER)))
    assert_close(forward(ours, images(OTHER)).logits, expected)
