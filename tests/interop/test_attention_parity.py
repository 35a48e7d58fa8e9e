"""Attention and intermediate tokens of loaded models against those of transformers and timm."""

import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick

KINDS = ("Dinov2WithRegistersModel", "ViTModel", "CLIPVisionModel")


@parametrize_quick("kind", KINDS)
def test_attention_equals_eager_attention_of_transformers(
    kind, hf_model, run_hf, from_folder, images, assert_close, tmp_path
):
    pytest.importorskip("transformers")
    theirs = hf_model(kind)
    theirs.set_attn_implementation("eager")
    theirs.save_pretrained(tmp_path)
    x = images((32, 48))
    _, encoded = run_hf(
        theirs, x, output_attentions=True, **({"interpolate_pos_encoding": True} if "CLIP" in kind else {})
    )
    model = from_folder(tmp_path)
    assert np.abs(encoded.attentions[0].numpy() - 1 / 25).max() > 0.05  # far from uniform
    layout = model.layout_for((32, 48))
    for queries, where in layout.groups.items():
        found = model.attention(x, block=(0, 1), queries=queries, heads="all")
        expected = np.stack([weights.numpy() for weights in encoded.attentions])[:, :, :, where]
        assert_close(found.weights, expected, 1e-5)
        mean = model.attention(x, queries=queries)
        assert_close(mean.weights, expected[1].mean(1), 1e-5)
        assert_close(
            mean.maps.reshape(*mean.maps.shape[:2], -1), expected[1].mean(1)[..., layout.patches], 1e-5
        )


@parametrize_quick("name", ["vit_base_patch16_224", "vit_base_patch16_clip_224"])
def test_intermediates_equal_those_of_timm(name, timm, timm_model, load, images, numpy_state, assert_close):
    import torch
    from flax import nnx

    from vit_registers.models.params import abstract_model

    theirs = timm_model(name, reg_tokens=2)
    hints = {"hidden_act": "gelu"} if "clip" in name else {}
    model, params = load(numpy_state(theirs), "timm", num_heads=4, **hints)
    ours, x = nnx.merge(abstract_model(model)[0], params), images((32, 48))
    for blocks, norm in ((None, True), (1, False), ((0, -1), True)):
        with torch.no_grad():
            expected = theirs.forward_intermediates(
                torch.from_numpy(x).permute(0, 3, 1, 2),
                indices=list(blocks) if isinstance(blocks, tuple) else blocks,
                norm=norm,
                return_prefix_tokens=True,
                intermediates_only=True,
            )
        found = ours.intermediates(x, blocks=blocks, norm=norm)
        assert len(found.patches) == len(expected)
        for i, (patches, prefix) in enumerate(expected):
            assert_close(found.patches[i], patches.permute(0, 2, 3, 1).numpy(), 1e-4)
            assert_close(found.prefix[i], prefix.numpy(), 1e-4)
