"""Checkpoints as training leaves them: wrappers, copies, averages, decoders, heads, and what is left out."""

import argparse
import re

import numpy as np
import pytest

import vit_registers
from vit_registers import fine_tuning
from vit_registers.config import InitFrom
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.interop import from_state_dict, reading
from vit_registers.interop.export import targets
from vit_registers.interop.hints import Hints
from vit_registers.interop.opened import describe_weights
from vit_registers.models.paths import leaves_of

torch = pytest.importorskip("torch")


@pytest.fixture
def state(make, params):
    """The tensors of a tiny model under timm's names."""
    model = make()
    return dict(targets.export(model.model, params(model), "timm").weights(np.float32))


@pytest.fixture
def bare(state):
    """The same without a head."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


def _prefixed(prefix, state):
    return {prefix + name: torch.from_numpy(tensor) for name, tensor in state.items()}


def _other(state, shift):
    """Another copy: each value shifted."""
    return {name: tensor + np.float32(shift) for name, tensor in state.items()}


@pytest.fixture
def opened(tmp_path):
    """opened(content, **hints): the OpenedWeights of what torch saved."""

    def opened(content, source="timm", **hints):
        torch.save(content, tmp_path / "checkpoint.pth")
        return reading.open_path(
            tmp_path / "checkpoint.pth", source=source, hints=Hints(num_heads=4, **hints)
        )

    return opened


@pytest.fixture
def assert_read(assert_same, load):
    """assert_read(opened, state): the parameters are those of the bare state, bit for bit."""

    def assert_read(opened, state):
        expected = leaves_of(load(state, "timm", num_heads=4)[1])
        assert_same(dict(leaves_of(reading.read_leaves(opened))), expected)

    return assert_read


def _amid(wrapper):
    """Puts a wrapper around each block and each MLP."""
    return lambda name: re.sub(r"(blocks\.\d+\.|mlp\.)", rf"\1{wrapper}.", f"{wrapper}.{name}")


PREFIXES = ["module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "backbone."]
PREFIXES += ["encoder.", "visual.", "model.module._orig_mod.", "state_dict.model.", "module.backbone."]
PREFIXES += ["_orig_mod.module.", "state_dict.module._orig_mod.backbone.", "visual.trunk.", "network."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_stands_before_the_names_is_left_away(prefix, state, opened, assert_read):
    assert_read(opened(_prefixed(prefix, state)), state)


@pytest.mark.parametrize(
    "wrapper", ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]
)
def test_wrappers_within_names(wrapper, state, opened, assert_read):
    renamed = {_amid(wrapper)(name): tensor for name, tensor in state.items()}
    assert sum(f".{wrapper}." in name for name in renamed) == len(renamed) - 8
    assert_read(opened(_prefixed("", renamed)), state)
    del renamed[_amid(wrapper)("blocks.1.mlp.fc2.bias")]
    with pytest.raises(CheckpointError, match=r"fc2\.bias' \(32,\) is missing"):
        opened(_prefixed("", renamed))


def test_names_that_differ_in_wrappers_only(state, opened, assert_read):
    content = _prefixed("", state) | _prefixed("_orig_mod.", {"norm.weight": state["norm.weight"] + 1})
    with pytest.raises(CheckpointError, match=r"and '_orig_mod\.norm\.weight' differ only in"):
        opened(content)
    assert_read(opened(content, leave_out=("_orig_mod.*",)), state)


def _timm(state, other):
    args = argparse.Namespace(model="vit", lr=1e-3, opt_betas=None, mean=(0.5, 0.5))
    content = {"epoch": 7, "arch": "vit", "version": 2, "args": args, "metric": np.float64(81.5)}
    content |= {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}}
    return content | {"state_dict": _prefixed("", state), "state_dict_ema": _prefixed("module.", other)}


def _deit(state, other):
    content = {"model": _prefixed("", state), "model_ema": _prefixed("", other), "scaler": {"scale": 1.0}}
    return content | {"epoch": np.int64(3), "args": argparse.Namespace(device="cuda"), "max": np.float32(1)}


def _dino(state, other):
    student = _prefixed("module.backbone.", state) | {"module.head.mlp.0.weight": torch.ones(4, 32)}
    return {"student": student, "teacher": _prefixed("backbone.", other), "epoch": 3}


# The content, what names the copies, and whether the average is what is read where nothing is asked for.
COPIES = {
    "timm": (_timm, "state_dict", "state_dict_ema", False),
    "deit": (_deit, "model", "model_ema", False),
    "dino": (_dino, "student", "teacher", True),
    "lightning": (
        lambda a, b: {"state_dict": _prefixed("model.", a) | _prefixed("ema_model.", b)},
        "state_dict.model",
        "state_dict.ema_model",
        False,
    ),
    "one in the other": (
        lambda a, b: {"model": _prefixed("student.", a) | _prefixed("teacher.", b)},
        "model.student",
        "model.teacher",
        True,
    ),
    "EMA": (
        lambda a, b: {"model": _prefixed("", a), "EMA": _prefixed("module.", b)},
        "model",
        "EMA",
        False,
    ),
    "params_ema": (
        lambda a, b: {"params": _prefixed("", a), "params_ema": _prefixed("", b)},
        "params",
        "params_ema",
        False,
    ),
    "ema_pytorch": (
        lambda a, b: {"ema": _prefixed("online_model.", a) | _prefixed("ema_model.", b)},
        "ema.online_model",
        "ema.ema_model",
        False,
    ),
    "buffers of the average": (
        lambda a, b: {
            "state_dict": _prefixed("model.", a)
            | _prefixed("model_ema.", b)
            | {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3)}
        },
        "state_dict.model",
        "state_dict.model_ema",
        False,
    ),
    "bare and average": (lambda a, b: _prefixed("", a) | _prefixed("ema.", b), None, "ema", False),
    "I-JEPA": (
        lambda a, b: {"encoder": _prefixed("module.", a), "target_encoder": _prefixed("module.", b)},
        "encoder",
        "target_encoder",
        True,
    ),
}


@pytest.mark.parametrize("asked", [None, "params", "ema"])
@pytest.mark.parametrize("kind", COPIES)
def test_which_copy_is_read(kind, asked, bare, opened, assert_read):
    content, trained, averaged, is_averaged = COPIES[kind]
    other = _other(bare, 0.5)
    there = opened(content(bare, other), params=asked)
    is_averaged = is_averaged if asked is None else asked == "ema"
    assert_read(there, other if is_averaged else bare)
    trained = "names without a prefix" if trained is None else f"'{trained}'"
    said = (f"'{averaged}' is read", f"not {trained} (params='params')")
    said = said if is_averaged else (f"{trained} is read", f"not '{averaged}' (params='ema')")
    for part in (*said, "another copy of the network"):
        assert part in describe_weights(there)


def test_names_of_pytorchs_own_tutorial_and_of_lightning(bare, opened, assert_read):
    moments = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(3.0)}}, "param_groups": [{}]}
    content = {"model_state_dict": _prefixed("", bare), "optimizer_state_dict": moments, "epoch": 3}
    content |= {"scheduler_state_dict": {"last": torch.ones(1)}, "loss": torch.tensor(0.5)}
    content |= {"callbacks": {"best": {"score": torch.tensor(0.9)}}, "global_step": torch.tensor(7)}
    content |= {"lr": torch.tensor(0.1)}
    there = opened(content)
    assert_read(there, bare)
    assert "the state of training (5 tensors), numbers beside the network (2 tensors)" in describe_weights(
        there
    )
    both = content | {"model_ema_state_dict": _prefixed("module.", _other(bare, 1))}
    assert_read(opened(both, params="ema"), _other(bare, 1))
    assert_read(opened(both), bare)


def test_load_convert_and_training_take_the_average(state, run_here, tmp_path, assert_same, params):
    path, run = tmp_path / "checkpoint.pth", tmp_path / "run"
    torch.save(_timm(state, _other(state, 0.5)), path)
    expected = params(from_state_dict(_other(state, 0.5), source="timm", num_heads=4))
    loaded = vit_registers.load(path, params="ema", source="timm", num_heads=4)
    args = (f"--input={path}", f"--output={run}", "--params=ema", "--source=timm", "--num_heads=4")
    code, out, err = run_here("convert", *args)
    assert code == 0 and "'state_dict_ema' is read, not 'state_dict' (params='params')" in out, err
    start = InitFrom(path=str(path), params="ema", source="timm", num_heads=4, keep_head=True)
    taken = fine_tuning.start_leaves(start, loaded.model)
    expected = dict(leaves_of(expected))
    for leaves in (params(loaded), params(vit_registers.load(run))):
        assert_same(dict(leaves_of(leaves)), expected)
    assert_same(taken, {leaf: np.asarray(value) for leaf, value in expected.items()})
    flat = {f"model_ema.{n}": t for n, t in _other(state, 0.5).items()} | {
        f"model.{n}": t for n, t in state.items()
    }
    model = from_state_dict(flat, source="timm", num_heads=4, params="ema")
    assert_same(dict(leaves_of(params(model))), expected)


def test_a_copy_that_is_not_there(state, opened, tmp_path):
    with pytest.raises(CheckpointError, match=r"no averaged parameters, .* it holds 'model'"):
        opened({"model": _prefixed("", state)}, params="ema")
    with pytest.raises(CheckpointError, match="averaged parameters only, in 'state_dict_ema'"):
        opened({"state_dict_ema": _prefixed("", state)}, params="params")
    with pytest.raises(ConfigError, match="params='average' is unknown"):
        vit_registers.load(tmp_path / "checkpoint.pth", params="average")


def test_several_networks_are_told_apart_by_leave_out(state, opened, assert_read):
    content = {"first": _prefixed("module.", state), "second": _prefixed("module.", _other(state, 1))}
    with pytest.raises(CheckpointError) as caught:
        opened(content)
    assert "several networks, 'first', 'second'" in str(caught.value)
    pattern = re.search(r"leave_out=\['(.*)'\]", str(caught.value))[1]
    assert pattern == "second.module.*"
    assert_read(opened(content, leave_out=(pattern,)), state)
    assert_read(opened(content, leave_out=("first.*",)), _other(state, 1))


def _decoder(prefix=""):
    shapes = {"mask_token": (1, 1, 16), "decoder_pos_embed": (1, 17, 16), "decoder_embed.weight": (16, 32)}
    shapes |= {
        "decoder_blocks.0.norm1.weight": (16,),
        "decoder_norm.bias": (16,),
        "decoder_pred.weight": (9, 16),
    }
    return {prefix + name: torch.ones(shape) for name, shape in shapes.items()}


def _moco(state, head):
    """MoCo v3's state_dict: both encoders have an MLP of three layers as head; a predictor."""
    content = {}
    for name in ("base_encoder", "momentum_encoder"):
        content |= _prefixed(f"module.{name}.", state if name == "base_encoder" else _other(state, 1))
        content |= {f"module.{name}.{key}": value for key, value in head.items()}
    predictor = {f"module.predictor.{key.removeprefix('head.')}": value for key, value in head.items()}
    return {"epoch": 3, "arch": "vit_small", "state_dict": content | predictor}


def _mlp_head():
    norm = torch.nn.BatchNorm1d
    layers = torch.nn.Sequential(torch.nn.Linear(32, 8, bias=False), norm(8), torch.nn.Linear(8, 4), norm(4))
    return {f"head.{name}": tensor for name, tensor in layers.state_dict().items()}


@pytest.mark.parametrize("kind", ["mae", "mae wrapped", "mae under a backbone", "moco"])
def test_what_self_supervision_adds_is_left_out(kind, bare, opened, assert_read):
    content = {
        "mae": lambda: {"model": _prefixed("", bare) | _decoder()},
        "mae wrapped": lambda: _prefixed("module.", bare) | _decoder("module."),
        "mae under a backbone": lambda: _prefixed("backbone.", bare) | _decoder(),
        "moco": lambda: _moco(bare, _mlp_head()),
    }[kind]()
    there = opened(content)
    assert_read(there, bare)
    count = 3 * len(_mlp_head()) - len(_mlp_head()) if kind == "moco" else len(_decoder())
    what = "a self-supervision head" if kind == "moco" else "the decoder of a masked autoencoder"
    assert f"{what} ({count} tensors)" in describe_weights(there)


def test_the_average_of_moco(bare, opened, assert_read):
    assert_read(opened(_moco(bare, _mlp_head()), params="ema"), _other(bare, 1))


@pytest.mark.slow
def test_the_masked_autoencoder_of_transformers(hf_model, images, forward, assert_close, tmp_path):
    """Its encoder is read. Nothing is masked here, and patches are in any order."""
    settings = {"mask_ratio": 0.0, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
    theirs = hf_model("ViTMAEForPreTraining", decoder_num_attention_heads=2, **settings)
    theirs.save_pretrained(tmp_path / "mae")
    for with_config in (True, False):
        if not with_config:
            (tmp_path / "mae" / "config.json").unlink()
        model = vit_registers.load(tmp_path / "mae", num_heads=4)
        with torch.no_grad():
            x = torch.from_numpy(images()).permute(0, 3, 1, 2)
            expected = theirs.vit(x).last_hidden_state[:, 0]
        assert_close(forward(model, images()).cls, expected)


HEADS = {
    "fc": ["fc.weight", "fc.bias"],
    "head.fc": ["head.fc.weight", "head.fc.bias"],
    "classifier": ["classifier.weight", "classifier.bias"],
    "heads.head": ["heads.head.weight", "heads.head.bias"],
    "MLP": list(_mlp_head()),
    "linear probe of MAE": ["head.0.running_mean", "head.0.running_var", "head.1.weight", "head.1.bias"],
    "predictor": ["predictor.weight", "predictor.bias"],
}


@pytest.mark.parametrize("prefix", ["", "model.module."])
@pytest.mark.parametrize("kind", HEADS)
def test_heads_of_other_names_are_refused_or_left_out(kind, prefix, bare, opened, assert_read):
    extra = {f"{prefix}{name}": torch.ones(5, 32) for name in HEADS[kind]}
    content = _prefixed(prefix, bare) | extra
    with pytest.raises(CheckpointError) as caught:
        opened(content)
    line = str(caught.value)
    assert all(f"'{name}' (5, 32) has no place" in line for name in extra) and "leave_out=['" in line
    assert re.search(r"leave_out=\['(.*)'\]", line)[1] == re.sub(r"[^.]+$", "*", next(iter(extra)))
    pattern = prefix + HEADS[kind][0].split(".")[0] + ".*"
    there = opened(content, leave_out=(pattern,))
    assert_read(there, bare)
    assert there.model.num_classes == 0
    assert f"leave_out='{pattern}' ({len(extra)} tensors)" in describe_weights(there)
    assert_read(opened(content, leave_out=(pattern.removeprefix(prefix),)), bare)


# Patterns, and what they take that the model needs; None: all of it can be left out.
LEFT = {
    ("head.*",): None,
    ("head.weight", "head.bias"): None,
    ("h*.*", "head.weight"): None,
    ("head.weight",): "'head.bias' (5,) has no place",
    ("head.bias",): "'head.bias' (5,) is missing",
    ("norm.*",): "leave_out='norm.*' takes 'norm.weight' and 1 more, which the model needs",
    ("cls_token",): "leave_out='cls_token' takes 'cls_token', which the model needs",
    ("pos_embed",): "takes 'pos_embed', which the model needs",
    ("*patch_embed*",): "takes 'patch_embed.proj.weight', which the model needs",
    ("blocks.1.*",): "takes 'blocks.1.norm1.weight' and 11 more, which the model needs",
    ("head.*", "blocks.*.mlp.fc2.bias"): "takes 'blocks.0.mlp.fc2.bias' and 1 more",
    ("*",): "which the model needs",
    ("hed.*",): "leave_out='hed.*' matches no tensor of",
    ("head.*", "fc.*"): "leave_out='fc.*' matches no tensor of",
    ("HEAD.*",): "leave_out='HEAD.*' matches no tensor of",
}


@pytest.mark.parametrize("patterns", LEFT, ids=" ".join)
@pytest.mark.parametrize("way", ["opened", "from_state_dict"])
def test_what_can_be_left_out(way, patterns, state, opened, capfd):
    message = LEFT[patterns]
    if way == "opened":
        act = lambda: opened(_prefixed("", state), leave_out=patterns).model  # noqa: E731
    else:
        act = lambda: from_state_dict(state, source="timm", num_heads=4, leave_out=patterns).model  # noqa: E731
    if message is None:
        assert act().num_classes == 0
        assert way == "opened" or f"left out: leave_out='{patterns[0]}'" in capfd.readouterr().out
    else:
        with pytest.raises(CheckpointError) as caught:
            act()
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_registers_are_not_left_out_and_mask_tokens_are(make, params):
    model = make(num_registers=3, use_mask_token=True, num_classes=0, layer_scale_init=1e-5)
    arrays = dict(targets.export(model.model, params(model), "dinov2").weights(np.float32))
    read = lambda pattern: from_state_dict(arrays, source="dinov2", num_heads=4, leave_out=pattern)  # noqa: E731
    with pytest.raises(CheckpointError, match="takes 'register_tokens', which the model needs"):
        read("register_tokens")
    assert not read("mask_token").model.use_mask_token


def test_what_is_left_out_need_be_no_array(state, params, assert_same):
    odd = state | {"args": {"lr": 1}, "epoch": 3, "arch": "vit"}
    with pytest.raises(CheckpointError, match="'args' is no array"):
        from_state_dict(odd, source="timm", num_heads=4)
    model = from_state_dict(odd, source="timm", num_heads=4, leave_out=["args", "epoch", "arch"])
    expected = from_state_dict(state, source="timm", num_heads=4)
    assert_same(*(dict(leaves_of(params(m))) for m in (model, expected)))
    with pytest.raises(ConfigError, match="must be patterns of names"):
        from_state_dict(state, source="timm", leave_out=[3])


def test_leaving_out_a_head_does_not_change_whose_weights_they_are(state, opened):
    """A headless .pth without LayerScale is taken for DINO's."""
    assert opened(_prefixed("", state), source="auto", leave_out=("head.*",)).found.source == "timm"


def test_convert_leaves_out(state, run_here, tmp_path):
    torch.save(_prefixed("", state | {"fc.weight": np.ones((3, 32), np.float32)}), tmp_path / "a.pth")
    args = (f"--input={tmp_path}/a.pth", f"--output={tmp_path}/run", "--num_heads=4", "--leave_out=fc.*")
    code, out, err = run_here("convert", *args, "--leave_out=head.*")
    assert code == 0, err
    assert "leave_out='fc.*' (1 tensors)" in out and "leave_out='head.*' (2 tensors)" in out
    assert vit_registers.load(tmp_path / "run").model.num_classes == 0
    again = (f"--input={tmp_path}/run", f"--output={tmp_path}/again", "--leave_out=head.*")
    code, _, err = run_here("convert", *again)
    assert code == 2 and "is a run folder, whose config has all settings" in err
    for settings in ({"leave_out": ("head.*",)}, {"num_heads": 4}):
        with pytest.raises(ConfigError, match="is a run folder"):
            fine_tuning.start_leaves(InitFrom(path=f"{tmp_path}/run", **settings), None)
