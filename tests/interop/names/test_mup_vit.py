"""The fractal paper's code (arXiv:2601.15506), said again in torch: its tensors, buffers, names and masks."""

import math
import re

import ml_dtypes
import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.interop import from_state_dict, reading
from vit_registers.interop.hints import Hints
from vit_registers.interop.opened import describe_weights
from vit_registers.models.paths import leaves_of

torch = pytest.importorskip("torch")
F = torch.nn.functional

WIDTH, DEPTH, PATCH, SIDE, HIDDEN, OUT = 48, 2, 4, 4, 80, 7
NATIVE = (SIDE * PATCH, SIDE * PATCH)


def sincos2d(side):
    """In float32, as torch computes it there."""
    frequencies = 1.0 / 10_000 ** (torch.arange(WIDTH // 4) / (WIDTH // 4 - 1))
    y, x = torch.cartesian_prod(torch.arange(side), torch.arange(side)).T[..., None] * frequencies
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)


def sides_of(side, factor):
    """The sides of the summary levels, coarse to fine, and of the patches."""
    sides = [side]
    while factor and sides[0] >= factor:
        sides.insert(0, sides[0] // factor)
    return sides


def may_attend(sides):
    """Each level sees itself, and a token its owners, who are found as if sides grew by sides[1]."""
    starts = np.cumsum([0, *(side**2 for side in sides)])
    level = np.repeat(np.arange(len(sides)), np.diff(starts))
    seen = level[:, None] == level
    for i, side in enumerate(sides[:-1]):
        begin, run = starts[i], 1
        for _ in sides[i + 1 :]:
            begin, run = begin + (side * run) ** 2, run * sides[1]
            tokens = np.arange(begin, max(begin, min(begin + (side * run) ** 2, starts[-1])))
            row, column = np.divmod(tokens - begin, side * run)
            seen[starts[i] + row // run * side + column // run, tokens] = True
    return torch.from_numpy(seen | seen.T)


def slopes(heads):
    power = 2 ** int(math.log2(heads))
    first = [2 ** (-8 / power * (i + 1)) for i in range(power)]
    return first + ([] if power == heads else slopes(2 * power)[0::2][: heads - power])


def alibi(sides, heads):
    grids = [[(y, x) for y in range(side) for x in range(side)] for side in sides]
    distances = [torch.tensor([[math.dist(a, b) for b in cells] for a in cells]) for cells in grids]
    return -torch.tensor(slopes(heads)).view(heads, 1, 1) * torch.block_diag(*distances)


def both(name, *shape, weight="weight", bias="bias"):
    return {f"{name}.{weight}": shape, f"{name}.{bias}": shape[:1]}


def learned_shapes(*, tokens, positions, pre_logits):
    shapes = both("conv_proj", WIDTH, 3, PATCH, PATCH) | both("encoder.ln", WIDTH)
    shapes |= {"pos_embedding": (1, SIDE**2, WIDTH)} if positions == "learned" else {}
    shapes |= {"reg": (1, tokens, WIDTH)} if tokens else {}
    for i in range(DEPTH):
        at = f"encoder.layers.{i}."
        shapes |= both(f"{at}ln_1", WIDTH) | both(f"{at}ln_2", WIDTH)
        joint = {"weight": "in_proj_weight", "bias": "in_proj_bias"}
        shapes |= both(f"{at}self_attention", 3 * WIDTH, WIDTH, **joint)
        shapes |= both(f"{at}self_attention.out_proj", WIDTH, WIDTH)
        shapes |= both(f"{at}mlp.0", HIDDEN, WIDTH) | both(f"{at}mlp.3", WIDTH, HIDDEN)
    shapes |= both("heads.pre_logits", WIDTH, WIDTH) if pre_logits else {}
    return shapes | both("heads.head", OUT, WIDTH)


def checkpoint(noise, *, registers=0, tok=False, summary=None, positions="sincos2d", **settings):
    """(the tensors of the released branch, the names of its buffers among them)."""
    heads, is_masked = settings.get("heads", 6), settings.get("is_masked", False)
    sides = sides_of(SIDE, summary)
    count = sum(side**2 for side in sides[:-1]) if summary else registers + tok
    buffers = {}
    if positions == "sincos2d":
        buffers["pos_embedding"] = sincos2d(SIDE)
    if summary and positions == "sincos2d":
        buffers["reg"] = torch.cat([sincos2d(side) for side in sides[:-1]])
    elif (summary and positions != "learned") or count == 1:
        buffers["reg"] = torch.zeros(1, count, WIDTH)
    mask = torch.zeros(count + SIDE**2, count + SIDE**2)
    mask = mask.masked_fill(~may_attend(sides), -math.inf) if is_masked else mask
    mask = mask + alibi(sides, heads) if positions == "alibi" else mask
    if is_masked or positions == "alibi":
        buffers["mask"] = mask
    tokens, pre_logits = 0 if "reg" in buffers else count, settings.get("pre_logits", False)
    state = noise(learned_shapes(tokens=tokens, positions=positions, pre_logits=pre_logits))
    return state | {name: buffer.numpy() for name, buffer in buffers.items()}, set(buffers)


def reference(w, images, *, tok=False):
    """(logits, all tokens after the norm)."""
    x, _ = w.patches(images, "conv_proj")
    x = x + w["pos_embedding"] if "pos_embedding" in w else x
    count = w["reg"].shape[-2] if "reg" in w else 0
    if count:
        x = torch.cat([torch.tile(w["reg"], (len(x), 1, 1)), x], dim=1)
    mask = w.get("mask")
    if mask is not None and mask.ndim == 3:
        mask = torch.tile(mask, (len(x), 1, 1))
    for i in range(DEPTH):
        at = f"encoder.layers.{i}."
        joint, out = f"{at}self_attention.in_proj_{{}}", f"{at}self_attention.out_proj.{{}}"
        x = x + w.attend(w.norm(x, f"{at}ln_1"), joint, out, mask)
        x = x + w.linear(F.gelu(w.linear(w.norm(x, f"{at}ln_2"), f"{at}mlp.0")), f"{at}mlp.3")
    x = w.norm(x, "encoder.ln")
    pooled = x[:, 0] if tok else x[:, count:].mean(dim=1)
    if "heads.pre_logits.weight" in w:
        pooled = torch.tanh(w.linear(pooled, "heads.pre_logits"))
    return w.linear(pooled, "heads.head"), x


def as_older(state):
    """The names before there were masks."""
    return {
        re.sub(r"layers\.(\d+)", r"layers.encoder_layer_\1", name): array for name, array in state.items()
    }


def as_main(state):
    """The names of the main branch, where True in the mask is who may not be attended to."""
    renamed = {
        re.sub("^conv_proj", "patchifier", name).replace("self_attention", "attention.attention"): array
        for name, array in as_older(state).items()
    }
    if "mask" in renamed:
        renamed["encoder.attn_mask"] = renamed.pop("mask") == -math.inf
    return renamed


def as_flex(state):
    """The names of the variant with flex attention, which keeps its mask to itself."""
    return {name.replace("out_proj.", "out_proj_"): array for name, array in state.items() if name != "mask"}


CASES = {
    "no tokens": {},
    "one register": {"registers": 1},
    "four registers": {"registers": 4},
    "cls": {"tok": True},
    "cls and four registers": {"tok": True, "registers": 4},
    "learned positions": {"positions": "learned", "registers": 4, "pre_logits": True},
    "learned positions, cls": {"positions": "learned", "tok": True, "registers": 2},
    "no positions": {"positions": "none", "registers": 3},
    "summaries": {"summary": 2},
    "masked summaries": {"summary": 2, "is_masked": True, "pre_logits": True},
    "one masked summary": {"summary": 4, "is_masked": True},
    "learned summaries": {"positions": "learned", "summary": 2},
    "learned masked summaries": {"positions": "learned", "summary": 2, "is_masked": True},
    "masked summaries, no positions": {"positions": "none", "summary": 2, "is_masked": True},
    "summaries, first pooled": {"summary": 2, "tok": True},
    "masked summaries, first pooled": {"summary": 2, "is_masked": True, "tok": True, "pre_logits": True},
    "one masked summary, pooled": {"summary": 4, "is_masked": True, "tok": True},
    "learned masked summaries, first pooled": {
        "positions": "learned",
        "summary": 2,
        "is_masked": True,
        "tok": True,
    },
    "masked summaries, no positions, first pooled": {
        "positions": "none",
        "summary": 2,
        "is_masked": True,
        "tok": True,
    },
    "alibi and masked summaries, first pooled": {
        "positions": "alibi",
        "summary": 2,
        "is_masked": True,
        "tok": True,
    },
    "alibi": {"positions": "alibi"},
    "alibi, twelve heads": {"positions": "alibi", "heads": 12},
    "alibi and summaries": {"positions": "alibi", "summary": 2},
    "alibi and masked summaries": {"positions": "alibi", "summary": 2, "is_masked": True},
}
# What the tensors do not tell, by case.
HINTS = {name: {"pooling": "cls"} if settings.get("tok") else {} for name, settings in CASES.items()}
HINTS["no positions"] = {"image_size": NATIVE}


@pytest.fixture
def made(noise):
    """made(name): (its state, the names of its buffers, the hints that it needs)."""
    hints = {name: HINTS[name] | {"num_heads": CASES[name].get("heads", 6)} for name in CASES}
    return lambda name: (*checkpoint(noise, **CASES[name]), hints[name].copy())


@parametrize_quick("name", CASES, number=2)
def test_the_answer_is_that_of_the_origin_and_buffers_stay_fixed(
    name, made, images, forward, tokens, params, torch_layers, assert_close
):
    state, buffers, hints = made(name)
    layers = torch_layers(state, hints["num_heads"])
    logits, all_tokens = reference(layers, images(NATIVE), tok=CASES[name].get("tok", False))
    model = from_state_dict(state, source="mup_vit", **hints)
    outputs = forward(model, images(NATIVE))
    assert_close(outputs.logits, logits)
    assert_close(tokens(outputs), all_tokens)
    fixed = {"pos_embedding": {"pos_embed"}, "reg": {"cls_token", "registers", "summaries"}, "mask": set()}
    learned = {leaf[0] for leaf in leaves_of(params(model))}
    assert not learned & set().union(*(fixed[name] for name in buffers))


VARIANTS = {"released": lambda state: state, "older": as_older, "main": as_main, "flex": as_flex}


@pytest.mark.parametrize(
    ("name", "variant"), [(n, v) for n in CASES for v in VARIANTS if "alibi" not in n or v == "released"]
)
def test_round_trip_is_bitwise(name, variant, made, load, dump, assert_same):
    state, buffers, hints = made(name)
    if variant == "flex" and CASES[name].get("summary"):
        hints["image_size"] = NATIVE
        hints["mask"] = "fractal_released" if CASES[name].get("is_masked") else "none"
    model, tree = load(VARIANTS[variant](state), "mup_vit", **hints)
    assert model.image_size == NATIVE
    both = CASES[name].get("tok", False) and CASES[name].get("registers", 0) > 0  # two leaves in one tensor
    assert len(leaves_of(tree)) == len(state) - len(buffers) + both
    back = dump(model, tree, "mup_vit")
    for table in buffers & back.keys():  # torch computes them in float32, we in float64, to be rounded then
        np.testing.assert_allclose(back[table], state[table], atol=3e-7, rtol=1e-7, strict=True)
        is_inexact = "twelve" in name if table == "mask" else back[table].any()
        back[table] = state[table] if is_inexact else back[table]
    assert_same(back, state)


@pytest.mark.parametrize("name", ["masked summaries", "alibi, twelve heads"])
def test_buffers_come_out_as_they_went_in_once_they_are_ours(name, made, load, dump, assert_same):
    state, _, hints = made(name)
    once = dump(*load(state, "mup_vit", **hints), "mup_vit")
    assert_same(dump(*load(once, "mup_vit", **hints), "mup_vit"), once)


@pytest.mark.parametrize("name", ["no tokens", "masked summaries", "alibi"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_buffers_of_half_precision_are_compared_as_such(name, dtype, made, load, assert_same):
    state, _, hints = made(name)
    half = {key: value.astype(dtype) for key, value in state.items()}
    model, tree = load(half, "mup_vit", **hints)
    whole, expected = load(
        {key: value.astype(np.float32) for key, value in state.items()}, "mup_vit", **hints
    )
    assert model == whole
    rounded = {leaf: value.astype(dtype).astype(np.float32) for leaf, value in leaves_of(expected).items()}
    assert_same(leaves_of(tree), rounded)


@pytest.mark.parametrize("side", [4, 14, 16])
def test_the_mask_is_known_also_where_its_runs_are_no_blocks_of_the_image(side, noise, load):
    state, _ = checkpoint(noise, summary=2, is_masked=True, positions="none", heads=6)
    sides = sides_of(side, 2)
    extra, seen = sum(s**2 for s in sides[:-1]), may_attend(sides)
    mask = torch.zeros(seen.shape).masked_fill(~seen, -math.inf)
    state |= {"reg": np.zeros((1, extra, WIDTH), np.float32), "mask": mask.numpy()}
    model, _ = load(state, "mup_vit", num_heads=6)
    assert (model.mask, model.summary_factor) == ("fractal_released", 2)
    assert model.image_size == (side * PATCH, side * PATCH)


def test_of_a_checkpoint_of_training_the_state_of_training_is_left_out(tmp_path, made, dump, assert_same):
    state, _, hints = made("learned masked summaries")
    content = {
        "step": 112_603,
        "state_dict": {f"module.{name}": torch.from_numpy(array) for name, array in state.items()},
        "best_acc1": torch.tensor(76.9),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
    }
    torch.save(content, tmp_path / "model_best.pth.tar")
    opened = reading.open_path(tmp_path / "model_best.pth.tar", source="auto", hints=Hints(**hints))
    assert_same(dump(opened.model, reading.read_leaves(opened), "mup_vit"), state)
    said = describe_weights(opened)
    assert "summaries k=2, mask fractal_released" in said and "the state of training (2 tensors)" in said


@pytest.mark.parametrize("name", ["four registers", "cls"])
def test_sincos_tables_are_computed_for_other_sizes(name, made, images, forward, torch_layers, assert_close):
    state, _, hints = made(name)
    there = state | {"pos_embedding": sincos2d(6).numpy()}
    logits, _ = reference(torch_layers(there, 6), images((24, 24)), tok=name == "cls")
    for size in (NATIVE, (24, 24)):
        model = from_state_dict(state, source="mup_vit", image_size=size, **hints)
        assert model.model.image_size == size and model.model.position_resampling == "none"
        assert_close(forward(model, images((24, 24))).logits, logits)


@parametrize_quick("name", ["masked summaries", "learned masked summaries", "summaries"])
def test_the_variant_that_does_not_store_its_mask_asks_for_it(
    name, made, images, forward, torch_layers, assert_close
):
    state, _, hints = made(name)
    with pytest.raises(CheckpointError, match=r"give mask \('fractal_released' if .*, else 'none'\)"):
        from_state_dict(as_flex(state), source="mup_vit", **hints)
    plain = {tensor: array for tensor, array in state.items() if tensor != "mask"}
    masked = plain | {"mask": np.where(may_attend(sides_of(SIDE, 2)), 0.0, -np.inf)}
    for mask, there in (("none", plain), ("fractal_released", masked), ("fractal", masked)):
        model = from_state_dict(as_flex(state), source="mup_vit", mask=mask, **hints)
        logits, _ = reference(torch_layers(there, 6), images(NATIVE))
        assert_close(forward(model, images(NATIVE)).logits, logits)


def test_buffers_that_are_others_are_refused(made, load):
    def refused(name, tensor, change, match, variant="released", **more):
        state, _, hints = made(name)
        changed = state[tensor].copy()
        change(changed)
        with pytest.raises(CheckpointError, match=match):
            load(VARIANTS[variant](state | {tensor: changed}), "mup_vit", **(hints | more))

    shift = lambda table: np.add.at(table, (..., 3, 7), 1e-3)  # noqa: E731
    block = lambda mask: mask.__setitem__((..., 6, 9), -np.inf)  # noqa: E731
    refused("no tokens", "pos_embedding", shift, "'pos_embedding' is not the fixed one")
    refused("summaries", "reg", shift, "'reg' is not the fixed one")
    refused("masked summaries", "mask", block, "'mask' is none of the masks of this code")
    refused("masked summaries", "mask", block, "'encoder.attn_mask' is none of the masks", variant="main")
    refused("alibi", "mask", shift, "'mask' is none of the masks of this code")
    for pooling in ("cls", "summary"):
        refused("no tokens", "heads.head.bias", np.copy, "there is no 'reg' to pool", pooling=pooling)
    refused("four registers", "reg", np.copy, "no summary factor gives", pooling="summary")
    refused(
        "no tokens", "heads.head.bias", np.copy, r"pools patches \(gap\) or its first token", pooling="map"
    )
    refused("masked summaries", "reg", np.copy, "has summaries for images of ", image_size=(32, 32))
    refused("no positions", "reg", np.copy, "give image_size", image_size=None)


@pytest.mark.parametrize("name", CASES)
def test_the_pooling_that_was_assumed_is_said(name, made):
    state, _, hints = made(name)
    for pooling in (None, "gap"):
        weights = reading.containers.from_arrays(state)
        opened = reading.understand(
            weights, source="auto", hints=Hints(**(hints | {"pooling": pooling})), settings={}
        )
        assert opened.model.pooling == "gap"
        is_said = "pooling gap was assumed" in describe_weights(opened)
        assert is_said == (pooling is None and "reg" in state)


@pytest.mark.parametrize("mask", [None, "fractal"])
def test_a_pooled_summary_stays_pooled_beside_more_registers(mask, make, images, forward, assert_close):
    """The first summary token is pooled wherever it is; without summaries it cannot be."""
    settings = {"use_cls": False, "summary_factor": 2, "pooling": "summary", "mask": mask or "none"}
    for registers in (0, 3):
        outputs = forward(make(**settings, num_registers=registers), images())
        assert_close(outputs.pooled, outputs.summaries[:, 0], 0)
    with pytest.raises(ConfigError, match=r"model\.pooling='summary' requires summaries"):
        make(use_cls=False, pooling="summary")
