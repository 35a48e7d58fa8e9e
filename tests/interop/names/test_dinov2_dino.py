"""DINOv2, DINO and iBOT checkpoints: their forward passes said again in torch, with noise in every tensor."""

import argparse
import re

import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from vit_registers.interop import from_state_dict, reading
from vit_registers.interop.hints import Hints
from vit_registers.interop.opened import describe_weights
from vit_registers.models.paths import leaves_of

torch = pytest.importorskip("torch")
F = torch.nn.functional

WIDTH, DEPTH, HEADS, PATCH, SIDE = 48, 2, 4, 4, 5
NATIVE = (SIDE * PATCH, SIDE * PATCH)
# As it was trained; smaller; not square; as many patches as it was trained with, but not square.
IMAGE_SIZES = [NATIVE, (12, 12), (28, 12), (4, 100)]


def shapes_of(*, registers=0, mlp="mlp", gammas=("ls1.gamma", "ls2.gamma"), mask=None):
    """The tensors of one network; `mask` is what the family calls the mask token."""
    d, hidden = WIDTH, 64
    shapes = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, 1 + SIDE * SIDE, d),
        "patch_embed.proj.weight": (d, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    shapes |= {"register_tokens": (1, registers, d)} if registers else {}
    shapes |= {mask: (1, d)} if mask else {}
    layers = {"attn.qkv": (3 * d, d), "attn.proj": (d, d)}
    swiglu = {"mlp.w12": (2 * hidden, d), "mlp.w3": (d, hidden)}
    layers |= swiglu if mlp == "swiglu" else {"mlp.fc1": (hidden, d), "mlp.fc2": (d, hidden)}
    for i in range(DEPTH):
        for name, shape in layers.items():
            shapes[f"blocks.{i}.{name}.weight"], shapes[f"blocks.{i}.{name}.bias"] = shape, shape[:1]
        shapes |= {f"blocks.{i}.norm{j}.{part}": (d,) for j in (1, 2) for part in ("weight", "bias")}
        shapes |= {f"blocks.{i}.{gamma}": (d,) for gamma in gammas}
    return shapes


def positions(table, rows, columns, resize):
    """The position table of cls and rows x columns patches, resized as `resize` ("offset" or "antialias")."""
    if rows * columns == SIDE * SIDE and rows == columns:
        return table
    grid = table[:, 1:].reshape(1, SIDE, SIDE, WIDTH).permute(0, 3, 1, 2)
    if resize == "offset":
        factors = ((rows + 0.1) / SIDE, (columns + 0.1) / SIDE)
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic")
    else:
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True)
    assert grid.shape[2:] == (rows, columns)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def reference(w, images, *, resize, masked=None):
    """All tokens after the final norm."""

    def mlp(x, name):
        if f"{name}.w12.weight" not in w:
            return w.linear(F.gelu(w.linear(x, f"{name}.fc1")), f"{name}.fc2")
        gate, value = w.linear(x, f"{name}.w12").chunk(2, dim=-1)
        return w.linear(F.silu(gate) * value, f"{name}.w3")

    def scaled(x, name, j):
        gammas = [w[n] for n in (f"{name}.ls{j}.gamma", f"{name}.gamma_{j}") if n in w]
        return x * gammas[0] if gammas else x

    x, grid = w.patches(images, "patch_embed.proj")
    if masked is not None:
        token = w["mask_token"] if "mask_token" in w else w["masked_embed"]
        x = torch.where(torch.from_numpy(masked)[..., None], token[None], x)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1)
    x = x + positions(w["pos_embed"], *grid, resize)
    if "register_tokens" in w:
        x = torch.cat([x[:, :1], w["register_tokens"].expand(len(x), -1, -1), x[:, 1:]], dim=1)
    for i in range(DEPTH):
        at = f"blocks.{i}"
        branch = w.attend(w.norm(x, f"{at}.norm1"), f"{at}.attn.qkv.{{}}", f"{at}.attn.proj.{{}}")
        x = x + scaled(branch, at, 1)
        x = x + scaled(mlp(w.norm(x, f"{at}.norm2"), f"{at}.mlp"), at, 2)
    return w.norm(x, "norm")


DINOV2 = {
    "plain": {"mask": "mask_token"},
    "registers": {"mask": "mask_token", "registers": 3},
    "plain swiglu": {"mask": "mask_token", "mlp": "swiglu"},
    "registers swiglu": {"mask": "mask_token", "mlp": "swiglu", "registers": 3},
}
DINO = {
    "dino": {"gammas": ()},
    "ibot teacher": {"gammas": ("gamma_1", "gamma_2")},
    "ibot": {"gammas": ("gamma_1", "gamma_2"), "mask": "masked_embed"},
}
ALL = {name: ("dinov2", settings) for name, settings in DINOV2.items()}
ALL |= {name: ("dino", settings) for name, settings in DINO.items()}


@pytest.fixture
def origin(torch_layers):
    """origin(state, images, resize=..., masked=None): all tokens."""
    return lambda state, images, **settings: reference(torch_layers(state, HEADS), images, **settings)


@pytest.fixture
def made(noise):
    """made(name, seed): (the source, the state, how it resizes positions)."""

    def made(name, seed=0):
        source, settings = ALL[name]
        return source, noise(shapes_of(**settings), seed), "antialias" if "registers" in name else "offset"

    return made


@parametrize_quick("name", ALL)
def test_tokens_are_those_of_the_origin_at_all_sizes(
    name, made, images, forward, tokens, origin, assert_close
):
    source, state, resize = made(name)
    model = from_state_dict(state, source=source, num_heads=HEADS)
    assert model.model.image_size == NATIVE
    for size in IMAGE_SIZES if name in ("plain", "registers", "dino") else IMAGE_SIZES[:1]:
        outputs = forward(model, images(size))
        expected = origin(state, images(size), resize=resize)
        assert_close(tokens(outputs), expected)
        assert outputs.logits is None
        np.testing.assert_array_equal(outputs.pooled, outputs.cls)


@pytest.mark.parametrize("name", ["plain", "registers", "ibot"])
def test_masked_patches_are_those_of_the_origin(name, made, images, forward, tokens, origin, assert_close):
    source, state, resize = made(name)
    model = from_state_dict(state, source=source, num_heads=HEADS)
    masked = np.random.default_rng(1).random((2, 21)) < 0.4
    outputs = forward(model, images((28, 12)), masked)
    assert_close(tokens(outputs), origin(state, images((28, 12)), resize=resize, masked=masked))


@parametrize_quick("name", ["plain", "registers", "dino"])
@pytest.mark.parametrize("size", [(12, 12), (28, 12)], ids=str)
def test_positions_resampled_at_load_are_those_of_the_origin(
    name, size, made, images, forward, tokens, origin, assert_close
):
    source, state, resize = made(name)
    model = from_state_dict(state, source=source, num_heads=HEADS, image_size=size)
    assert model.model.image_size == size
    assert_close(tokens(forward(model, images(size))), origin(state, images(size), resize=resize))


@pytest.mark.parametrize("name", ALL)
def test_round_trip_is_bitwise(name, made, load, dump, assert_same):
    source, state, _ = made(name)
    assert_same(dump(*load(state, source, num_heads=HEADS), source), state)


def chunked(state, per_chunk):
    """The names of training: block i of all blocks in chunk i // per_chunk."""
    return {
        re.sub(r"blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // per_chunk}.{m[1]}", name): array
        for name, array in state.items()
    }


@pytest.mark.parametrize("per_chunk", [1, 2])
def test_chunks_of_training_are_numbered_through(per_chunk, made, load, dump, assert_same):
    _, state, _ = made("registers")
    there = chunked(state, per_chunk)
    assert f"blocks.{1 // per_chunk}.1.norm1.weight" in there
    assert_same(dump(*load(there, "dinov2", num_heads=HEADS), "dinov2"), state)


def prefixed(prefix, state):
    return {prefix + name: torch.from_numpy(array) for name, array in state.items()}


def head(prefix, *layers, seed=7):
    """Some tensors of a self-supervision head."""
    rng = np.random.default_rng(seed)
    shapes = {"mlp.0.weight": (8, WIDTH), "mlp.0.bias": (8,)}
    for layer in layers:
        shapes |= {f"{layer}.weight_g": (9, 1), f"{layer}.weight_v": (9, 8)}
    return prefixed(prefix, {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()})


def open_saved(path, content, source):
    torch.save(content, path)
    return reading.open_path(path, source=source, hints=Hints(num_heads=HEADS))


def test_of_a_training_checkpoint_of_dinov2_the_teacher_is_taken(tmp_path, made, dump, assert_same):
    _, state, _ = made("registers")
    _, other, _ = made("registers", seed=1)
    heads = head("dino_head.", "last_layer") | head("ibot_head.", "last_layer")
    content = {
        "student": prefixed("backbone.", chunked(other, 1)) | heads,
        "teacher": prefixed("backbone.", chunked(state, 1)) | heads,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "iteration": 7,
    }
    opened = open_saved(tmp_path / "teacher_checkpoint.pth", content, "auto")
    assert opened.found.source == "dinov2"
    assert_same(dump(opened.model, reading.read_leaves(opened), "dinov2"), state)
    said = describe_weights(opened)
    assert f"a self-supervision head or loss ({len(heads)} tensors)" in said
    assert f"another copy of the network ({len(other) + len(heads)} tensors)" in said
    assert "the state of training (1 tensors)" in said
    for part in ("width 48, depth 2, 4 heads, mlp 64", "3 registers", "made for 20 x 20 px", "no head"):
        assert part in said


def test_the_teacher_is_taken_where_both_are_in_one_model(tmp_path, made, dump, assert_same):
    _, state, _ = made("plain")
    _, other, _ = made("plain", seed=1)
    content = {"model": prefixed("student.backbone.", other) | prefixed("teacher.backbone.", state)}
    opened = open_saved(tmp_path / "model_final.rank_0.pth", content, "dinov2")
    assert_same(dump(opened.model, reading.read_leaves(opened), "dinov2"), state)


@pytest.mark.parametrize("source", ["dino", "auto"])
def test_of_a_training_checkpoint_of_dino_the_teacher_is_taken(tmp_path, source, made, dump, assert_same):
    _, state, _ = made("dino")
    _, other, _ = made("dino", seed=1)
    content = {
        "student": prefixed("module.backbone.", other) | head("module.head.", "last_layer"),
        "teacher": prefixed("backbone.", state) | head("head.", "last_layer"),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", patch_size=4),
        "dino_loss": {"center": torch.zeros(1, 9)},
        "fp16_scaler": {"scale": 65536.0},
    }
    opened = open_saved(tmp_path / "checkpoint.pth", content, source)
    assert opened.found.source == "dino" and opened.model.position_resampling == "bicubic_offset"
    assert_same(dump(opened.model, reading.read_leaves(opened), "dino"), state)
    assert "a self-supervision head or loss (5 tensors)" in describe_weights(opened)


@pytest.mark.parametrize("prefix", ["module.backbone.", "backbone.", "module.", ""])
def test_prefixes_of_dino_are_left_out(prefix, made, load, dump, assert_same):
    _, state, _ = made("dino")
    root = prefix.removesuffix("backbone.")
    there = prefixed(prefix, state) | head(f"{root}head.", "last_layer")
    assert_same(dump(*load(there, "dino", num_heads=HEADS), "dino"), state)


@pytest.mark.parametrize(("name", "source"), [("ibot", "dino"), ("ibot", "auto"), ("ibot teacher", "dino")])
def test_ibot_lies_in_a_state_dict_with_two_last_layers(tmp_path, name, source, made, dump, assert_same):
    _, state, _ = made(name)
    content = {"state_dict": prefixed("", state) | head("head.", "last_layer", "last_layer2")}
    opened = open_saved(tmp_path / "checkpoint_teacher.pth", content, source)
    assert opened.found.source == "dino"
    assert opened.model.layer_scale_init is not None
    assert opened.model.use_mask_token == (name == "ibot")
    assert_same(dump(opened.model, reading.read_leaves(opened), "dino"), state)


def test_a_teacher_with_layer_scale_is_not_taken_for_deit(made, tmp_path):
    _, state, _ = made("ibot teacher")
    content = {"teacher": prefixed("backbone.", state), "student": prefixed("module.backbone.", state)}
    assert open_saved(tmp_path / "checkpoint.pth", content, "auto").found.source == "dino"


def test_a_released_file_is_flat(tmp_path, made, dump, assert_same):
    _, state, _ = made("plain")
    opened = open_saved(tmp_path / "dinov2_vits14_pretrain.pth", prefixed("", state), "auto")
    assert opened.found.source == "dinov2" and opened.found.left_out == {}
    assert_same(dump(opened.model, reading.read_leaves(opened), "dinov2"), state)
    assert all(jnp.isfinite(leaf).all() for leaf in leaves_of(reading.read_leaves(opened)).values())
