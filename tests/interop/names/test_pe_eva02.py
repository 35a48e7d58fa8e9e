"""Tensors by the names of the Perception Encoder's code and of EVA-02's, against timm's models of them.

timm converts the names live. At another image size its model is made as the code of each family works there:
a table of positions that torch has resampled, and the coordinates of that code.
"""

import numpy as np
import pytest

from vit_registers.errors import CheckpointError
from vit_registers.interop import reading

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("timm")

WIDTH, HIDDEN, GRID, PATCH = 32, 48, 4, 8
TRAINED, OTHER = (32, 32), (24, 56)


def both(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def pe_shapes(*, cls=True, is_core=True, scale=False):
    shapes = {"conv1.weight": (WIDTH, 3, PATCH, PATCH), "positional_embedding": (GRID**2 + cls, WIDTH)}
    shapes |= both("ln_pre", WIDTH) | ({"class_embedding": (WIDTH,)} if cls else {})
    for i in range(2):
        at = f"transformer.resblocks.{i}."
        shapes |= {f"{at}attn.in_proj_weight": (3 * WIDTH, WIDTH), f"{at}attn.in_proj_bias": (3 * WIDTH,)}
        shapes |= both(f"{at}attn.out_proj", WIDTH, WIDTH) | both(f"{at}ln_1", WIDTH)
        shapes |= both(f"{at}ln_2", WIDTH) | both(f"{at}mlp.c_fc", HIDDEN, WIDTH)
        shapes |= both(f"{at}mlp.c_proj", WIDTH, HIDDEN)
        shapes |= {f"{at}ls_{j}.gamma": (WIDTH,) for j in (1, 2)} if scale else {}
    if is_core:
        shapes |= {"attn_pool.probe": (1, 1, WIDTH), "attn_pool.attn.in_proj_weight": (3 * WIDTH, WIDTH)}
        shapes |= {"attn_pool.attn.in_proj_bias": (3 * WIDTH,), "proj": (WIDTH, 5)}
        shapes |= both("attn_pool.attn.out_proj", WIDTH, WIDTH) | both("attn_pool.layernorm", WIDTH)
        shapes |= both("attn_pool.mlp.c_fc", 4 * WIDTH, WIDTH) | both(
            "attn_pool.mlp.c_proj", WIDTH, 4 * WIDTH
        )
        shapes |= both("ln_post", WIDTH)
    return shapes


def eva02_shapes(*, is_clip):
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, GRID**2 + 1, WIDTH)}
    shapes |= both("patch_embed.proj", WIDTH, 3, PATCH, PATCH) | both("head", 5, WIDTH)
    shapes |= both("norm" if is_clip else "fc_norm", WIDTH)
    for i in range(2):
        at = f"blocks.{i}."
        shapes |= both(f"{at}norm1", WIDTH) | both(f"{at}norm2", WIDTH) | both(f"{at}attn.proj", WIDTH, WIDTH)
        shapes |= {f"{at}attn.{x}_proj.weight": (WIDTH, WIDTH) for x in "qkv"}
        shapes |= {f"{at}attn.{x}_bias": (WIDTH,) for x in "qv"}
        shapes |= both(f"{at}mlp.w1", HIDDEN, WIDTH) | both(f"{at}mlp.w2", HIDDEN, WIDTH)
        shapes |= both(f"{at}mlp.w3", WIDTH, HIDDEN) | both(f"{at}mlp.ffn_ln", HIDDEN)
        shapes |= both(f"{at}attn.inner_attn_ln", WIDTH) if is_clip else {}
    return shapes


def rotary_tables(base=10_000.0, channels=8):
    """The cosines and sines that EVA-02's code stores: 16 cells along each side, interleaved."""
    angle_GxA = (
        np.arange(GRID)[:, None] / GRID * 16 * base ** -(np.arange(0, channels // 2, 2) / (channels // 2))
    )
    angle_GxC = angle_GxA.repeat(2, axis=1)
    y, x = np.meshgrid(np.arange(GRID), np.arange(GRID), indexing="ij")
    angle_PxC = np.concatenate([angle_GxC[y.ravel()], angle_GxC[x.ravel()]], axis=1)
    return {"rope.freqs_cos": np.cos(angle_PxC), "rope.freqs_sin": np.sin(angle_PxC)}


def resampled(table, grid, num_first, mode):
    """The table of positions at another grid, by torch; `num_first` rows are of no patch."""
    rows = torch.from_numpy(table).reshape(-1, WIDTH)
    patches = rows[num_first:].reshape(1, GRID, GRID, WIDTH).permute(0, 3, 1, 2)
    patches = torch.nn.functional.interpolate(patches, size=grid, mode=mode, align_corners=False)
    patches = patches.permute(0, 2, 3, 1).reshape(-1, WIDTH)
    return torch.cat([rows[:num_first], patches]).numpy().reshape(*table.shape[:-2], -1, WIDTH)


@pytest.fixture
def assert_agrees(timm, images, forward, tokens, assert_close):
    """assert_agrees(ours, state, size, name, mode, **arguments), with the outputs of timm's model `name`."""

    def assert_agrees(ours, state, size, name, mode, **arguments):
        grid = (size[0] // PATCH, size[1] // PATCH)
        if size != TRAINED:
            table = "pos_embed" if "pos_embed" in state else "positional_embedding"
            num_first = int("class_embedding" in state or "cls_token" in state)
            state = state | {table: resampled(state[table], grid, num_first, mode)}
        sizes = {"embed_dim": WIDTH, "depth": 2, "num_heads": 4, "mlp_ratio": HIDDEN / WIDTH}
        sizes |= {"img_size": size, "patch_size": PATCH} | arguments
        theirs = timm.create_model(name, **sizes).eval()
        converted = timm.models.eva.checkpoint_filter_fn(
            {key: torch.from_numpy(np.array(value)) for key, value in state.items()}, theirs
        )
        theirs.load_state_dict(converted, strict=True)
        outputs = forward(ours, images(size))
        with torch.no_grad():
            features = theirs.forward_features(torch.from_numpy(images(size)).permute(0, 3, 1, 2))
            answer = theirs.forward_head(features)
        if not ours.model.use_norm_after_pool:
            assert_close(tokens(outputs), features, 1e-5 if ours.model.use_final_norm else 3e-5)
        assert_close(outputs.pooled if outputs.logits is None else outputs.logits, answer)

    return assert_agrees


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("vit_pe_core_base_patch16_224", {}),
        ("vit_pe_lang_large_patch14_448", {"is_core": False, "scale": True}),
        ("vit_pe_core_gigantic_patch14_448", {"cls": False}),
    ],
)
def test_perception_encoders(name, shapes, noise, assert_agrees):
    state = noise(pe_shapes(**shapes))
    text = noise({"positional_embedding": (7, 16), "ln_final.weight": (16,), "logit_scale": ()})
    whole = {f"visual.{key}": value for key, value in state.items()} | text
    ours = reading.from_state_dict(whole, source="auto", num_heads=4)
    number = 5 if shapes.get("is_core", True) else 0
    for size in (TRAINED, OTHER):  # the code counts patches, whatever the image size
        grid = (size[0] // PATCH, size[1] // PATCH)
        assert_agrees(ours, state, size, name, "bilinear", ref_feat_shape=grid, num_classes=number)


@pytest.mark.parametrize(
    ("name", "is_clip"), [("eva02_base_patch14_448", False), ("eva02_base_patch16_clip_224", True)]
)
def test_eva02(name, is_clip, noise, assert_agrees):
    state, tables = noise(eva02_shapes(is_clip=is_clip)), rotary_tables()
    copies = {f"blocks.{i}.attn.{key}": value for i in range(2) for key, value in tables.items()}
    prefix = "visual." if is_clip else ""
    whole = {f"{prefix}{key}": value for key, value in (state | tables | copies).items()}
    ours = reading.from_state_dict(whole, source="auto", num_heads=4)
    for size in (TRAINED, OTHER):
        assert_agrees(ours, state, size, name, "bicubic", num_classes=5)
    wrong = {f"{prefix}{key}": value for key, value in rotary_tables(base=100.0).items()}
    with pytest.raises(CheckpointError, match="freqs_cos' is not the fixed one that belongs to this model"):
        reading.from_state_dict(whole | wrong, source="auto", num_heads=4)
