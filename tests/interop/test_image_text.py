"""Whole models of images and texts: transformers', OpenCLIP's and OpenAI's live, and big_vision's names."""

import functools
import importlib.util
import json
import re

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import vit_registers
from tests.fixtures.digits import make_config
from tests.fixtures.quick import parametrize_quick
from vit_registers import loading
from vit_registers.config import Mesh, Model, Text
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.interop.export.image_text import image_text_state_dict
from vit_registers.interop.image_text import image_text_from_state_dict
from vit_registers.models.text.image_text import ImageTextModel, build_image_text
from vit_registers.models.text.tower import TextTower
from vit_registers.models.vit import ViT
from vit_registers.runtime.mesh import make_mesh

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXT = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 4, "max_position_embeddings": 9, "bos_token_id": 1, "pad_token_id": 0}
VISION = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6}
VISION |= {"image_size": 32, "patch_size": 8}
SIGLIP_TEXT = TEXT | {"hidden_size": 48, "num_attention_heads": 6, "eos_token_id": 1}
MODELS = {
    "clip quick": ("CLIP", TEXT | {"eos_token_id": 49}, {}),
    "clip exact": ("CLIP", TEXT | {"eos_token_id": 49, "hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    "clip of 2021": ("CLIP", TEXT | {"eos_token_id": 2}, {}),
    "clip another end": ("CLIP", TEXT | {"eos_token_id": 40}, {}),
    "siglip": ("Siglip", SIGLIP_TEXT, {}),
    "siglip wide texts": ("Siglip", TEXT | {"eos_token_id": 1, "projection_size": 48}, {}),
}


@pytest.fixture(scope="module")
def hf(randomise):
    """hf(name): the model of MODELS, all parameters random. Each is made once."""

    def make(name):
        kind, text, vision = MODELS[name]
        more = {"projection_dim": 24} if kind == "CLIP" else {}
        config = getattr(transformers, f"{kind}Config")(
            text_config=dict(text), vision_config=VISION | vision, **more
        )
        return randomise(getattr(transformers, f"{kind}Model")(config))

    return functools.cache(make)


def texts(name=""):
    ids = np.random.default_rng(0).integers(3, 40, (4, 9)).astype(np.int32)
    ids[np.arange(4), [3, 8, 5, 1]] = 49
    if "another" in name:
        ids[np.arange(4), [2, 8, 4, 1]] = 40
    return ids


@jax.jit
def run(model, images, tokens):
    return model.embed_images(images), model.embed_texts(tokens), model(images, tokens)


@pytest.fixture
def agree(images, assert_close):
    """agree(ours, answers, name): the same embeddings and logits, which are (images, texts, logits)."""

    def agree(ours, answers, name=""):
        for found, expected in zip(run(ours, images(), texts(name)), answers, strict=True):
            scale = max(1.0, float(np.abs(expected).max()))
            assert_close(np.asarray(found) / scale, np.asarray(expected) / scale)

    return agree


def answers(theirs, images, name=""):
    """Embeddings of images and of texts, and logits, of a model of transformers."""
    pixels, ids = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(texts(name)).long()
    with torch.no_grad():
        image = theirs.get_image_features(pixel_values=pixels).pooler_output
        text = theirs.get_text_features(input_ids=ids).pooler_output
        whole = theirs(pixel_values=pixels, input_ids=ids)
    return image.numpy(), text.numpy(), whole.logits_per_image.numpy()


def read_theirs(folder):
    """The whole model that transformers makes of a folder: every tensor found its place."""
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    theirs, info = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    return theirs.eval()


# --- transformers -----------------------------------------------------------------------------------


@parametrize_quick("name", MODELS, number=2)
def test_transformers_folders_there_and_back(
    name, hf, images, agree, numpy_state, assert_same, tmp_path, capsys
):
    theirs = hf(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = vit_registers.load_image_text(tmp_path / "theirs")
    assert "text tower of width" in capsys.readouterr().out
    expected = answers(theirs, images(), name)
    agree(ours, expected, name)
    assert_same(numpy_state(theirs), image_text_state_dict(ours, "transformers"))
    ours.save(tmp_path / "ours", "transformers")
    back = read_theirs(tmp_path / "ours")
    for found, value in zip(answers(back, images(), name), expected, strict=True):
        np.testing.assert_array_equal(found, value)
    agree(vit_registers.load_image_text(tmp_path / "ours"), expected, name)


@pytest.mark.parametrize("name", ["clip exact", "siglip"])
def test_state_dicts_of_transformers_with_a_config_and_with_arguments(name, hf, images, agree, numpy_state):
    theirs, expected = hf(name), answers(hf(name), images(), name)
    state = numpy_state(theirs)
    agree(image_text_from_state_dict(state, source="transformers", config=theirs.config.to_dict()), expected)
    told = {"num_heads": 6, "text_num_heads": theirs.config.text_config.num_attention_heads}
    told |= {"hidden_act": "gelu"} if name == "clip exact" else {}
    agree(image_text_from_state_dict(state, source="auto", **told), expected)


def test_metaclip_2_pools_its_end_token_which_clip_does_not_have(randomise, tmp_path):
    """Its end token is 2, where CLIP of transformers pools the largest id."""
    text = TEXT | {"eos_token_id": 2}
    config = transformers.MetaClip2Config(text_config=text, vision_config=VISION, projection_dim=24)
    theirs = randomise(transformers.MetaClip2Model(config))
    theirs.save_pretrained(tmp_path)
    ours, ids = vit_registers.load_image_text(tmp_path), texts()
    ids[ids == 2] = 3
    ids[np.arange(4), [2, 6, 4, 1]] = 2
    with torch.no_grad():
        expected = theirs.get_text_features(input_ids=torch.from_numpy(ids).long()).pooler_output.numpy()
    found = jax.jit(lambda model, tokens: model.embed_texts(tokens))(ours, ids)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    with pytest.raises(CheckpointError, match="pools the largest id if the end token is 2"):
        ours.save(tmp_path / "ours", "transformers")
    ours.save(tmp_path / "open", "open_clip")
    other = vit_registers.load_image_text(tmp_path / "open")
    np.testing.assert_array_equal(other.embed_texts(ids), ours.embed_texts(ids))


def test_the_image_tower_alone_is_loaded_as_before(hf, images, forward, tmp_path, assert_close):
    for name in ("clip quick", "siglip"):
        hf(name).save_pretrained(tmp_path / name)
        image, whole = vit_registers.load(tmp_path / name), vit_registers.load_image_text(tmp_path / name)
        outputs = forward(image, images())
        embeds = outputs.pooled if outputs.logits is None else outputs.logits
        assert_close(embeds, run(whole, images(), texts(name))[0])
        assert whole.vit.preprocess(np.zeros((40, 60, 3), np.uint8)).shape == (1, 32, 32, 3)
        np.testing.assert_array_equal(
            whole.vit.preprocess(np.zeros((40, 60, 3), np.uint8)),
            image.preprocess(np.zeros((40, 60, 3), np.uint8)),
        )


def test_an_image_tower_of_siglip_alone(hf_model, images, forward, tokens, assert_close, tmp_path):
    for use_head in (True, False):
        theirs = hf_model("SiglipVisionModel", vision_use_head=use_head)
        theirs.save_pretrained(tmp_path / str(use_head))
        ours = vit_registers.load(str(tmp_path / str(use_head)))
        with torch.no_grad():
            expected = theirs(torch.from_numpy(images()).permute(0, 3, 1, 2))
        outputs = forward(ours, images())
        assert_close(tokens(outputs), expected.last_hidden_state)
        if use_head:
            assert_close(outputs.pooled, expected.pooler_output)


def test_images_of_another_size(hf, images, assert_close, tmp_path):
    for name in ("clip quick", "siglip"):
        hf(name).save_pretrained(tmp_path / name)
        ours = vit_registers.load_image_text(tmp_path / name, image_size=(48, 24))
        pixels = torch.from_numpy(images((48, 24))).permute(0, 3, 1, 2)
        with torch.no_grad():
            expected = hf(name).get_image_features(pixel_values=pixels, interpolate_pos_encoding=True)
        assert_close(ours.embed_images(images((48, 24))), expected.pooler_output)


TINY_IMAGE = {"width": 48, "depth": 2, "num_heads": 6, "mlp_dim": 64, "patch_size": 8, "image_size": (32, 32)}
TINY_IMAGE |= {"num_classes": 0, "norm_eps": 1e-5, "use_patch_bias": False, "has_cls_position": False}
TINY_TEXT = {"width": 32, "depth": 2, "num_heads": 4, "mlp_dim": 48, "vocab_size": 50, "context": 9}
TINY_TEXT |= {"embed_dim": 24}

# --- OpenCLIP and OpenAI, where they are installed --------------------------------------------------

OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 9, "vocab_size": 50, "width": 32, "heads": 4, "layers": 2},
}
TEXTS_OF_OPEN_CLIP = {
    "plain": {},
    "quick": {"quick_gelu": True},
    "eos": {"text_cfg": {"pool_type": "eos", "eos_id": 49, "mlp_ratio": 3.1}},
    "tanh": {"text_cfg": {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}}},
}
SIGLIP_OF_OPEN_CLIP = {
    "embed_dim": 768,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 224,
        "timm_model_name": "vit_base_patch16_siglip_224",
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 64,
        "vocab_size": 100,
        "width": 96,
        "heads": 12,
        "layers": 1,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}


def theirs_of_open_clip(open_clip, randomise, config):
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    arguments = {name: value for name, value in config.items() if name != "custom_text"}
    return randomise(kind(**arguments))


def answers_of_open_clip(theirs, images, ids):
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    ids = torch.from_numpy(ids).long()
    with torch.no_grad():
        logits, _ = theirs.get_logits(pixels, ids)
        return theirs.encode_image(pixels).numpy(), theirs.encode_text(ids).numpy(), logits.numpy()


@pytest.mark.parametrize("name", TEXTS_OF_OPEN_CLIP)
def test_open_clip_there_and_back(
    name, open_clip, randomise, images, agree, numpy_state, assert_same, tmp_path
):
    changes = TEXTS_OF_OPEN_CLIP[name]
    config = OPEN_CLIP | changes
    config["text_cfg"] = OPEN_CLIP["text_cfg"] | changes.get("text_cfg", {})
    theirs = theirs_of_open_clip(open_clip, randomise, config)
    state, expected = numpy_state(theirs), answers_of_open_clip(theirs, images(), texts())
    ours = image_text_from_state_dict(state, source="open_clip", config=config)
    agree(ours, expected)
    assert_same(state, image_text_state_dict(ours, "open_clip"))
    # A folder, as on the Hub.
    save_file(state, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    folder = vit_registers.load_image_text(tmp_path)
    agree(folder, expected)
    folder.save(tmp_path / "ours", "open_clip")
    written = json.loads((tmp_path / "ours/open_clip_config.json").read_text())["model_cfg"]
    again = theirs_of_open_clip(open_clip, randomise, written)
    again.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    for found, value in zip(answers_of_open_clip(again, images(), texts()), expected, strict=True):
        np.testing.assert_array_equal(found, value)
    agree(vit_registers.load_image_text(tmp_path / "ours"), expected)
    if name == "plain":
        told = {"num_heads": 6, "text_num_heads": 4}
        agree(image_text_from_state_dict(state, source="open_clip", **told), expected)


@pytest.mark.slow
def test_siglip_of_open_clip_there_and_back(open_clip, randomise, numpy_state, assert_same, tmp_path, agree):
    theirs = theirs_of_open_clip(open_clip, randomise, SIGLIP_OF_OPEN_CLIP)
    with torch.no_grad():
        for parameter in theirs.visual.parameters():  # noise of 0.2 in all of a ViT-B is chaotic
            parameter.mul_(0.3)
    state = numpy_state(theirs)
    images = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype(np.float32)
    ids = np.random.default_rng(1).integers(0, 100, (3, 64)).astype(np.int32)
    expected = answers_of_open_clip(theirs, images, ids)
    for config in (SIGLIP_OF_OPEN_CLIP, None):
        told = {} if config else {"text_num_heads": 12}
        ours = image_text_from_state_dict(state, source="timm", config=config, **told)
        for found, value in zip(run(ours, images, ids), expected, strict=True):
            scale = max(1.0, float(np.abs(value).max()))
            np.testing.assert_allclose(np.asarray(found) / scale, value / scale, atol=1e-5, rtol=0)
        assert_same(state, image_text_state_dict(ours, "open_clip"))


@pytest.mark.slow
def test_an_image_tower_of_timm_with_registers_in_open_clip(
    open_clip, randomise, numpy_state, assert_same, tmp_path
):
    vision = {"image_size": 256, "timm_model_name": "vit_wee_patch16_reg1_gap_256", "timm_proj_bias": True}
    config = OPEN_CLIP | {"vision_cfg": vision}
    theirs = theirs_of_open_clip(open_clip, randomise, config)
    with torch.no_grad():
        for parameter in theirs.visual.parameters():  # noise of 0.2 in 14 blocks is chaotic
            parameter.mul_(0.3)
    state = numpy_state(theirs)
    images = np.random.default_rng(0).normal(size=(2, 256, 256, 3)).astype(np.float32)
    ours = image_text_from_state_dict(state, source="timm", config=config)
    assert ours.vit.model.num_registers == 1 and ours.vit.model.pooling == "gap"
    for found, value in zip(
        run(ours, images, texts()), answers_of_open_clip(theirs, images, texts()), strict=True
    ):
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(np.asarray(found) / scale, value / scale, atol=1e-5, rtol=0)
    assert_same(state, image_text_state_dict(ours, "open_clip"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [384, 448])
def test_a_perception_encoder_in_open_clip(size, open_clip, randomise, numpy_state):
    """PE-Core-T-16-384, with a small text tower; at another size, timm makes both positions for it."""
    vision = {"timm_model_name": "vit_pe_core_tiny_patch16_384", "timm_pool": "map", "timm_proj": None}
    text = {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 4, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision | {"image_size": 384}, "text_cfg": text}
    theirs = randomise(open_clip.CustomTextCLIP(**config))
    with torch.no_grad():
        for parameter in theirs.visual.parameters():  # noise of 0.2 in 12 blocks is chaotic
            parameter.mul_(0.3)
    ours = image_text_from_state_dict(numpy_state(theirs), source="auto", config=config, text_num_heads=4)
    theirs.visual.trunk.set_input_size(size)
    pixels = np.random.default_rng(0).normal(size=(1, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.encode_image(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    found = jax.jit(lambda model, images: model.embed_images(images))(ours, pixels)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("pooling", ["cls", "gap"])
def test_ours_with_registers_in_open_clips_names(pooling, images, tmp_path):
    """CLIP's image tower with registers before its first norm, as a file for a tower of timm."""
    image = Model(**TINY_IMAGE, pooling=pooling, use_cls=pooling == "cls", use_norm_pre=True, num_registers=2)
    rngs = nnx.Rngs(0)
    towers = ViT(image, rngs=rngs), TextTower(Text(**TINY_TEXT), rngs=rngs)
    ours = ImageTextModel(*towers, has_image_proj=True, rngs=rngs)
    state = image_text_state_dict(ours, "open_clip")
    assert state["visual.trunk.reg_token"].shape == (1, 2, 48)
    assert state["visual.head.proj.weight"].shape == (24, 48)
    told = {"num_heads": 6, "text_num_heads": 4, "hidden_act": "gelu"}
    back = image_text_from_state_dict(state, source="timm", **told)
    for found, value in zip(run(back, images(), texts()), run(ours, images(), texts()), strict=True):
        np.testing.assert_allclose(found, value, atol=1e-5)
    for target in ("transformers", "clip"):
        with pytest.raises(
            CheckpointError, match=r"have no place for registers|no cls token|cannot be written"
        ):
            image_text_state_dict(ours, target)


@pytest.fixture(scope="module")
def openai():
    """OpenAI's module of models, without its package, which requires torchvision."""
    spec = importlib.util.find_spec("clip")
    path = None if spec is None else f"{spec.submodule_search_locations[0]}/model.py"
    if path is None:
        pytest.skip("clip is not installed")
    spec = importlib.util.spec_from_file_location("openai_clip_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# In the whole suite it ended its worker twice, without a message; alone it never did.
@pytest.mark.own_process
def test_openai_there_and_back(openai, images, agree, assert_same):
    """Heads of width 64, as its code assumes; its files have three numbers beside the parameters."""
    sizes = {"embed_dim": 24, "image_resolution": 32, "vision_layers": 2, "vision_width": 64}
    sizes |= {"vision_patch_size": 8, "context_length": 9, "vocab_size": 50, "transformer_width": 128}
    theirs = openai.CLIP(**sizes, transformer_heads=2, transformer_layers=2).eval()
    rng = np.random.default_rng(2)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += torch.from_numpy(np.asarray(rng.normal(0, 0.1, parameter.shape), np.float32))
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    state |= {"input_resolution": np.array(32), "context_length": np.array(9), "vocab_size": np.array(50)}
    ids, pixels = torch.from_numpy(texts()).long(), torch.from_numpy(images()).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = [theirs.encode_image(pixels), theirs.encode_text(ids), theirs(pixels, ids)[0]]
    ours = image_text_from_state_dict(state, source="auto", num_heads=1)
    assert ours.text.text.activation == ours.vit.model.activation == "quick_gelu"
    expected = [value.numpy() for value in expected]
    agree(ours, expected)
    assert_same(state, image_text_state_dict(ours, "clip"))
    # transformers has the same layers under other names.
    again = image_text_from_state_dict(
        image_text_state_dict(ours, "transformers"),
        source="transformers",
        num_heads=1,
        text_num_heads=2,
        hidden_act="quick_gelu",
    )
    agree(again, expected)


# --- big_vision: a SigLIP of transformers under its names -------------------------------------------


def as_big_vision(state, *, heads, is_scanned):
    """The tensors of a SiglipModel as the two towers of big_vision."""

    def tower(source, target, block, pool=""):
        width = state[f"{source}encoder.layers.0.layer_norm1.weight"].shape[0]
        split = (heads[target.split("/")[1]], -1)
        found = {}
        layers = len({name.split(".")[3] for name in state if name.startswith(f"{source}encoder.layers.")})
        blocks = []
        for i in range(layers):
            at, one = f"{source}encoder.layers.{i}.", {}
            for j in (0, 1):
                one[f"LayerNorm_{j}/scale"] = state[f"{at}layer_norm{j + 1}.weight"]
                one[f"LayerNorm_{j}/bias"] = state[f"{at}layer_norm{j + 1}.bias"]
                one[f"MlpBlock_0/Dense_{j}/kernel"] = state[f"{at}mlp.fc{j + 1}.weight"].T
                one[f"MlpBlock_0/Dense_{j}/bias"] = state[f"{at}mlp.fc{j + 1}.bias"]
            attention = "MultiHeadDotProductAttention_0"
            for theirs, name in (("q", "query"), ("k", "key"), ("v", "value")):
                kernel, bias = (state[f"{at}self_attn.{theirs}_proj.{p}"] for p in ("weight", "bias"))
                one[f"{attention}/{name}/kernel"] = kernel.T.reshape(width, *split)
                one[f"{attention}/{name}/bias"] = bias.reshape(split)
            out = state[f"{at}self_attn.out_proj.weight"].T
            one[f"{attention}/out/kernel"] = out.reshape(*split, width)
            one[f"{attention}/out/bias"] = state[f"{at}self_attn.out_proj.bias"]
            blocks.append(one)
        if is_scanned:
            for name in blocks[0]:
                found[f"{target}/{block}/encoderblock/{name}"] = np.stack([one[name] for one in blocks])
        else:
            for i, one in enumerate(blocks):
                found |= {f"{target}/{block}/encoderblock_{i}/{name}": value for name, value in one.items()}
        return found

    params = tower("text_model.", "params/txt", "Encoder_0") | tower(
        "vision_model.", "params/img", "Transformer"
    )
    for source, target in (
        ("text_model.final_layer_norm", "params/txt/Encoder_0/encoder_norm"),
        ("vision_model.post_layernorm", "params/img/Transformer/encoder_norm"),
        ("vision_model.head.layernorm", "params/img/MAPHead_0/LayerNorm_0"),
    ):
        params[f"{target}/scale"], params[f"{target}/bias"] = (
            state[f"{source}.weight"],
            state[f"{source}.bias"],
        )
    for i in (0, 1):
        params[f"params/img/MAPHead_0/MlpBlock_0/Dense_{i}/kernel"] = state[
            f"vision_model.head.mlp.fc{i + 1}.weight"
        ].T
        params[f"params/img/MAPHead_0/MlpBlock_0/Dense_{i}/bias"] = state[
            f"vision_model.head.mlp.fc{i + 1}.bias"
        ]
    pool, split = "params/img/MAPHead_0/MultiHeadDotProductAttention_0", (heads["img"], -1)
    joint, bias = (state[f"vision_model.head.attention.in_proj_{part}"] for part in ("weight", "bias"))
    width = joint.shape[1]
    for i, name in enumerate(("query", "key", "value")):
        params[f"{pool}/{name}/kernel"] = joint[i * width : (i + 1) * width].T.reshape(width, *split)
        params[f"{pool}/{name}/bias"] = bias[i * width : (i + 1) * width].reshape(split)
    out = state["vision_model.head.attention.out_proj.weight"].T
    params[f"{pool}/out/kernel"] = out.reshape(*split, width)
    params[f"{pool}/out/bias"] = state["vision_model.head.attention.out_proj.bias"]
    params["params/img/MAPHead_0/probe"] = state["vision_model.head.probe"]
    patch = state["vision_model.embeddings.patch_embedding.weight"]
    params["params/img/embedding/kernel"] = patch.transpose(2, 3, 1, 0)
    params["params/img/embedding/bias"] = state["vision_model.embeddings.patch_embedding.bias"]
    params["params/img/pos_embedding"] = state["vision_model.embeddings.position_embedding.weight"][None]
    params["params/txt/Embed_0/embedding"] = state["text_model.embeddings.token_embedding.weight"]
    params["params/txt/pos_embedding"] = state["text_model.embeddings.position_embedding.weight"][None]
    params["params/txt/head/kernel"] = state["text_model.head.weight"].T
    params["params/txt/head/bias"] = state["text_model.head.bias"]
    return params | {"params/t": state["logit_scale"], "params/b": state["logit_bias"]}


@pytest.mark.parametrize("is_scanned", [False, True])
@pytest.mark.parametrize("name", ["siglip", "siglip wide texts"])
def test_two_towers_of_big_vision_there_and_back(
    name, is_scanned, hf, images, agree, numpy_state, assert_same, tmp_path
):
    theirs = hf(name)
    state = numpy_state(theirs)
    heads = {"img": 6, "txt": theirs.config.text_config.num_attention_heads}
    towers = as_big_vision(state, heads=heads, is_scanned=is_scanned)
    np.savez(tmp_path / "towers.npz", **towers)
    ours = vit_registers.load_image_text(tmp_path / "towers.npz")
    agree(ours, answers(theirs, images()))
    assert_same(state, image_text_state_dict(ours, "transformers"))
    if not is_scanned:
        assert_same(towers, image_text_state_dict(ours, "big_vision"))
        ours.save(tmp_path / "ours.npz", "big_vision")
        assert_same(towers, dict(np.load(tmp_path / "ours.npz")))


def test_whole_weights_are_opened_as_a_checkpoint_to_evaluate(hf, tmp_path, images, agree):
    """Its parameters have the names of those of a run, over a mesh."""
    hf("clip quick").save_pretrained(tmp_path)
    overrides = {"text.dtype": "float32", "data.eval_batch_size": 8}
    opened = loading.open_external(str(tmp_path), overrides, is_whole=True)
    params = opened.read_params(make_mesh(Mesh(data=4, fsdp=2)))
    assert set(params) == {"vit", "text", "image_proj", "logit_scale"} and "head" not in params["vit"]
    assert opened.config.model.num_classes == 0 and opened.config.text.context == 9
    ours = build_image_text(
        lambda rngs: ViT(opened.config.model, rngs=rngs), opened.config.text, params, ImageTextModel
    )
    agree(ours, answers(hf("clip quick"), images()))
    alone = loading.open_external(str(tmp_path), overrides)
    assert set(alone.read_params(make_mesh(Mesh()))) == {"vit"} and alone.config.model.num_classes == 24


# --- the command --------------------------------------------------------------------------------------


def test_convert_writes_both_towers_and_says_what_it_compared(hf, run_here, tmp_path, images, agree):
    hf("clip quick").save_pretrained(tmp_path / "theirs")
    given = f"--input={tmp_path}/theirs"
    code, out, err = run_here(
        "convert", given, "--text", "--to=clip", f"--output={tmp_path}/ours.safetensors"
    )
    assert code == 0 and not err, err
    assert "heads of width 64 are assumed there; those of the image and the text tower have another" in out
    assert f"read again: both towers, equal bit for bit; {tmp_path}/ours.safetensors" in out
    whole = vit_registers.load_image_text(tmp_path / "ours.safetensors", num_heads=6, text_num_heads=4)
    agree(whole, answers(hf("clip quick"), images()))
    code, out, err = run_here("convert", given, "--text", "--dry-run", "--to=open_clip")
    assert code == 0 and not err, err
    assert "text_projection.weight [24, 32]  =  text/proj/kernel [32, 24]" in out
    assert "logit_scale []  =  logit_scale []" in out
    for flags, message in (
        (
            ("--to=timm", f"--output={tmp_path}/o"),
            "--text --to=timm: models of images and texts are written as",
        ),
        (("--to=big_vision", f"--output={tmp_path}/o"), "'big_vision' has text towers with no causal mask"),
        (("--to=clip", f"--output={tmp_path}/ours.safetensors"), "exists already: give another --output"),
        (("--to=transformers", f"--output={tmp_path}/o.npz"), "writes no .npz files"),
    ):
        code, _, err = run_here("convert", given, "--text", *flags)
        assert code == 2 and message in err and err.count("\n") == 1, err
        assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_is_saved_in_16_bits(dtype, hf, tmp_path):
    hf("siglip").save_pretrained(tmp_path / "theirs")
    ours = vit_registers.load_image_text(tmp_path / "theirs")
    ours.save(tmp_path / "ours", "transformers", dtype=dtype)
    back = vit_registers.load_image_text(tmp_path / "ours")
    same = np.asarray(ours.text.proj.kernel[...]).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(back.text.proj.kernel[...], same)


def test_a_run_without_a_text_tower_is_refused(untrained, tmp_path):
    untrained(tmp_path / "run", make_config())
    with pytest.raises(CheckpointError, match=r"is a run without a text tower; vit_registers.load loads"):
        vit_registers.load_image_text(tmp_path / "run")


# --- bad input --------------------------------------------------------------------------------------


@pytest.fixture
def clip_state(hf, numpy_state):
    """(the tensors of a CLIP, its config)."""
    theirs = hf("clip quick")
    return numpy_state(theirs), theirs.config.to_dict()


def assert_refused(message, state, config=None, source="auto", **arguments):
    with pytest.raises((CheckpointError, ConfigError), match=message) as error:
        image_text_from_state_dict(state, source=source, config=config, **arguments)
    assert "\n" not in str(error.value)


def test_files_without_a_text_tower_or_with_another_are_refused(clip_state):
    state, config = clip_state
    image = {name: value for name, value in state.items() if name.startswith(("vision", "visual"))}
    assert_refused("has no text tower; vit_registers.load loads its image tower", image, config)
    other = image | {"text_model.roberta.weight": np.zeros((2, 2), np.float32)}
    assert_refused("a text tower of another kind: it lacks 'text_model.embeddings.token_emb", other, config)


def test_what_does_not_fit_is_listed(clip_state):
    state, config = clip_state
    del state["text_model.final_layer_norm.bias"], state["logit_scale"]
    state["text_model.encoder.layers.1.mlp.fc2.weight"] = np.zeros((3, 3), np.float32)
    state["text_model.adapter.weight"] = np.zeros(2, np.float32)
    assert_refused(r"4 tensors do not fit: .*'text_model.adapter.weight' \(2,\) has no place", state, config)
    assert_refused(r"'logit_scale' \(\) is missing", state, config)
    assert_refused(r"fc2.weight' is \(3, 3\), not \(32, 48\)", state, config)
    del state["text_model.embeddings.position_embedding.weight"]
    assert_refused("position_embedding.weight' of the text tower is missing", state, config)


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("text_config", "vocab_size", 51, "vocab_size of the text tower is 51 in config.json, and 50 in the"),
        ("text_config", "hidden_size", "x", "text_config.hidden_size='x': must be a positive integer"),
        ("text_config", "num_attention_heads", 5, "of width 32, cannot be 5: give text_num_heads"),
        ("text_config", "hidden_act", "relu", "hidden_act='relu' is unknown"),
        ("text_config", "eos_token_id", 50, "the end token of the text tower is 50 in config.json"),
        ("text_config", "eos_token_id", [1, 2], r"eos_token_id=\[1, 2\]: must be one integer"),
        (None, "text_config", None, "has no text_config"),
        (None, "text_config", [1], r"text_config=\[1\]: must be"),
        (None, "projection_dim", 25, "projection_dim is 25 in config.json"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(section, name, value, message, clip_state):
    state, config = clip_state
    (config if section is None else config[section])[name] = value
    assert_refused(message, state, config)


def test_what_the_tensors_do_not_determine_is_asked_for(clip_state):
    state, _ = clip_state
    assert_refused("give num_heads", state, hidden_act="gelu")
    assert_refused("give text_num_heads", state, num_heads=6, hidden_act="gelu")
    assert_refused("give hidden_act", state, num_heads=6, text_num_heads=4)
    assert_refused(
        "text_num_heads=0: must be an integer", state, num_heads=6, text_num_heads=0, hidden_act="gelu"
    )
    assert_refused("config is of type list", state, [1])
    assert_refused("config has neither model_type .* nor vision_cfg", state, {"a": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp_ratio": "x"}, "text_cfg.mlp_ratio='x': must be a positive number"),
        ({"act_kwargs": 1}, "text_cfg.act_kwargs=1: must be an object"),
        ({"norm_kwargs": {"eps": "x"}}, "norm_kwargs.*: must be an object, with eps as a positive number"),
        ({"hf_model_name": "roberta"}, "text_cfg.hf_model_name='roberta' is not supported yet"),
        ({"qk_norm": True}, "text_cfg.qk_norm=True is not supported yet"),
        ({"pool_type": "first"}, "text_cfg.pool_type='first' is not supported yet"),
        ({"layers": 3}, "depth of the text tower is 3 in config.json, and 2 in the tensors"),
        ({"mlp_ratio": 3.0}, "mlp_dim of the text tower is 96 in config.json, and 48 in the tensors"),
        (None, "has no text_cfg: it is of no text tower"),
    ],
    ids=str,
)
def test_a_config_of_open_clip_that_does_not_fit_is_refused(changes, message):
    text = None if changes is None else OPEN_CLIP["text_cfg"] | {"mlp_ratio": 1.5} | changes
    vision = OPEN_CLIP["vision_cfg"] | {"mlp_ratio": 64 / 48}
    assert_refused(message, tiny_open_clip(), {**OPEN_CLIP, "vision_cfg": vision, "text_cfg": text})


def test_odd_shapes_are_refused_in_one_line():
    for name in ("token_embedding.weight", "positional_embedding", "text_projection"):
        for shape in ((), (3,), (0, 0), (50, 0), (2, 3, 4)):
            state = tiny_open_clip() | {name: np.zeros(shape, np.float32)}
            assert_refused(
                f"'{name}' of the text tower is .*: must have 2 axes", state, num_heads=6, source="open_clip"
            )
    state = tiny_open_clip() | {"token_embedding.weight": np.zeros((50, 32), np.int8)}
    assert_refused("perhaps quantised", state, num_heads=6, text_num_heads=4, source="open_clip")
    state = tiny_open_clip() | {"logit_scale": np.array(np.nan, np.float32)}
    assert_refused("'logit_scale' has 1 NaN", state, num_heads=6, text_num_heads=4, source="open_clip")


def tiny_open_clip():
    """The tensors of a small model by OpenCLIP's names."""
    image = Model(**TINY_IMAGE | {"has_cls_position": True}, use_norm_pre=True, use_norm_after_pool=True)
    rngs = nnx.Rngs(0)
    towers = ViT(image, rngs=rngs), TextTower(Text(**TINY_TEXT), rngs=rngs)
    return image_text_state_dict(ImageTextModel(*towers, has_image_proj=True, rngs=rngs), "open_clip")


def test_a_checkpoint_of_open_clips_training(tmp_path, images):
    """Within "state_dict", with the names of DataParallel, beside the state of the optimizer."""
    state = tiny_open_clip()
    plain = image_text_from_state_dict(state, source="open_clip", num_heads=6, text_num_heads=4)
    wrapped = {f"module.{name}": torch.from_numpy(value) for name, value in state.items()}
    torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": {"state": {}}}, tmp_path / "epoch_3.pt")
    told = {"source": "open_clip", "num_heads": 6, "text_num_heads": 4}
    ours = vit_registers.load_image_text(tmp_path / "epoch_3.pt", **told)
    for found, value in zip(run(ours, images(), texts()), run(plain, images(), texts()), strict=True):
        np.testing.assert_array_equal(found, value)


def test_formats_that_cannot_represent_a_model_say_why(hf, numpy_state):
    def load(name):
        theirs = hf(name)
        return image_text_from_state_dict(
            numpy_state(theirs), source="transformers", config=theirs.config.to_dict()
        )

    for name, target, message in (
        ("siglip", "clip", "'clip' has text towers with a causal mask"),
        ("clip quick", "big_vision", "'big_vision' has text towers with no causal mask"),
        ("clip another end", "clip", "text.end_token=40 is not the largest"),
        ("clip quick", "timm", "to='timm' is unknown"),
    ):
        with pytest.raises((CheckpointError, ConfigError), match=re.escape(message)) as error:
            image_text_state_dict(load(name), target)
        assert "\n" not in str(error.value)
