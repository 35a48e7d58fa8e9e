"""big_vision checkpoints: its model said again in flax.linen, with noise in every tensor, in .npz files."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.ndimage
from flax import linen, traverse_util

from tests.fixtures.quick import parametrize_quick
from vit_registers.errors import CheckpointError
from vit_registers.interop import from_state_dict, reading
from vit_registers.interop.export.targets import export
from vit_registers.interop.hints import Hints
from vit_registers.interop.opened import describe_weights

WIDTH, DEPTH, HEADS, PATCH, SIDE, HIDDEN, OUT = 48, 2, 4, 4, 4, 80, 7
NATIVE = (SIDE * PATCH, SIDE * PATCH)

TODAY = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
ORIGINAL = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")


class Mlp(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.gelu(linen.Dense(HIDDEN, name="Dense_0")(x))
        return linen.Dense(WIDTH, name="Dense_1")(x)


class Block(linen.Module):
    names: tuple[str, ...]

    @linen.compact
    def __call__(self, x):
        norm1, attention, norm2, mlp = self.names
        normed = linen.LayerNorm(name=norm1)(x)
        x = x + linen.MultiHeadDotProductAttention(num_heads=HEADS, name=attention)(normed, normed)
        return x + Mlp(name=mlp)(linen.LayerNorm(name=norm2)(x))


class Encoder(linen.Module):
    names: tuple[str, ...]

    @linen.compact
    def __call__(self, x):
        if self.names == ORIGINAL:
            x = x + PositionsOfAllTokens(name="posembed_input")(x)
        for i in range(DEPTH):
            x = Block(self.names, name=f"encoderblock_{i}")(x)
        return linen.LayerNorm(name="encoder_norm")(x)


class PositionsOfAllTokens(linen.Module):
    @linen.compact
    def __call__(self, x):
        return self.param("pos_embedding", linen.initializers.zeros, (1, *x.shape[1:]))


class MapHead(linen.Module):
    @linen.compact
    def __call__(self, x):
        probe = self.param("probe", linen.initializers.zeros, (1, 1, WIDTH))
        attend = linen.MultiHeadDotProductAttention(num_heads=HEADS, name="MultiHeadDotProductAttention_0")
        pooled = attend(jnp.repeat(probe, len(x), axis=0), x)
        return (pooled + Mlp(name="MlpBlock_0")(linen.LayerNorm(name="LayerNorm_0")(pooled)))[:, 0]


class Reference(linen.Module):
    pool: str = "gap"
    positions: str = "learned"
    has_pre_logits: bool = False
    has_head: bool = True
    names: tuple[str, ...] = TODAY

    @linen.compact
    def __call__(self, images):
        """(logits, or what a head would read; all tokens after the norm)."""
        x = linen.Conv(WIDTH, (PATCH, PATCH), strides=(PATCH, PATCH), padding="VALID", name="embedding")(
            images
        )
        rows, columns = x.shape[1:3]
        x = x.reshape(len(x), rows * columns, WIDTH)
        if self.positions == "sincos2d":
            x = x + sincos2d(rows, columns)[None]
        elif self.names != ORIGINAL:
            x = x + self.param("pos_embedding", linen.initializers.zeros, (1, *x.shape[1:]))
        if self.pool == "tok":
            cls = self.param("cls", linen.initializers.zeros, (1, 1, WIDTH))
            x = jnp.concatenate([jnp.repeat(cls, len(x), axis=0), x], axis=1)
        tokens = Encoder(self.names, name="Transformer")(x)
        if self.pool == "map":
            x = MapHead(name="MAPHead_0")(tokens)
        else:
            x = tokens[:, 0] if self.pool == "tok" else tokens.mean(axis=1)
        if self.has_pre_logits:
            x = jnp.tanh(linen.Dense(WIDTH, name="pre_logits")(x))
        return linen.Dense(OUT, name="head")(x) if self.has_head else x, tokens


def sincos2d(rows, columns):
    """Feature f of cell (y, x), one by one: sin x, cos x, sin y, cos y, a quarter of the width each."""
    quarter = WIDTH // 4
    table = np.empty((rows, columns, WIDTH))
    for f in range(quarter):
        frequency = 1 / 10_000 ** (f / (quarter - 1))
        for part, (function, axis) in enumerate([(np.sin, 1), (np.cos, 1), (np.sin, 0), (np.cos, 0)]):
            angles = function(np.arange((rows, columns)[axis]) * frequency)
            table[:, :, part * quarter + f] = angles[None] if axis else angles[:, None]
    return table.reshape(-1, WIDTH).astype(np.float32)


CASES = {
    "gap": Reference(),
    "gap sincos2d": Reference(positions="sincos2d"),
    "gap sincos2d pre-logits": Reference(positions="sincos2d", has_pre_logits=True),
    "gap headless": Reference(has_head=False),
    "map headless": Reference(pool="map", has_head=False),
    "tok": Reference(pool="tok", has_pre_logits=True),
    "tok sincos2d": Reference(pool="tok", positions="sincos2d"),
    "map": Reference(pool="map"),
    "map sincos2d": Reference(pool="map", positions="sincos2d", has_pre_logits=True),
    "original": Reference(pool="tok", names=ORIGINAL, has_pre_logits=True),
    "original linear": Reference(pool="tok", names=ORIGINAL),
}


@pytest.fixture
def made(noise, images):
    """made(name): (the reference, its state by name without prefix)."""

    def made(name):
        shapes = jax.eval_shape(CASES[name].init, jax.random.key(0), images(NATIVE))["params"]
        flat = traverse_util.flatten_dict(shapes, sep="/")
        return CASES[name], noise({n: leaf.shape for n, leaf in flat.items()})

    return made


@jax.jit(static_argnums=0)
def _apply(reference, state, images):
    return reference.apply({"params": traverse_util.unflatten_dict(state, sep="/")}, images)


def table_name(reference):
    return "Transformer/posembed_input/pos_embedding" if reference.names == ORIGINAL else "pos_embedding"


def zoomed(reference, state, size):
    """The state for images of another size, as big_vision does it when it loads; the row of cls stays."""
    name = table_name(reference)
    if name not in state:
        return state
    table = state[name][0]
    first, grid = table[: -(SIDE**2)], table[-(SIDE**2) :].reshape(SIDE, SIDE, WIDTH)
    factors = [pixels / PATCH / SIDE for pixels in size]
    grid = scipy.ndimage.zoom(grid, (*factors, 1), order=1)
    assert grid.shape[:2] == tuple(pixels // PATCH for pixels in size)
    return state | {name: np.concatenate([first, grid.reshape(-1, WIDTH)])[None]}


@parametrize_quick(
    ("name", "size"),
    [(name, NATIVE) for name in CASES]
    + [(name, size) for name in ("gap", "tok sincos2d", "original") for size in ((24, 24), (12, 28))],
)
def test_answer_and_tokens_are_those_of_the_origin(name, size, made, images, forward, tokens, assert_close):
    reference, state = made(name)
    logits, encoded = _apply(reference, zoomed(reference, state, size), images(size))
    outputs = forward(from_state_dict(state, source="big_vision", image_size=size), images(size))
    assert_close(tokens(outputs), encoded)
    assert_close(outputs.logits if reference.has_head else outputs.pooled, logits)
    assert (outputs.logits is None) == (not reference.has_head)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gap", "tok sincos2d"])
def test_other_sizes_in_the_call_are_those_at_load(name, made, images, forward, tokens, assert_close):
    reference, state = made(name)
    model = from_state_dict(state, source="big_vision", image_size=NATIVE)
    for size in ((24, 24), (12, 28)):
        _, encoded = _apply(reference, zoomed(reference, state, size), images(size))
        assert_close(tokens(forward(model, images(size))), encoded)


def prefixed(prefix, state):
    return {prefix + name: array for name, array in state.items()}


def stacked(state):
    """All blocks in tensors with a leading axis, as scan has them."""
    at = "Transformer/encoderblock_"
    one = {name.removeprefix(f"{at}0/") for name in state if name.startswith(f"{at}0/")}
    there = {name: array for name, array in state.items() if not name.startswith(at)}
    return there | {
        f"Transformer/encoderblock/{n}": np.stack([state[f"{at}{i}/{n}"] for i in range(DEPTH)]) for n in one
    }


def today(reference, state):
    """The state in the layout of today: the position of cls is added to cls, as big_vision does it."""
    renamed = {}
    for name, array in state.items():
        for old, new in zip(reference.names, TODAY, strict=True):
            name = name.replace(f"/{old}/", f"/{new}/") if "encoderblock" in name else name
        renamed[name] = array
    if reference.names == ORIGINAL:
        table = renamed.pop(table_name(reference))
        renamed |= {"cls": renamed["cls"] + table[:, :1], "pos_embedding": table[:, 1:]}
    return renamed


def open_npz(path, state, source="auto", **hints):
    np.savez(path, **state)
    return reading.open_path(path, source=source, hints=Hints(**hints))


@parametrize_quick(
    ("name", "is_stacked"),
    [(n, False) for n in CASES] + [(n, True) for n in CASES if "original" not in n],
    number=4,
)
def test_round_trip_is_bitwise(name, is_stacked, tmp_path, made, dump, assert_same):
    reference, state = made(name)
    there = stacked(state) if is_stacked else state
    opened = open_npz(tmp_path / "model.npz", prefixed("params/", there), image_size=NATIVE)
    assert opened.model.num_heads == HEADS and opened.found.left_out == {}
    assert opened.model.activation == "gelu_tanh" and opened.model.norm_eps == 1e-6
    back = dump(opened.model, reading.read_leaves(opened), "big_vision")
    assert_same(back, prefixed("params/", today(reference, state)))


def test_a_position_of_cls_in_the_layout_of_today_is_read(made, load, dump, assert_same):
    """As files of before 2022 have it."""
    reference, state = made("original")
    there = today(reference, state)
    older = there | {"cls": state["cls"], "pos_embedding": state[table_name(reference)]}
    model, tree = load(older, "big_vision")
    assert model.has_cls_position and model.image_size == NATIVE
    assert_same(dump(model, tree, "big_vision"), prefixed("params/", there))


LEFT_OUT = {
    "": {},
    "params/": {"opt/0/0/mu/embedding/kernel": (PATCH, PATCH, 3, WIDTH), "opt/0/0/count": (), "chrono/x": ()},
    "params/img/": {"params/txt/head/kernel": (3, 3), "params/t": (1,), "params/b": (1,)},
    "opt/target/": {"opt/state/step": (), "opt/state/param_states/embedding/kernel/grad_ema": (2,)},
}


@pytest.mark.parametrize("prefix", LEFT_OUT)
def test_prefixes_are_known_and_the_rest_is_left_out(prefix, tmp_path, made, noise, dump, assert_same):
    _, state = made("map")
    there = prefixed(prefix, state) | noise(LEFT_OUT[prefix])
    opened = open_npz(tmp_path / "model.npz", there)
    assert opened.found.source == "big_vision"
    assert set(opened.found.left_out) == set(LEFT_OUT[prefix])
    assert_same(dump(opened.model, reading.read_leaves(opened), "big_vision"), prefixed("params/", state))
    said = describe_weights(opened)
    assert ("the text tower (3 tensors)" in said) == (prefix == "params/img/")
    assert ("the state of training" in said) == (prefix in ("params/", "opt/target/"))


@pytest.mark.parametrize("layout", ["plain", "stacked"])
def test_bfloat16_tensors_are_read_and_written(
    layout, tmp_path, made, images, forward, assert_close, assert_same
):
    reference, state = made("map")
    state = {name: array.astype(ml_dtypes.bfloat16) for name, array in state.items()}
    there = stacked(state) if layout == "stacked" else state
    opened = open_npz(tmp_path / "model.npz", prefixed("params/", there))
    assert np.load(tmp_path / "model.npz")["params/head/kernel"].dtype == np.dtype("V2")
    exact = {name: array.astype(np.float32) for name, array in state.items()}
    logits, _ = _apply(reference, exact, images(NATIVE))
    assert_close(forward(reading.load_opened(opened), images(NATIVE)).logits, logits)
    back = export(opened.model, reading.read_leaves(opened), "big_vision").weights(ml_dtypes.bfloat16)
    assert_same(back, prefixed("params/", state))


def test_without_a_position_table_the_size_is_asked_for(made):
    _, state = made("gap sincos2d")
    with pytest.raises(CheckpointError, match=r"sincos2d, for an image size .* give image_size"):
        from_state_dict(state, source="big_vision")
    _, state = made("gap")
    state["pos_embedding"] = state["pos_embedding"][:, :-1]
    with pytest.raises(
        CheckpointError, match="'pos_embedding' has 15 rows, which is not a square grid: give image"
    ):
        from_state_dict(state, source="big_vision")
