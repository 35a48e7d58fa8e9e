"""Models of timm, transformers and OpenCLIP are loaded, or refused by name with a reason."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy

from vit_registers.errors import CheckpointError
from vit_registers.interop import reading
from vit_registers.interop.architectures import MODEL_TYPES, check_architecture
from vit_registers.interop.containers import Weights
from vit_registers.interop.hints import Hints
from vit_registers.interop.settings import plain_settings

torch = pytest.importorskip("torch")
REASON = "cannot be loaded: .* are not supported yet|is no plain Vision Transformer, and is not supported"


def refusal(settings):
    """The line that refuses a config.json; None if it is supported."""
    try:
        check_architecture("here", settings)
    except CheckpointError as error:
        return str(error)
    return None


def test_every_architecture_of_timm_is_supported_or_named_with_a_reason(timm):
    names = timm.list_models()
    lines = {name: refusal(plain_settings({"architecture": name})) for name in names}
    supported = [name for name, line in lines.items() if line is None]
    assert 100 < len(supported) < 300
    assert all(re.match("vit|deit|flexivit|eva|test_vit|beit3", name) for name in supported)
    for name, line in lines.items():
        assert line is None or re.fullmatch(rf"here: '{name}' of timm ({REASON}).*", line), line
    unnamed = [name for name, line in lines.items() if line and "no plain Vision Transformer" in line]
    assert not [name for name in unnamed if "vit" in name or "former" in name], unnamed


def vision_types():
    """The model types of transformers that read images, alone or with something else."""
    from transformers.models.auto import configuration_auto, image_processing_auto, modeling_auto

    names = set(image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES)
    for mapping in ("IMAGE_MAPPING", "IMAGE_CLASSIFICATION_MAPPING", "BACKBONE_MAPPING"):
        names |= set(getattr(modeling_auto, f"MODEL_FOR_{mapping}_NAMES"))
    everything = configuration_auto.CONFIG_MAPPING_NAMES
    return names | {name for name in everything if re.search("vision|vit|clip|dino|image", name)}


def test_every_model_type_of_transformers_is_supported_or_named_with_a_reason():
    pytest.importorskip("transformers")
    types = vision_types()
    assert len(types) > 200 and {"siglip2", "beit", "swin", "aimv2", "dinov2"} <= types
    for kind in types - set(MODEL_TYPES):
        line = refusal({"model_type": kind})
        assert line and re.match(rf"here: model_type='{kind}' of transformers ({REASON});", line), line
    siglip2 = refusal({"model_type": "siglip2"})
    assert "(NaFlex)" in siglip2 and "whose config.json says siglip, can be loaded" in siglip2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"multimodal_cfg": {}}, "CoCa of OpenCLIP cannot be loaded: a text decoder"),
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "a ResNet of OpenCLIP cannot be loaded: convolution"),
        ({"vision_cfg": {"timm_model_name": "convnext_base"}}, "'convnext_base' of timm .* convolution"),
        ({"vision_cfg": {"timm_model_name": "vitamin_base_224"}}, "'vitamin_base_224' of timm .* stages"),
    ],
)
def test_image_towers_of_open_clip(changes, reason):
    config = {"embed_dim": 8, "vision_cfg": {"layers": 2, "width": 32}} | changes
    assert re.search(reason, refusal(plain_settings({"model_cfg": config})) or "supported")


# Files without config.json, whose names are like those of families that are loaded -> the number of blocks;
# None is for models that take none.
BARE = {"beit_base_patch16_224": 1, "beitv2_base_patch16_224": 1, "cait_xxs24_224": 1, "convit_tiny": 1}
BARE |= {"eva_giant_patch14_224": 1, "vit_relpos_small_patch16_224": 1}
BARE |= {"samvit_base_patch16": 1, "tnt_s_patch16_224": 1, "volo_d1_224": None, "xcit_nano_12_p16_224": 1}
BARE |= {"aimv2_large_patch14_224": 1, "vit_base_patch16_xp_224": 1}
BARE |= {"vit_small_patch16_18x2_224": 1, "vit_dwee_patch16_reg1_gap_256": 1, "test_vit4": 1}
BARE |= {
    "vit_base_mci_224": 1,
    "vit_tiny_r_s16_p8_224": 1,
    "naflexvit_base_patch16_gap": 1,
    "levit_128s": None,
}
BARE |= {"pit_ti_224": None, "swin_tiny_patch4_window7_224": None, "crossvit_tiny_240": None}
BARE |= {"mobilevit_xxs": None, "hiera_tiny_224": None, "visformer_tiny": None, "resnet18": None}


def weights_of(module, name):
    facts = {n: (tuple(v.shape), np.dtype(np.float32)) for n, v in module.state_dict().items()}
    return Weights(name, "safetensors", facts, {}.__getitem__)


@pytest.mark.parametrize("name", BARE)
def test_a_bare_file_of_other_layers_is_refused_in_one_line(name, timm):
    arguments = {} if BARE[name] is None else {"depth": BARE[name]}
    with torch.device("meta"):
        weights = weights_of(timm.create_model(name, **arguments), name)
    for source in ("auto", "timm"):
        with pytest.raises(CheckpointError) as error:
            reading.understand(weights, source=source, hints=Hints())
        assert "\n" not in str(error.value)


# transformers' models with the names of ours, which need config.json to be told or have other layers.
OTHERS = {"BeitModel": {}, "Data2VecVisionModel": {}, "YolosModel": {}, "VitDetModel": {}}
OTHERS |= {"ASTModel": {}, "VideoMAEModel": {"tubelet_size": 1, "num_frames": 1}, "PvtV2Model": None}
OTHERS |= {"MLCDVisionModel": {}, "Siglip2VisionModel": {}, "Aimv2VisionModel": {}}
OTHERS |= {"SamVisionModel": {}, "Swinv2Model": None, "ViltModel": {}, "OwlViTVisionModel": {}}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_folder_and_a_bare_file_of_transformers_with_other_layers_are_refused(kind):
    transformers = pytest.importorskip("transformers")
    model = getattr(transformers, kind, None)
    if model is None:
        pytest.skip(f"this transformers has no {kind}")
    small = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = model.config_class(**({} if OTHERS[kind] is None else small | OTHERS[kind]))
    with torch.device("meta"):
        weights = weights_of(model(config), kind)
    told = plain_settings({k: v for k, v in json.loads(config.to_json_string()).items() if v is not None})
    with pytest.raises(CheckpointError, match=rf"model_type='{config.model_type}' of transformers .*yet"):
        reading.understand(weights, source="auto", hints=Hints(), settings=told)
    with pytest.raises(CheckpointError) as error:
        reading.understand(weights, source="auto", hints=Hints(hidden_act="gelu", num_heads=2))
    assert "\n" not in str(error.value)


def test_programs_end_with_one_line_and_code_2(run_here, noise, tmp_path):
    folder = tmp_path / "naflex"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip2", "vision_config": {}}))
    tensors = noise({"vision_model.embeddings.patch_embedding.weight": (8, 48)})
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    data = ("--config.data.name=digits", "--config.data.eval_split=val")
    for program, *arguments in (
        ("convert", f"--input={folder}", f"--output={tmp_path / 'out'}"),
        ("evaluate", f"--checkpoint={folder}", *data),
        ("analyze", "norms", f"--checkpoint={folder}", f"--out={tmp_path / 'report'}"),
    ):
        code, _, messages = run_here(program, *arguments)
        line = messages.splitlines()[-1]
        assert code == 2 and "model_type='siglip2' of transformers cannot be loaded: patches of" in line, (
            messages
        )
        assert "Traceback" not in messages
