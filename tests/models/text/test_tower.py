"""The text tower against transformers' text models, with random weights, and its properties."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_registers.config import Text
from vit_registers.errors import ConfigError
from vit_registers.models.text.tower import TextTower

SMALL = Text(width=32, depth=2, num_heads=4, mlp_dim=48, vocab_size=50, context=9, embed_dim=16)
SIGLIP = dataclasses.replace(
    SMALL, is_causal=False, pool="last", has_projection_bias=True, activation="gelu_tanh", norm_eps=1e-6
)


def randomised(text, seed=1):
    """A tower with noise in every parameter."""
    rng = np.random.default_rng(seed)

    def noise(path, leaf):
        centre = float(path[-1].key == "scale")
        return jnp.asarray(centre + rng.normal(0, 0.2, leaf.shape), jnp.float32)

    graph, shapes = nnx.split(nnx.eval_shape(lambda: TextTower(text, rngs=nnx.Rngs(0))), nnx.Param)
    return nnx.merge(graph, jax.tree_util.tree_map_with_path(noise, nnx.to_pure_dict(shapes)))


def texts(batch=5, length=9, end=49):
    """ids_BxL: words, one end token in each row, and padding with small ids."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, end, (batch, length))
    for row, stop in enumerate(rng.integers(1, length, batch)):
        ids[row, stop] = end
        ids[row, stop + 1 :] = 0
    return ids.astype(np.int32)


@jax.jit
def embed(tower, tokens_BxL):
    return tower(tokens_BxL)


def to_torch(tower, theirs, *, projection):
    """Copies the parameters of ours into a text model of transformers."""
    import torch

    params = nnx.to_pure_dict(nnx.state(tower, nnx.Param))
    width = tower.text.width
    state = {
        "embeddings.token_embedding.weight": params["token_embed"]["embedding"],
        "embeddings.position_embedding.weight": params["pos_embed"][0],
        "final_layer_norm.weight": params["norm"]["scale"],
        "final_layer_norm.bias": params["norm"]["bias"],
    }
    for i, block in params["blocks"].items():
        at = f"encoder.layers.{i}."
        for j, name in ((1, "norm1"), (2, "norm2")):
            state[f"{at}layer_norm{j}.weight"] = block[name]["scale"]
            state[f"{at}layer_norm{j}.bias"] = block[name]["bias"]
        for j, name in enumerate(("q_proj", "k_proj", "v_proj")):
            state[f"{at}self_attn.{name}.weight"] = block["attn"]["qkv"]["kernel"][:, j].reshape(width, -1).T
            state[f"{at}self_attn.{name}.bias"] = block["attn"]["qkv"]["bias"][j].reshape(-1)
        state[f"{at}self_attn.out_proj.weight"] = block["attn"]["out"]["kernel"].reshape(-1, width).T
        state[f"{at}self_attn.out_proj.bias"] = block["attn"]["out"]["bias"]
        for name in ("fc1", "fc2"):
            state[f"{at}mlp.{name}.weight"] = block["mlp"][name]["kernel"].T
            state[f"{at}mlp.{name}.bias"] = block["mlp"][name]["bias"]
    names = {name for name in theirs.state_dict() if name.endswith("final_layer_norm.bias")}
    prefix = names.pop().removesuffix("final_layer_norm.bias")
    state = {prefix + name: value for name, value in state.items()}
    state |= {f"{projection}.weight": params["proj"]["kernel"].T}
    state |= {f"{projection}.bias": params["proj"]["bias"]} if "bias" in params["proj"] else {}
    theirs.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    return theirs.eval()


def torch_sizes(text):
    return {
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "intermediate_size": text.mlp_dim,
        "num_hidden_layers": text.depth,
        "num_attention_heads": text.num_heads,
        "max_position_embeddings": text.context,
        "bos_token_id": 1,
        "pad_token_id": 0,
    }


@pytest.mark.parametrize("length", [9, 4])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("end_token", [None, 49, 40], ids=["largest id", "49", "40"])
def test_a_causal_tower_is_clips_of_transformers(activation, end_token, length):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    text = dataclasses.replace(SMALL, activation=activation, end_token=end_token)
    # Before 2023, transformers had an end token of 2 for all CLIPs, and pooled the largest id.
    config = transformers.CLIPTextConfig(
        **torch_sizes(text),
        hidden_act=activation,
        eos_token_id=2 if end_token is None else end_token,
        projection_dim=text.embed_dim,
    )
    tower, ids = randomised(text), texts(length=length, end=end_token or 49)
    if end_token == 40:  # larger ids before and after the end token, and a text that has none
        ids[0], ids[1, -1] = 45, 40
    theirs = to_torch(tower, transformers.CLIPTextModelWithProjection(config), projection="text_projection")
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids).long()).text_embeds.numpy()
    np.testing.assert_allclose(embed(tower, ids), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [9, 4])
@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu"])
def test_a_bidirectional_tower_is_siglips_of_transformers(activation, length):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    text = dataclasses.replace(SIGLIP, activation=activation)
    act = {"gelu_tanh": "gelu_pytorch_tanh"}.get(activation, activation)
    config = transformers.SiglipTextConfig(
        **torch_sizes(text), hidden_act=act, eos_token_id=1, projection_size=text.embed_dim
    )
    tower, ids = randomised(text), texts(length=length)
    theirs = to_torch(tower, transformers.SiglipTextModel(config), projection="head")
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids).long()).pooler_output.numpy()
    np.testing.assert_allclose(embed(tower, ids), expected, atol=1e-5, rtol=0)


def test_what_follows_the_end_token_has_no_effect_on_a_causal_tower_only():
    ids = texts()
    other = np.where(np.cumsum(ids == 49, axis=1) - (ids == 49) > 0, 7, ids)
    assert (ids != other).any()
    causal, both = randomised(SMALL), randomised(dataclasses.replace(SMALL, is_causal=False))
    np.testing.assert_array_equal(embed(causal, ids), embed(causal, other))
    assert np.abs(embed(both, ids) - embed(both, other)).max() > 1e-3


@pytest.mark.parametrize("changes", [{"use_scan": True}, {"remat": "block"}, {"remat": "attention"}], ids=str)
def test_how_it_is_computed_changes_neither_embeddings_nor_gradients(changes):
    tower, ids = randomised(SMALL), texts()
    graph, params = nnx.split(tower, nnx.Param)
    other = nnx.graphdef(TextTower(dataclasses.replace(SMALL, **changes), rngs=nnx.Rngs(0)))

    def loss(graph, params):
        return jnp.square(nnx.merge(graph, params)(ids)).sum()

    values = [jax.value_and_grad(lambda p, graph=graph: loss(graph, p))(params) for graph in (graph, other)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-5), *values)


def test_bfloat16_is_close_and_returns_float32():
    tower, ids = randomised(SMALL), texts()
    other = TextTower(dataclasses.replace(SMALL, dtype="bfloat16"), rngs=nnx.Rngs(0))
    half = nnx.merge(nnx.graphdef(other), nnx.state(tower, nnx.Param))
    ours, exact = embed(half, ids), embed(tower, ids)
    assert ours.dtype == jnp.float32
    assert np.abs(ours - exact).max() < 0.05 * np.abs(exact).max()


def test_an_id_beyond_the_vocabulary_makes_its_text_nan():
    ids = texts()
    ids[2, 0] = 50
    is_nan = np.isnan(np.asarray(embed(randomised(SIGLIP), ids))).any(axis=1)
    np.testing.assert_array_equal(is_nan, [False, False, True, False, False])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((2, 10), np.int32), r"shape \(2, 10\): must be \[texts, tokens\] with 1 to 9 tokens"),
        (np.zeros((2, 0), np.int32), r"shape \(2, 0\)"),
        (np.zeros(3, np.int32), r"shape \(3,\)"),
        (np.zeros((2, 9), np.float32), "dtype float32: must be an array of integer ids"),
        ("a cat", "must be an array of integer ids"),
    ],
    ids=str,
)
def test_tokens_of_another_shape_or_dtype_are_refused(tokens, message):
    with pytest.raises(ConfigError, match=message):
        randomised(SMALL)(tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": "ends"}, "text.pool='ends' is unknown: did you mean 'end'"),
        ({"init": "open_clp"}, "text.init='open_clp' is unknown"),
        ({"activation": "relu"}, "text.activation='relu' is unknown"),
        ({"num_heads": 5}, "text.width=32 is not a multiple of the 5 heads: set text.num_heads"),
        ({"variant": "XL"}, "text.variant='XL' is unknown"),
        ({"end_token": 50}, "text.end_token=50: must be an id of the vocabulary, 0 to 49"),
        ({"end_token": 5, "pool": "last"}, "text.end_token=5 has no effect"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        TextTower(dataclasses.replace(SMALL, **changes), rngs=nnx.Rngs(0))
    assert "\n" not in str(error.value)


def deviations(text):
    params = nnx.to_pure_dict(nnx.state(TextTower(text, rngs=nnx.Rngs(0)), nnx.Param))
    block = params["blocks"][0]
    leaves = {
        "token": params["token_embed"]["embedding"],
        "position": params["pos_embed"],
        "qkv": block["attn"]["qkv"]["kernel"],
        "out": block["attn"]["out"]["kernel"],
        "fc1": block["mlp"]["fc1"]["kernel"],
        "fc2": block["mlp"]["fc2"]["kernel"],
        "proj": params["proj"]["kernel"],
    }
    return {name: float(leaf.std()) for name, leaf in leaves.items()}


def test_initial_values_have_the_deviations_of_openclip_and_big_vision():
    text = Text(width=128, depth=3, num_heads=4, mlp_dim=512, vocab_size=300, context=60, embed_dim=64)
    residual = 128**-0.5 * 6**-0.5
    expected = {"token": 0.02, "position": 0.01, "qkv": 128**-0.5, "out": residual}
    expected |= {"fc1": 256**-0.5, "fc2": residual, "proj": 128**-0.5}
    assert deviations(text) == pytest.approx(expected, rel=0.05)
    both = dataclasses.replace(text, init="big_vision")
    expected |= {"token": 128**-0.5, "position": 128**-0.5, "out": 128**-0.5}
    expected |= {"fc1": (2 / 640) ** 0.5, "fc2": (2 / 640) ** 0.5}
    assert deviations(both) == pytest.approx(expected, rel=0.05)


def test_the_sizes_of_openclips_text_towers():
    def count(**settings):
        tower = nnx.eval_shape(lambda: TextTower(Text(**settings), rngs=nnx.Rngs(0)))
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(tower, nnx.Param)))

    # OpenCLIP's ViT-B/16 and ViT-L/14 have 63,428,096 and 123,650,304 parameters in the text tower.
    assert count() == 63_428_096
    assert count(variant="B", embed_dim=768) == 123_650_304
