"""What part of an image a model is shown: the same share at every image size."""

import pytest

from vit_registers.errors import ConfigError
from vit_registers.interop.preprocessing import eval_ops
from vit_registers.interop.shown import eval_ops_at, shown_part

LARGE = "resize_small({}, 'pil_bicubic') | central_crop(rounding='half_even')"
AT_HALF = {  # at 112 px, of what was made for 224
    LARGE.format(256): LARGE.format(128),
    "resize_small(256) | central_crop": "resize_small(128) | central_crop",
    "resize_small(method='area', size=249)": "resize_small(method='area', size=124)",
    "decode | resize_small(224) | central_crop": "decode | resize_small(112) | central_crop",
    "resize_small(256)": "resize_small(128)",
    "resize('bilinear')": "resize('bilinear')",
    "resize": "resize",
    "": "",
    "flip": "flip",
}


@pytest.mark.parametrize("ops", AT_HALF)
def test_the_short_side_follows_the_image_size(ops):
    assert eval_ops_at(ops, old=(224, 224), new=(112, 112)) == AT_HALF[ops]
    assert eval_ops_at(ops, old=(224, 224), new=(224, 224)) == ops


@pytest.mark.parametrize("size", [98, 224, 392, 448, 518])
@pytest.mark.parametrize("share", [1.0, 0.9, 7 / 8])
def test_the_share_is_kept(size, share):
    """Of DINOv2's 518 px and others, to a pixel."""
    ops = eval_ops_at(
        eval_ops((518, 518), share, "pil_bicubic", is_floor=False), old=(518, 518), new=(size, size)
    )
    assert shown_part(ops, (size, size)).share == pytest.approx(share, abs=1.5 / size)


@pytest.mark.parametrize(
    "ops", ["central_crop", "resize_small | central_crop", "random_crop(4) | central_crop"]
)
def test_what_cannot_be_scaled_is_refused(ops):
    with pytest.raises(ConfigError, match=r"cannot be scaled .* give --config\.data\.eval_ops as well"):
        eval_ops_at(ops, old=(224, 224), new=(112, 112))


def test_what_is_shown_in_words():
    found = shown_part(LARGE.format(256), (224, 224))
    assert found == (0.875, "pil_bicubic", "87.5 % of the short side (76.6 % of a square image)")
    assert shown_part("resize('area')", (224, 112))[1:] == (
        "area",
        "whole images, resized to 224 x 112 px of any aspect",
    )
    assert shown_part("", (8, 8)).text == "whole images, not resized"
    for ops in ("inception_crop | flip", "resize_small(", "3 | 4", "central_crop"):
        assert shown_part(ops, (8, 8)) == (None, None, f"what data.eval_ops={ops!r} leaves")
