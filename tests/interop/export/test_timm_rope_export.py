"""Models of ours whose rotation counts patches, as timm's class Eva reads them, and back."""

import jax
import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from vit_registers.config import Data
from vit_registers.errors import CheckpointError
from vit_registers.interop.export import targets

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("timm")

INDEX = "coordinates='index', pairs='interleaved'"
EVA02 = {"positions": f"learned + rope2d(base=10000, {INDEX}, reference=6)", "mlp": "swiglu", "mlp_dim": 85}
PE = {"positions": f"learned + rope2d(base=10000, {INDEX}, reference=4, offset=1, order='xy')"}
PE |= {"use_norm_pre": True, "norm_eps": 1e-5, "use_patch_bias": False}
OURS = {
    "EVA-02 CLIP": EVA02 | {"use_mlp_norm": True, "use_attention_norm": True},
    "PE core": PE | {"pooling": "map", "pool_tokens": "all", "pool_num_heads": 8, "pool_mlp_dim": 48},
    "learned": {"positions": f"rope2d(base=10, {INDEX}, order='xy', learned=True)", "layer_scale_init": 1.0},
    "PE lang": PE | {"use_final_norm": False, "num_classes": 0, "pooling": "gap"},
    "registers": {
        "positions": "rope2d(base=50, coordinates='index', jitter=1.5)",
        "num_registers": 2,
        "use_cls": False,
        "pooling": "gap",
        "use_norm_after_pool": True,
        "has_cls_position": False,
        "layer_scale_init": 1.0,
    },
    "EVA-02, packed": EVA02 | {"use_qkv_bias": False, "num_registers": 2, "extra_positions": "learned"},
}


@parametrize_quick("name", OURS, number=3)
def test_ours_in_timm(name, timm, make, params, tmp_path, images, forward, tokens, assert_close, from_folder):
    ours = make(**OURS[name])
    exported = targets.export(ours.model, params(ours), "timm")
    assert targets.is_config_complete(exported) and not exported.notes
    targets.write(exported, tmp_path, np.float32, Data(mean=(0.5,) * 3, std=(0.5,) * 3))
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, dynamic_img_size=True).eval()
    for size in ((32, 32), (24, 56)):
        outputs = forward(ours, images(size))
        with torch.no_grad():
            features = theirs.forward_features(torch.from_numpy(images(size)).permute(0, 3, 1, 2))
            answer = theirs.forward_head(features)
        is_normed = ours.model.use_final_norm and not ours.model.use_norm_after_pool
        assert_close(tokens(outputs), features, 1e-5 if is_normed else 3e-5)
        assert_close(outputs.pooled if outputs.logits is None else outputs.logits, answer)
    again = from_folder(tmp_path)
    assert again.model.positions == ours.model.positions and again.model.pooling == ours.model.pooling
    jax.tree.map(np.testing.assert_array_equal, params(again), params(ours))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"positions": f"sincos2d + rope2d({INDEX})"}, "positions='sincos2d"),
        ({"positions": f"rope2d({INDEX}, reference=4, learned=True)"}, "learned=True"),
        ({"positions": f"rope2d({INDEX})", "activation": "gelu_tanh"}, "activation='gelu_tanh'"),
        ({"positions": f"rope2d({INDEX})", "pooling": "cls_gap"}, "pooling='cls_gap'"),
        ({"positions": f"rope2d({INDEX})", "pooling": "map"}, "pool_tokens='patches' and cls"),
        ({"positions": f"rope2d({INDEX})", "mask": "window(radius=1)"}, "mask='window"),
        ({"positions": f"rope2d({INDEX})", "use_norm_pre": True}, "no table of positions"),
    ],
)
def test_what_the_class_lacks_is_refused(settings, match, make, params):
    ours = make(depth=1, **settings)
    with pytest.raises(CheckpointError, match=f"{match}.* cannot be written as 'timm/rope'"):
        targets.export(ours.model, params(ours), "timm")


def test_another_eps_is_noted(make, params):
    ours = make(**EVA02 | {"norm_eps": 1e-5})
    exported = targets.export(ours.model, params(ours), "timm")
    assert "eps=1e-05" in "; ".join(exported.notes) and not targets.is_config_complete(exported)
