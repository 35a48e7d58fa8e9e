"""RADIO: the live model of transformers, whose files have the names of NVlabs/RADIO, and other files."""

import json

import numpy as np
import pytest
import safetensors.numpy

import vit_registers
from vit_registers.errors import CheckpointError
from vit_registers.interop import reading
from vit_registers.interop.hints import Hints
from vit_registers.interop.opened import describe_weights
from vit_registers.interop.preprocessing import preprocessing
from vit_registers.models.resampling import resample

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

SIZES = {"max_img_size": 64, "num_cls_tokens": 2, "num_registers": 3, "image_size": 32}


@pytest.fixture(scope="module")
def theirs(hf_model):
    return hf_model("RadioModel", **SIZES, summary_idxs=[0, 1])


@pytest.fixture(scope="module")
def written(theirs, tmp_path_factory):
    """(the tensors as transformers writes them, the content of config.json)."""
    folder = tmp_path_factory.mktemp("radio")
    theirs.save_pretrained(folder)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    assert all(name.startswith("radio_model.") for name in tensors)
    return tensors, json.loads((folder / "config.json").read_text())


def folder_of(path, tensors, config):
    safetensors.numpy.save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


def own_config(**changes):
    """What the code on the Hub writes, which has no model_type."""
    args = {"model": "vit_huge_patch16_224", "cpe_max_size": 64}
    config = {"architectures": ["RADIOModel"], "args": args, "patch_size": 8, "version": "radio_v2.5-h"}
    return config | {"preferred_resolution": [32, 32], "vitdet_window_size": None} | changes


def test_summaries_are_cls_and_registers(theirs, written, images, forward, tmp_path, from_folder):
    ours = from_folder(folder_of(tmp_path, *written), image_size=(64, 64))
    outputs = forward(ours, images((40, 56)))
    x = torch.from_numpy(images((40, 56))).permute(0, 3, 1, 2)
    with torch.no_grad():
        conditioner = theirs.input_conditioner
        expected = theirs(x * conditioner.norm_std + conditioner.norm_mean)
    summary = np.concatenate([outputs.cls, outputs.registers[:, 0]], axis=1)
    largest = np.abs(expected.features.numpy()).max()
    np.testing.assert_allclose(summary, expected.summary, atol=1e-5 * largest, rtol=0)
    np.testing.assert_allclose(outputs.patches, expected.features, atol=1e-5 * largest, rtol=0)
    assert ours.model.use_final_norm is False and ours.model.num_registers == 4


def test_what_is_said_and_how_images_are_normalised(written, tmp_path):
    tensors, config = written
    tensors = tensors | {"radio_model.input_conditioner.norm_mean": np.full((3, 1, 1), 0.25, np.float32)}
    adaptors = {"radio_model.adaptors.clip.fc1.weight": np.zeros((2, 2), np.float32)}
    path = folder_of(tmp_path, tensors | adaptors, config)
    said = {"do_normalize": False, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    (path / "preprocessor_config.json").write_text(json.dumps(said))
    opened = reading.open_path(path, source="auto", hints=Hints())
    line = describe_weights(opened)
    assert "radio; width 32" in line and "made for 32 x 32 px" in line and "4 registers" in line
    assert "adaptor heads of teachers (1 tensors)" in line and "the tokens 0, 1: 0 is cls" in line
    data, origin = preprocessing(opened, path)
    assert data.mean == (0.25,) * 3 and origin == "from the tensors"
    assert data.std == pytest.approx((0.26862954, 0.26130258, 0.27577711))


def test_the_names_of_training_checkpoints_and_of_layer_scale(written, params, tmp_path, from_folder):
    tensors, config = written
    want = from_folder(folder_of(tmp_path, tensors, config), image_size=(64, 64))
    other = {
        name.replace("radio_model.model.", "base_model.")
        .replace("radio_model.", "")
        .replace("layer_scale1.lambda1", "ls1.grandma")
        .replace("layer_scale2.lambda1", "ls2.grandma"): tensor
        for name, tensor in tensors.items()
    }
    other |= {"_heads.0.final.0.weight": np.zeros((2, 2), np.float32)}
    ours = reading.from_state_dict(other, source="radio", num_heads=4)
    np.testing.assert_array_equal(ours.blocks[1].ls2.gamma[...], want.blocks[1].ls2.gamma[...])
    assert {name: str(v) for name, v in params(ours).items()} == {n: str(v) for n, v in params(want).items()}


def test_a_model_that_began_as_dinov2(noise, images, forward, tokens):
    """RADIO v2.5-g has SwiGLU, a final norm and a bias of patches: DINOv2 with the same tensors agrees."""
    width, hidden, block = 32, 24, {}
    for i in range(2):
        shapes = {f"norm{j}.{part}": (width,) for j in (1, 2) for part in ("weight", "bias")}
        shapes |= {"attn.qkv.weight": (96, width), "attn.qkv.bias": (96,), "attn.proj.bias": (width,)}
        shapes |= {"attn.proj.weight": (width, width), "ls1.gamma": (width,), "ls2.gamma": (width,)}
        shapes |= {"mlp.w12.weight": (2 * hidden, width), "mlp.w12.bias": (2 * hidden,)}
        shapes |= {"mlp.w3.weight": (width, hidden), "mlp.w3.bias": (width,)}
        block |= {f"blocks.{i}.{name}": shape for name, shape in shapes.items()}
    shared = noise(block | {"norm.weight": (width,), "norm.bias": (width,), "mask_token": (1, width)})
    embed = noise(
        {"kernel": (width, 3, 8, 8), "bias": (width,), "tokens": (5, width), "table": (1, 16, width)}
    )
    radio = {"embedder.weight": embed["kernel"].reshape(width, -1), "embedder.bias": embed["bias"]}
    radio |= {"cls_token.token": embed["tokens"], "pos_embed": embed["table"]}
    radio = {f"patch_generator.{name}": tensor for name, tensor in radio.items()} | shared
    ours = reading.from_state_dict(
        {f"radio_model.model.inner.{name}": tensor for name, tensor in radio.items()},
        source="auto",
        num_heads=4,
    )
    table = np.concatenate([np.zeros((1, 1, width), np.float32), embed["table"]], axis=1)
    dinov2 = {"patch_embed.proj.weight": embed["kernel"], "patch_embed.proj.bias": embed["bias"]}
    dinov2 |= {"cls_token": embed["tokens"][None, :1], "register_tokens": embed["tokens"][None, 1:]}
    other = reading.from_state_dict(dinov2 | {"pos_embed": table} | shared, source="dinov2", num_heads=4)
    here, there = (tokens(forward(model, images((32, 32)))) for model in (ours, other))
    np.testing.assert_allclose(here, there, atol=1e-5)


@pytest.mark.parametrize(
    ("version", "method"),
    [("radio_v2.5-h", "linear_crop"), ("c-radio_v3-b", "linear_crop"), ("c-radio_v4-h", "bilinear_crop")],
)
def test_the_version_tells_the_resampling(version, method, written, tmp_path, from_folder):
    path = folder_of(tmp_path, written[0], own_config(version=version))
    ours = from_folder(path, num_heads=4)
    assert ours.model.position_resampling == method and ours.model.image_size == (32, 32)
    table = written[0]["radio_model.model.patch_generator.pos_embed"]
    square = torch.from_numpy(table).reshape(1, 8, 8, 32).permute(0, 3, 1, 2)
    has_corners = method == "linear_crop"
    expected = torch.nn.functional.interpolate(square, (7, 7), mode="bilinear", align_corners=has_corners)
    expected = expected[:, :, :3].permute(0, 2, 3, 1).reshape(21, 32)
    np.testing.assert_allclose(resample(table[0], (8, 8), (3, 7), method), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"args": {"model": "eradio"}}, "this RADIO cannot be loaded: E-RADIO's stages"),
        ({"vitdet_window_size": 8}, "attention within windows .vitdet_window_size."),
        ({"preferred_resolution": [32]}, r"the image size is \[32\]: must be pixels"),
        ({"preferred_resolution": [33, 33]}, "33"),
    ],
)
def test_settings_that_cannot_be_used(changes, match, written, tmp_path):
    path = folder_of(tmp_path, written[0], own_config(**changes))
    with pytest.raises(vit_registers.errors.UserError, match=match):
        vit_registers.load(path, num_heads=4)


def test_a_config_json_of_another_number_of_tokens_or_size_is_refused(written, tmp_path):
    path = folder_of(tmp_path, written[0], written[1] | {"num_registers": 4, "max_img_size": 128})
    with pytest.raises(
        CheckpointError, match=r"max_img_size is 128 .*6 cls and registers in config.json, 5 in"
    ):
        vit_registers.load(path)


@pytest.mark.parametrize(
    ("name", "shape", "match"),
    [
        ("patch_generator.embedder.weight", (32, 190), "of no square patches with 3 channels"),
        ("patch_generator.pos_embed", (1, 60, 32), "has 60 rows, which is no square grid"),
        ("patch_generator.patch_normalizer.weight", (32,), "patch_normalizer.weight' .32,. has no place"),
    ],
)
def test_tensors_of_other_shapes_are_named(name, shape, match, written):
    tensors = written[0] | {f"radio_model.model.{name}": np.zeros(shape, np.float32)}
    with pytest.raises(CheckpointError, match=match):
        reading.from_state_dict(tensors, source="auto", num_heads=4)
