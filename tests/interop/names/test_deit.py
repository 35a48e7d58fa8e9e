"""DeiT and DeiT-III checkpoints: their forward pass said again in torch, with noise in every tensor."""

import argparse

import pytest

from tests.fixtures.quick import parametrize_quick
from vit_registers.errors import CheckpointError
from vit_registers.interop import from_state_dict, reading
from vit_registers.interop.hints import Hints
from vit_registers.interop.opened import describe_weights

torch = pytest.importorskip("torch")
F = torch.nn.functional

WIDTH, DEPTH, HEADS, PATCH, SIDE, HIDDEN, OUT = 48, 2, 4, 4, 4, 80, 7
NATIVE = (SIDE * PATCH, SIDE * PATCH)
SIZES = [NATIVE, (24, 24), (12, 28)]


def layer(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name):
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def shapes_of(*, scale=False, registers=0, position_rows=0, is_distilled=False, has_heads=True):
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, position_rows + SIDE**2, WIDTH)}
    shapes |= {"reg_tokens": (1, registers, WIDTH)} if registers else {}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,)}
    for i in range(DEPTH):
        at = f"blocks.{i}."
        shapes |= norm(f"{at}norm1") | norm(f"{at}norm2")
        shapes |= layer(f"{at}attn.qkv", 3 * WIDTH, WIDTH) | layer(f"{at}attn.proj", WIDTH, WIDTH)
        shapes |= layer(f"{at}mlp.fc1", HIDDEN, WIDTH) | layer(f"{at}mlp.fc2", WIDTH, HIDDEN)
        shapes |= {f"{at}gamma_1": (WIDTH,), f"{at}gamma_2": (WIDTH,)} if scale else {}
    shapes |= norm("norm") | (layer("head", OUT, WIDTH) if has_heads else {})
    if is_distilled:
        shapes |= {"dist_token": (1, 1, WIDTH)} | (layer("head_dist", OUT, WIDTH) if has_heads else {})
    return shapes


def resized(table, rows, grid):
    """A table [1, rows + SIDE * SIDE, D] for another grid, as DeiT's fine-tuning does it; the rows stay."""
    cells = table[:, rows:].reshape(1, SIDE, SIDE, WIDTH).permute(0, 3, 1, 2)
    if grid != (SIDE, SIDE):
        cells = F.interpolate(cells, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :rows], cells.flatten(2).transpose(1, 2)], dim=1)


def reference(w, images):
    """(logits or None, all tokens after the norm)."""
    x, grid = w.patches(images, "patch_embed.proj")
    first = [w[name] for name in ("cls_token", "dist_token") if name in w]
    rows = w["pos_embed"].shape[1] - SIDE**2
    table = resized(w["pos_embed"], rows, grid)
    if rows == 0:  # DeiT-III: on patches only; registers come after cls
        x = x + table
        first += [w["reg_tokens"]] if "reg_tokens" in w else []
    x = torch.cat([token.expand(len(x), -1, -1) for token in first] + [x], dim=1)
    x = x + table if rows else x
    for i in range(DEPTH):
        at = f"blocks.{i}."
        branch = w.attend(w.norm(x, f"{at}norm1"), f"{at}attn.qkv.{{}}", f"{at}attn.proj.{{}}")
        x = x + w.get(f"{at}gamma_1", 1.0) * branch
        hidden = F.gelu(w.linear(w.norm(x, f"{at}norm2"), f"{at}mlp.fc1"))
        x = x + w.get(f"{at}gamma_2", 1.0) * w.linear(hidden, f"{at}mlp.fc2")
    x = w.norm(x, "norm")
    if "head.weight" not in w:
        return None, x
    logits = w.linear(x[:, 0], "head")
    if "head_dist.weight" in w:
        logits = (logits + w.linear(x[:, 1], "head_dist")) / 2
    return logits, x


DEITS = {
    "deit3": {"scale": True},
    "deit3 registers": {"scale": True, "registers": 3},
    "deit3 without classifier": {"scale": True, "has_heads": False},
    "deit": {"position_rows": 1},
    "distilled": {"position_rows": 2, "is_distilled": True},
    "distilled without classifier": {"position_rows": 2, "is_distilled": True, "has_heads": False},
}


@parametrize_quick(
    ("name", "size"), [(n, size) for n in DEITS for size in SIZES[: 1 if "without" in n else 3]]
)
def test_deit_is_the_origin(name, size, noise, images, forward, tokens, torch_layers, assert_close):
    state = noise(shapes_of(**DEITS[name]))
    logits, all_tokens = reference(torch_layers(state, HEADS), images(size))
    finetuned = from_state_dict(state, source="deit", num_heads=HEADS, image_size=size)
    outputs = forward(finetuned, images(size))
    assert_close(tokens(outputs), all_tokens)
    if logits is None:
        assert outputs.logits is None
    else:
        assert_close(outputs.logits, logits)
    if size != NATIVE:  # resampled in the call instead
        model = from_state_dict(state, source="deit", num_heads=HEADS)
        assert model.model.image_size == NATIVE
        assert_close(forward(model, images(size)).pooled, outputs.pooled)


@pytest.mark.parametrize("name", DEITS)
def test_deit_round_trip_is_bitwise(name, noise, load, dump, assert_same):
    state = noise(shapes_of(**DEITS[name]))
    back = dump(*load(state, "deit", num_heads=HEADS), "deit")
    if name == "distilled":  # one answer: the mean of two
        mean = (state["head.bias"] + state["head_dist.bias"]) / 2
        state |= {"head.bias": mean, "head_dist.bias": mean}
    assert_same(back, state)


@pytest.mark.parametrize("name", ["deit3", "deit3 registers", "distilled"])
def test_deit_checkpoints_hold_arguments_and_a_moving_average(tmp_path, name, noise, dump, assert_same):
    state, average = (noise(shapes_of(**DEITS[name]), seed) for seed in (0, 1))
    if name == "distilled":
        state["head_dist.bias"] = state["head.bias"]
    content = {
        "model": {n: torch.from_numpy(a) for n, a in state.items()},
        "model_ema": {n: torch.from_numpy(a) for n, a in average.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3), "step": 4}}, "param_groups": [{"lr": 0.1}]},
        "lr_scheduler": {"base_values": [0.1]},
        "epoch": 3,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(model="deit_small_patch16_LS", lr=0.004),
    }
    torch.save(content, tmp_path / "deit.pth")
    opened = reading.open_path(tmp_path / "deit.pth", source="auto", hints=Hints(num_heads=HEADS))
    assert opened.found.source == "deit"
    assert_same(dump(opened.model, reading.read_leaves(opened), "deit"), state)
    said = describe_weights(opened)
    assert f"another copy of the network ({len(average)} tensors), the state of training (1 tensors)" in said


def test_names_of_another_source_are_listed(noise):
    with pytest.raises(
        CheckpointError, match="source='clip', but the tensors have the names of timm or dinov2"
    ):
        from_state_dict(noise(shapes_of(scale=True)), source="clip", num_heads=HEADS)
    with pytest.raises(CheckpointError) as error:
        from_state_dict(noise(shapes_of(scale=True, position_rows=1)), source="dinov2", num_heads=HEADS)
    names = [f"blocks.{i}.gamma_{j}" for i in range(DEPTH) for j in (1, 2)] + ["head.weight", "head.bias"]
    assert "6 tensors do not fit" in str(error.value)
    assert all(f"'{name}' " in str(error.value) for name in names)
