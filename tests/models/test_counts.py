"""Parameter counts of published models, by shape inference alone."""

import math

import jax
import pytest
from flax import nnx

from vit_registers.config import Model
from vit_registers.models.blocks import dims
from vit_registers.models.vit import ViT


def shapes(model: Model) -> dict:
    abstract = nnx.eval_shape(lambda: ViT(model, rngs=nnx.Rngs(0)))
    return nnx.to_pure_dict(nnx.state(abstract, nnx.Param))


def size(model: Model) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(model)))


def count(**settings) -> int:
    """The parameters of the whole model, from two shallow ones: all blocks are alike."""
    one, two = (size(Model(**settings, depth=depth)) for depth in (1, 2))
    return one + (dims(Model(**settings)).depth - 1) * (two - one)


DEIT3 = {"layer_scale_init": 1e-4, "has_cls_position": False}
DINOV2 = {"layer_scale_init": 1e-5, "num_classes": 0, "patch_size": 14, "image_size": (518, 518)}
BIG_VISION = {"pooling": "gap", "use_cls": False, "positions": "sincos2d"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"variant": "Ti"}, 5_717_416),
        ({"variant": "S"}, 22_050_664),
        ({"variant": "S", "num_registers": 1}, 22_050_664 + 384),
        ({"variant": "S", "num_registers": 16}, 22_050_664 + 16 * 384),
        ({"variant": "B"}, 86_567_656),
        ({"variant": "L"}, 304_326_632),
        (DEIT3 | {"variant": "Ti"}, 5_721_832),
        (DEIT3 | {"variant": "S"}, 22_059_496),
        (DEIT3 | {"variant": "S", "num_registers": 4}, 22_061_032),
        (DEIT3 | {"variant": "B"}, 86_585_320),
        (DEIT3 | {"variant": "L"}, 304_374_760),
        (DEIT3 | {"variant": "H", "patch_size": 14}, 632_126_440),
        (BIG_VISION, 21_974_632),
        (BIG_VISION | {"use_pre_logits": True}, 22_122_472),
    ],
    ids=str,
)
def test_count_is_the_published_one(settings, expected):
    assert count(**settings) == expected


def test_small_model_counted_in_full_has_22_050_664_parameters():
    assert size(Model(variant="S")) == 22_050_664


@pytest.mark.parametrize(
    ("variant", "without", "with_4_registers"),
    [
        ("S", 22_056_576, 22_058_112),
        ("B", 86_580_480, 86_583_552),
        ("L", 304_368_640, 304_372_736),
        ("g", 1_136_480_768, 1_136_486_912),
    ],
)
def test_count_of_dinov2_is_the_published_one_less_the_mask_token(variant, without, with_4_registers):
    width = {"S": 384, "B": 768, "L": 1024, "g": 1536}[variant]
    assert count(variant=variant, **DINOV2) == without - width
    assert count(variant=variant, num_registers=4, **DINOV2) == with_4_registers - width


def test_medium_deit3_has_the_published_38_8_million():
    assert round(count(variant="M", **DEIT3) / 1e6, 1) == 38.8


@pytest.mark.parametrize(
    ("settings", "extra"),
    [
        ({"num_registers": 4, "registers": "zeros"}, 0),
        ({"num_registers": 4, "extra_positions": "learned"}, 2 * 4 * 384),
        ({"num_registers": 4, "extra_positions": "sincos2d"}, 4 * 384),
        ({"summary_factor": 2}, 59 * 384),
        ({"summary_factor": 2, "summaries": "zeros"}, 0),
        ({"summary_factor": 2, "summaries": "zeros", "extra_positions": "sincos2d"}, 0),
        ({"summary_factor": 4, "num_registers": 2, "extra_positions": "learned"}, 2 * 11 * 384),
        ({"summary_factor": 2, "mask": "fractal"}, 59 * 384),
        ({"positions": "none"}, -197 * 384),
        ({"positions": "alibi2d"}, -197 * 384),
        ({"positions": "sincos2d"}, -197 * 384),
        ({"has_cls_position": False}, -384),
        ({"use_patch_bias": False}, -384),
        ({"use_qkv_bias": False}, -12 * 3 * 384),
        ({"layer_scale_init": 0.0}, 12 * 2 * 384),
        ({"num_classes": 0}, -(385 * 1000)),
        ({"channels": 1}, -2 * 16 * 16 * 384),
    ],
    ids=str,
)
def test_each_switch_adds_or_removes_just_its_parameters(settings, extra):
    assert count(**settings) == 22_050_664 + extra


def test_switched_off_parameters_are_absent_from_the_tree():
    model = Model(depth=1, num_registers=2, registers="zeros", use_patch_bias=False, use_qkv_bias=False)
    tree = shapes(model)
    assert set(tree) == {"patch_embed", "cls_token", "cls_pos", "pos_embed", "blocks", "norm", "head"}
    assert set(tree["patch_embed"]) == set(tree["blocks"][0]["attn"]["qkv"]) == {"kernel"}
    assert set(tree["blocks"][0]) == {"norm1", "attn", "norm2", "mlp"}
    assert set(tree["blocks"][0]["attn"]["out"]) == {"kernel", "bias"}
