"""The image towers of CLIP, OpenAI's and OpenCLIP's, said again in torch, with noise in every tensor."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.fixtures.quick import parametrize_quick
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.interop import from_state_dict, reading
from vit_registers.interop.export.targets import export
from vit_registers.interop.hints import Hints
from vit_registers.interop.opened import describe_weights

torch = pytest.importorskip("torch")
F = torch.nn.functional

WIDTH, DEPTH, HEADS, PATCH, SIDE, HIDDEN, OUT = 48, 2, 4, 4, 4, 80, 7
NATIVE = (SIDE * PATCH, SIDE * PATCH)
SIZES = [NATIVE, (24, 24), (12, 28)]


def both(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def shapes_of(*, scale=False, has_projection=True, has_norm_pre=True):
    shapes = {"conv1.weight": (WIDTH, 3, PATCH, PATCH), "class_embedding": (WIDTH,)}
    shapes |= {"positional_embedding": (1 + SIDE**2, WIDTH)} | both("ln_post", WIDTH)
    shapes |= both("ln_pre", WIDTH) if has_norm_pre else {}
    for i in range(DEPTH):
        at = f"transformer.resblocks.{i}."
        shapes |= both(f"{at}ln_1", WIDTH) | both(f"{at}ln_2", WIDTH)
        shapes |= {f"{at}attn.in_proj_weight": (3 * WIDTH, WIDTH), f"{at}attn.in_proj_bias": (3 * WIDTH,)}
        shapes |= both(f"{at}attn.out_proj", WIDTH, WIDTH)
        shapes |= both(f"{at}mlp.c_fc", HIDDEN, WIDTH) | both(f"{at}mlp.c_proj", WIDTH, HIDDEN)
        shapes |= {f"{at}ls_1.gamma": (WIDTH,), f"{at}ls_2.gamma": (WIDTH,)} if scale else {}
    return shapes | ({"proj": (WIDTH, OUT)} if has_projection else {})


def reference(w, images, *, is_quick=False, approximate="none", pool="tok"):
    """(the embedding, or what `proj` would read where there is none; all tokens before ln_post)."""
    x, grid = w.patches(images, "conv1")
    x = torch.cat([w["class_embedding"].expand(len(x), 1, -1), x], dim=1)
    table = w["positional_embedding"]
    if grid != (SIDE, SIDE):  # OpenCLIP's way, when it loads
        cells = table[1:].reshape(1, SIDE, SIDE, WIDTH).permute(0, 3, 1, 2)
        cells = F.interpolate(cells, size=grid, mode="bicubic", antialias=True, align_corners=False)
        table = torch.cat([table[:1], cells.flatten(2)[0].T])
    x = x + table
    x = w.norm(x, "ln_pre") if "ln_pre.weight" in w else x
    for i in range(DEPTH):
        at = f"transformer.resblocks.{i}."
        branch = w.attend(w.norm(x, f"{at}ln_1"), f"{at}attn.in_proj_{{}}", f"{at}attn.out_proj.{{}}")
        x = x + w.get(f"{at}ls_1.gamma", 1.0) * branch
        hidden = w.linear(w.norm(x, f"{at}ln_2"), f"{at}mlp.c_fc")
        quick, exact = hidden * torch.sigmoid(1.702 * hidden), F.gelu(hidden, approximate=approximate)
        hidden = quick if is_quick else exact
        x = x + w.get(f"{at}ls_2.gamma", 1.0) * w.linear(hidden, f"{at}mlp.c_proj")
    pooled = {
        "tok": lambda: w.norm(x[:, 0], "ln_post"),
        "avg": lambda: w.norm(x, "ln_post")[:, 1:].mean(dim=1),
        "avg, then norm": lambda: w.norm(x[:, 1:].mean(dim=1), "ln_post"),
    }[pool]()
    return pooled @ w["proj"] if "proj" in w else pooled, x


def with_text(visual, prefix="", *, is_openai):
    """A whole model: the image tower and some of a text tower, whose names are alike."""
    rng = np.random.default_rng(3)
    text = {"positional_embedding": (5, 8), "token_embedding.weight": (11, 8), "ln_final.weight": (8,)}
    text |= {"text_projection": (8, OUT), "logit_scale": ()}
    text |= {"transformer.resblocks.0.attn.in_proj_weight": (24, 8)}
    text |= {name: () for name in ("input_resolution", "context_length", "vocab_size") if is_openai}
    there = {f"visual.{name}": array for name, array in visual.items()}
    there |= {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in text.items()}
    return {prefix + name: array for name, array in there.items()}, len(text)


CLIPS = {
    "openai": ("clip", True, {}),
    "openai without projection": ("clip", True, {"has_projection": False}),
    "open_clip": ("open_clip", False, {}),
    "open_clip scales": ("open_clip", False, {"scale": True}),
    "open_clip without ln_pre": ("open_clip", False, {"has_norm_pre": False}),
}


@pytest.fixture
def clip(torch_layers):
    """clip(state, images, is_quick=...): the embedding and all tokens."""
    return lambda state, images, **settings: reference(torch_layers(state, HEADS, 1e-5), images, **settings)


@parametrize_quick(("name", "size"), [(n, size) for n in CLIPS for size in SIZES[: 1 if CLIPS[n][2] else 3]])
def test_clip_is_the_origin(name, size, noise, images, forward, tokens, clip, assert_close):
    source, is_quick, settings = CLIPS[name]
    state = noise(shapes_of(**settings))
    embedding, all_tokens = clip(state, images(size), is_quick=is_quick)
    model = from_state_dict(state, source=source, num_heads=HEADS, image_size=size)
    outputs = forward(model, images(size))
    assert_close(tokens(outputs), all_tokens, 3e-5)  # before the norm, where they are around 10
    assert_close(outputs.logits if "proj" in state else outputs.pooled, embedding)
    assert (outputs.logits is None) == ("proj" not in state)


@pytest.mark.parametrize("hidden_act", ["gelu", "quick_gelu"])
def test_the_gelu_of_clip_can_be_said(hidden_act, noise, images, forward, clip, assert_close):
    state = noise(shapes_of())
    for source in ("clip", "open_clip"):
        model = from_state_dict(state, source=source, num_heads=HEADS, hidden_act=hidden_act)
        expected, _ = clip(state, images(NATIVE), is_quick=hidden_act == "quick_gelu")
        assert_close(forward(model, images(NATIVE)).logits, expected)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", CLIPS)
def test_clip_round_trip_is_bitwise_and_leaves_the_text_tower_out(
    name, prefix, noise, load, dump, assert_same
):
    source, _, settings = CLIPS[name]
    visual = noise(shapes_of(**settings))
    expected = {f"visual.{n}": array for n, array in visual.items()}
    assert_same(dump(*load(visual, source, num_heads=HEADS), source), expected)
    whole, _ = with_text(visual, prefix, is_openai=source == "clip")
    assert_same(dump(*load(whole, source, num_heads=HEADS), source), expected)


def test_openai_files_are_recognised_and_are_half_precision(
    tmp_path, noise, images, forward, clip, assert_close
):
    visual = {name: array.astype(np.float16) for name, array in noise(shapes_of()).items()}
    whole, num_text = with_text(visual, is_openai=True)
    torch.save({name: torch.from_numpy(array) for name, array in whole.items()}, tmp_path / "clip.pt")
    opened = reading.open_path(tmp_path / "clip.pt", source="auto", hints=Hints(num_heads=HEADS))
    assert opened.found.source == "clip" and opened.model.activation == "quick_gelu"
    assert f"the text tower ({num_text} tensors)" in describe_weights(opened)
    expected, _ = clip(visual, images(NATIVE), is_quick=True)
    assert_close(forward(reading.load_opened(opened), images(NATIVE)).logits, expected)


def test_half_precision_goes_out_as_it_came(noise, load, assert_same):
    visual = {name: array.astype(np.float16) for name, array in noise(shapes_of()).items()}
    back = export(*load(visual, "clip", num_heads=HEADS), "clip").weights(np.float16)
    assert_same(back, {f"visual.{name}": array for name, array in visual.items()})


@pytest.mark.parametrize("is_whole", [True, False])
def test_clip_whose_gelu_is_unknown_asks_for_its_source(is_whole, noise):
    state = noise(shapes_of())
    state = with_text(state, is_openai=False)[0] if is_whole else state
    with pytest.raises(CheckpointError, match=r"GELU.* give source='clip' .*or source='open_clip'"):
        from_state_dict(state, source="auto", num_heads=HEADS)


@pytest.mark.parametrize("quick", [{}, {"quick_gelu": False}, {"quick_gelu": True}], ids=str)
@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_the_config_of_open_clip_tells_heads_and_gelu(
    quick, file, tmp_path, noise, images, forward, clip, assert_close
):
    state = noise(shapes_of())
    whole, _ = with_text(state, is_openai=False)
    if file.endswith("bin"):
        torch.save({name: torch.from_numpy(array) for name, array in whole.items()}, tmp_path / file)
    else:
        save_file(whole, tmp_path / file)
    vision = {
        "image_size": 16,
        "layers": DEPTH,
        "width": WIDTH,
        "head_width": WIDTH // HEADS,
        "patch_size": 4,
    }
    config = {"model_cfg": {"embed_dim": OUT, "vision_cfg": vision, "text_cfg": {"width": 8}} | quick}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    opened = reading.open_path(tmp_path, source="auto", hints=Hints())
    assert opened.found.source == "open_clip"
    is_quick = quick.get("quick_gelu", False)
    assert (opened.model.num_heads, opened.model.activation) == (HEADS, "quick_gelu" if is_quick else "gelu")
    expected, _ = clip(state, images(NATIVE), is_quick=is_quick)
    assert_close(forward(reading.load_opened(opened), images(NATIVE)).logits, expected)


@parametrize_quick(
    ("vision", "eps", "settings"),
    [
        ({"pool_type": "avg"}, 1e-5, {"pool": "avg"}),
        ({"pool_type": "avg", "final_ln_after_pool": True}, 1e-5, {"pool": "avg, then norm"}),
        (
            {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}},
            1e-6,
            {"approximate": "tanh"},
        ),
    ],
    ids=str,
)
def test_the_config_of_open_clip_tells_pooling_and_layers(
    vision, eps, settings, tmp_path, noise, images, forward, torch_layers, assert_close
):
    state = noise(shapes_of())
    save_file(with_text(state, is_openai=False)[0], tmp_path / "open_clip_model.safetensors")
    config = {"model_cfg": {"vision_cfg": {"width": WIDTH, "head_width": WIDTH // HEADS} | vision}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    model = reading.load_opened(reading.open_path(tmp_path, source="auto", hints=Hints()))
    expected, _ = reference(torch_layers(state, HEADS, eps), images(NATIVE), **settings)
    assert_close(forward(model, images(NATIVE)).logits, expected)


def test_a_source_that_is_not_the_checkpoints_is_refused(noise):
    state = noise(shapes_of())
    with pytest.raises(
        CheckpointError, match="source='dinov2', but the tensors have the names of clip or open"
    ):
        from_state_dict(state, source="dinov2", num_heads=HEADS)
    with pytest.raises(ConfigError, match=r"source='openclip' is unknown: did you mean 'open_clip'\?"):
        from_state_dict(state, source="openclip", num_heads=HEADS)


def test_all_that_is_missing_or_misshapen_is_listed(noise):
    state = noise(shapes_of())
    del state["ln_post.bias"], state["transformer.resblocks.1.mlp.c_fc.bias"]
    state["transformer.resblocks.0.attn.out_proj.weight"] = np.zeros((WIDTH, 3), np.float32)
    with pytest.raises(CheckpointError) as error:
        from_state_dict(state, source="clip", num_heads=HEADS)
    assert "3 tensors do not fit" in str(error.value)
    for said in (
        "'ln_post.bias' (48,) is missing",
        "'transformer.resblocks.1.mlp.c_fc.bias' (80,) is missing",
        "'transformer.resblocks.0.attn.out_proj.weight' is (48, 3), not (48, 48)",
    ):
        assert said in str(error.value)
