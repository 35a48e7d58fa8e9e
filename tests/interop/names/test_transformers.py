"""Live models of `transformers` with random weights as ours: out of memory, and out of folders they write."""

import functools

import jax
import numpy as np
import pytest

import vit_registers
from tests.fixtures.quick import parametrize_quick
from vit_registers.errors import CheckpointError
from vit_registers.interop import reading
from vit_registers.interop.hints import Hints
from vit_registers.interop.opened import describe_weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ORIGINS = {
    "registers": ("Dinov2WithRegistersModel", {"num_register_tokens": 3}),
    "registers swiglu": ("Dinov2WithRegistersModel", {"use_swiglu_ffn": True}),
    "registers classifier": ("Dinov2WithRegistersForImageClassification", {"num_labels": 5}),
    "registers swiglu classifier": (
        "Dinov2WithRegistersForImageClassification",
        {"num_labels": 5, "use_swiglu_ffn": True},
    ),
    "dinov2": ("Dinov2Model", {}),
    "dinov2 swiglu": ("Dinov2Model", {"use_swiglu_ffn": True}),
    "dinov2 classifier": ("Dinov2ForImageClassification", {"num_labels": 5}),
    "dinov2 swiglu classifier": ("Dinov2ForImageClassification", {"num_labels": 5, "use_swiglu_ffn": True}),
    "vit": ("ViTModel", {}),
    "vit classifier": ("ViTForImageClassification", {"num_labels": 5}),
    "deit": ("DeiTModel", {}),
    "deit classifier": ("DeiTForImageClassification", {"num_labels": 5}),
    "deit distilled": ("DeiTForImageClassificationWithTeacher", {"num_labels": 5}),
    "clip": ("CLIPVisionModel", {}),
    "clip exact gelu": ("CLIPVisionModel", {"hidden_act": "gelu"}),
    "clip projection": ("CLIPVisionModelWithProjection", {}),
    "clip projection exact gelu": ("CLIPVisionModelWithProjection", {"hidden_act": "gelu"}),
    "clip with text": ("CLIPModel", {}),
}
# The size that the positions are made for, a larger, a non-square one, and one with as many patches.
IMAGE_SIZES = [(32, 32), (48, 48), (24, 56), (16, 64)]


@pytest.fixture(scope="module")
def origin(hf_model):
    """origin(name): the model of ORIGINS. Each is made once."""
    return functools.cache(lambda name: hf_model(ORIGINS[name][0], **ORIGINS[name][1]))


@pytest.fixture
def agree(run_hf, images, forward, tokens, assert_close):
    """agree(ours, theirs, size): asserts the same answer and tokens; returns their outputs and ours."""

    def agree(ours, theirs, size, masked_BxP=None):
        arguments = {} if masked_BxP is None else {"bool_masked_pos": torch.from_numpy(masked_BxP)}
        answer, encoded = run_hf(theirs, images(size), **arguments)
        outputs = forward(ours, images(size), masked_BxP)
        assert_close(tokens(outputs), encoded.last_hidden_state)
        if answer is None:
            assert outputs.logits is None
        else:
            assert_close(outputs.logits, answer)
        return encoded, outputs

    return agree


def from_memory(theirs, numpy_state, **hints):
    """Ours, told what the tensors do not tell."""
    if "clip" in theirs.config.model_type:
        hints["hidden_act"] = getattr(theirs.config, "vision_config", theirs.config).hidden_act
    return reading.from_state_dict(numpy_state(theirs), source="transformers", num_heads=4, **hints)


def assert_same_model(ours, other, params):
    assert ours.model == other.model
    jax.tree.map(np.testing.assert_array_equal, params(ours), params(other))


@parametrize_quick("name", ORIGINS)
def test_answers_tokens_and_pooled_at_every_size(name, origin, numpy_state, agree, assert_close):
    """All within 1e-5, of numbers up to 20; below 5e-6 is measured."""
    theirs = origin(name)
    ours = from_memory(theirs, numpy_state)
    for size in IMAGE_SIZES:
        encoded, outputs = agree(ours, theirs, size)
        # The pooler of ViT and DeiT is a layer that no classifier reads, and is left out.
        if name.startswith(("registers", "dinov2")):
            assert_close(outputs.cls, encoded.pooler_output)
        if name.startswith("clip"):  # CLIP's norm is of the pooled vector; the tokens are before it
            assert_close(outputs.pooled, encoded.pooler_output)


@parametrize_quick("name", ORIGINS, number=4)
def test_a_folder_tells_all_and_gives_the_same_model(
    name, origin, numpy_state, params, tmp_path, from_folder
):
    origin(name).save_pretrained(tmp_path)
    assert_same_model(from_folder(tmp_path), from_memory(origin(name), numpy_state), params)


@pytest.mark.parametrize("name", ["registers classifier", "deit distilled", "clip with text"])
def test_a_folder_of_shards(name, origin, params, tmp_path, from_folder):
    origin(name).save_pretrained(tmp_path / "one")
    origin(name).save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    want = from_folder(tmp_path / "one", source="transformers")
    assert_same_model(from_folder(tmp_path / "many"), want, params)


@pytest.mark.parametrize("name", ["registers", "clip"])
def test_a_torch_file_in_the_folder(name, origin, numpy_state, params, tmp_path, from_folder):
    theirs = origin(name)
    theirs.config.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_model(from_folder(tmp_path), from_memory(theirs, numpy_state), params)


@parametrize_quick("name", ["registers classifier", "dinov2", "vit", "deit distilled", "clip"])
@parametrize_quick("size", [(24, 40), (16, 64)])
def test_loading_at_an_image_size_is_their_interpolation(name, size, origin, numpy_state, agree):
    ours = from_memory(origin(name), numpy_state, image_size=size)
    assert ours.model.image_size == size
    assert ours.pos_embed.shape[1] == size[0] * size[1] // 64
    agree(ours, origin(name), size)


@parametrize_quick("name", ["registers", "dinov2 swiglu"])
def test_masked_patches(name, origin, numpy_state, agree):
    theirs = origin(name)
    ours = from_memory(theirs, numpy_state)
    masked_BxP = np.random.default_rng(2).random((2, 21)) < 0.5
    _, with_mask = agree(ours, theirs, (24, 56), masked_BxP)
    _, without = agree(ours, theirs, (24, 56))
    assert np.abs(with_mask.patches - without.patches).max() > 0.1


@pytest.mark.parametrize("kind", ["ViTModel", "DeiTModel"])
def test_mask_tokens_of_vit_and_deit(kind, hf_model, numpy_state, agree, params, tmp_path, from_folder):
    """Theirs has a mask token of three axes, on request; DINOv2's is of two."""
    theirs = hf_model(kind, arguments={"use_mask_token": True})
    ours = from_memory(theirs, numpy_state)
    masked_BxP = np.random.default_rng(2).random((2, 16)) < 0.5
    agree(ours, theirs, (32, 32), masked_BxP)
    theirs.save_pretrained(tmp_path)
    assert_same_model(from_folder(tmp_path), ours, params)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Dinov2WithRegistersModel", {"qkv_bias": False, "hidden_act": "gelu_pytorch_tanh"}),
        ("Dinov2Model", {"use_mask_token": False, "hidden_act": "quick_gelu"}),
        ("ViTForImageClassification", {"qkv_bias": False, "hidden_act": "gelu_new", "num_labels": 1}),
        ("DeiTForImageClassification", {"hidden_act": "quick_gelu", "num_labels": 3}),
        ("CLIPVisionModel", {"hidden_act": "gelu_pytorch_tanh"}),
    ],
)
def test_the_config_of_a_folder_is_believed(kind, settings, hf_model, agree, tmp_path, from_folder):
    theirs = hf_model(kind, **settings, layer_norm_eps=0.1, num_attention_heads=2)
    theirs.save_pretrained(tmp_path)
    ours = from_folder(tmp_path)
    assert (ours.model.norm_eps, ours.model.num_heads) == (0.1, 2)
    agree(ours, theirs, (24, 56))


def test_a_vit_made_for_images_that_are_not_square(
    hf_model, images, forward, tokens, tmp_path, from_folder, assert_close
):
    theirs = hf_model("ViTModel", image_size=[16, 40])
    theirs.save_pretrained(tmp_path)
    ours = from_folder(tmp_path)
    assert ours.model.image_size == (16, 40)
    with torch.no_grad():
        encoded = theirs(torch.from_numpy(images((16, 40))).permute(0, 3, 1, 2))
    assert_close(tokens(forward(ours, images((16, 40)))), encoded.last_hidden_state)


def test_a_clip_config_without_an_activation_means_quick_gelu(origin, params, tmp_path, from_folder):
    """What transformers takes where config.json does not say; without config.json the user has to."""
    origin("clip with text").save_pretrained(tmp_path)
    want = from_folder(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"hidden_act"', '"was_hidden_act"'))
    assert transformers.CLIPModel.from_pretrained(tmp_path).config.vision_config.hidden_act == "quick_gelu"
    assert_same_model(from_folder(tmp_path), want, params)
    config.unlink()
    with pytest.raises(CheckpointError, match="give hidden_act"):
        from_folder(tmp_path, num_heads=4)
    assert_same_model(from_folder(tmp_path, num_heads=4, hidden_act="quick_gelu"), want, params)


def test_load_takes_the_folder(origin, params, tmp_path, from_folder, capsys):
    origin("registers classifier").save_pretrained(tmp_path)
    assert_same_model(vit_registers.load(tmp_path), from_folder(tmp_path), params)
    assert "transformers (dinov2); width 32, depth 2, 4 heads" in capsys.readouterr().out
    ours = vit_registers.load(tmp_path, source="transformers", image_size=(24, 40))
    assert_same_model(ours, from_folder(tmp_path, image_size=(24, 40)), params)


def test_what_is_left_out_is_said(origin, tmp_path):
    origin("clip with text").save_pretrained(tmp_path)
    opened = reading.open_path(tmp_path, source="auto", hints=Hints())
    text = [n for n in origin("clip with text").state_dict() if n.startswith(("text", "logit_scale"))]
    assert dict.fromkeys(text, "the text tower") == opened.found.left_out
    assert f"the text tower ({len(text)} tensors)" in describe_weights(opened)
