"""Weights for images of other channels: patch kernels as timm makes them, statistics, and what is said."""

import numpy as np
import pytest

import vit_registers
from vit_registers import fine_tuning, loading
from vit_registers.config import InitFrom
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.interop import from_state_dict, transfer
from vit_registers.interop.channels import adapt_kernel, adapt_statistics
from vit_registers.interop.export import targets
from vit_registers.interop.export.files import write_safetensors

PAIRS = [(3, 1), (3, 2), (3, 3), (3, 4), (3, 5), (3, 6), (3, 13)]


@pytest.mark.parametrize(("there", "here"), PAIRS)
def test_kernels_are_those_of_timm(there, here, timm, assert_close):
    import torch

    kernel = np.random.default_rng(0).normal(size=(16, there, 4, 4)).astype(np.float32)  # OIHW
    theirs = timm.models.adapt_input_conv(here, torch.from_numpy(kernel).clone()).numpy()
    assert_close(adapt_kernel(kernel.transpose(2, 3, 1, 0), here), theirs.transpose(2, 3, 1, 0), 1e-6)


def test_grey_images_and_colour_images_of_grey_give_the_same(make, params, forward, assert_close):
    for there, here in ((3, 1), (1, 3)):
        model = make(channels=there)
        arrays = dict(targets.export(model.model, params(model), "timm").weights(np.float32))
        other = from_state_dict(arrays, source="timm", num_heads=4, channels=here)
        assert other.model.channels == here
        grey = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype(np.float32)
        shown = [np.repeat(grey, channels, axis=-1) for channels in (there, here)]
        assert_close(forward(other, shown[1]).logits, forward(model, shown[0]).logits)


@pytest.mark.parametrize("target", ["timm", "big_vision", "transformers", "clip", "mup_vit"])
def test_each_family_can_be_read_for_grey_images(target, make, params):
    settings = {"clip": {"use_norm_pre": True, "use_norm_after_pool": True, "use_patch_bias": False}}
    settings["clip"] |= {"use_head_bias": False, "activation": "quick_gelu", "norm_eps": 1e-5}
    settings |= {"mup_vit": {"use_cls": False, "pooling": "gap", "has_cls_position": False}}
    model = make(**settings.get(target, {}))
    arrays = dict(targets.export(model.model, params(model), target).weights(np.float32))
    grey = from_state_dict(arrays, source=target, num_heads=4, channels=1)
    kernel = np.asarray(params(model)["patch_embed"]["kernel"])
    np.testing.assert_allclose(grey.patch_embed.kernel, kernel.sum(2, keepdims=True), rtol=1e-5, atol=1e-6)


def test_the_normalisation_is_averaged_and_said(make, params, tmp_path, capfd, run_here):
    model = make(num_classes=0, use_mask_token=True, layer_scale_init=1e-5)
    path, run = tmp_path / "weights.safetensors", tmp_path / "run"
    write_safetensors(path, targets.export(model.model, params(model), "dinov2").weights(np.float32), None)
    vit_registers.load(path, num_heads=4, channels=1)
    mean, std = (0.485 + 0.456 + 0.406) / 3, (0.229 + 0.224 + 0.225) / 3
    said = capfd.readouterr().out
    assert "patch kernel of 3 channels for images of 1: summed over them" in said
    line = f"normalisation assumed for dinov2 and made for 1 channels: mean {mean}, std {std}"
    assert line in said
    args = (f"--input={path}", f"--output={run}", "--num_heads=4", "--channels=1")
    code, out, err = run_here("convert", *args)
    assert code == 0 and line in out and "equal bit for bit" in out, err
    config = loading.open_run(str(run)).config
    assert config.model.channels == 1 and config.data.mean == (mean,) and config.data.std == (std,)
    code, _, err = run_here("convert", f"--input={path}", f"--output={run}2", "--num_heads=4", "--channels=0")
    assert code != 0 and not (tmp_path / "run2").exists()


def test_training_starts_from_weights_of_other_channels(make, params, tmp_path, capfd, run_here, assert_same):
    model, path = make(num_classes=0), tmp_path / "weights.safetensors"
    write_safetensors(path, targets.export(model.model, params(model), "timm").weights(np.float32), None)
    run = tmp_path / "run"
    assert run_here("convert", f"--input={path}", f"--output={run}", "--num_heads=4")[0] == 0
    target = make(channels=1, num_classes=7).model
    taken = [
        fine_tuning.start_leaves(InitFrom(path=str(start), num_heads=heads), target)
        for start, heads in ((path, 4), (run, None))
    ]
    assert_same(*taken)
    kernel = np.asarray(params(model)["patch_embed"]["kernel"])
    np.testing.assert_allclose(taken[0]["patch_embed", "kernel"], kernel.sum(2, keepdims=True), rtol=1e-6)
    said = capfd.readouterr().out
    assert said.count("summed over them; its normalisation there: mean (0.5,), std (0.5,)") == 2
    with pytest.raises(ConfigError, match="channels is 4 there and 1 here"):
        other = make(channels=4, num_classes=0)
        transfer.taken_leaves(other.model, params(other), target, InitFrom(path="x"))


def test_the_card_of_fine_tuning_takes_channels(make, params, tmp_path, monkeypatch):
    from configs import transfer as card

    model, path = make(num_classes=3), tmp_path / "weights.safetensors"
    write_safetensors(path, targets.export(model.model, params(model), "timm").weights(np.float32), None)
    config = card.get_config(f"path={path},heads=4,channels=1,image=32,leave_out=head.weight+head.bias")
    assert config.model.channels == 1 and config.data.mean == (0.5,) and config.data.std == (0.5,)
    assert config.init_from.leave_out == ("head.weight", "head.bias")


@pytest.mark.parametrize(("there", "here"), [(4, 1), (4, 3), (2, 3), (6, 1), (3, 0), (3, -1)])
def test_what_has_no_rule_is_refused(there, here, make, params):
    model = make(channels=there)
    arrays = dict(targets.export(model.model, params(model), "timm").weights(np.float32))
    with pytest.raises(CheckpointError, match=f"images with {there} channels, and {here} are asked for"):
        from_state_dict(arrays, source="timm", num_heads=4, channels=here)


def test_statistics():
    assert adapt_statistics((0.1, 0.2, 0.6), 1) == (pytest.approx(0.3),)
    assert adapt_statistics((0.5,), 3) == (0.5, 0.5, 0.5)
    assert adapt_statistics((0.1, 0.2, 0.6), 4) == (0.1, 0.2, 0.6, 0.1)
    assert adapt_statistics((0.1, 0.2, 0.6), 3) == (0.1, 0.2, 0.6)
