"""Terms of cls, in the last block and by block: cases whose answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from vit_registers.analysis.experiments import (
    cls_terms,
    cls_terms_by_layer,
    register_activations,
    skip_and_registers,
)
from vit_registers.analysis.options import Options
from vit_registers.models.tokens import TokenLayout

LAYOUT = TokenLayout(has_cls=True, num_registers=2, summary_grids=(), patch_grid=(2, 3))
NAMES = ("cls", "registers", "patches", "bias", "skip")
CLS, REGISTERS, PATCHES, BIAS, SKIP = range(5)
IMAGES, BLOCKS, WIDTH = 200, 3, 16


def make_terms(seed=0):
    """Block 1 reads patches, block 3 the skip connection; registers are large where patches are small."""
    rng = np.random.default_rng(seed)
    terms = np.zeros((IMAGES, BLOCKS, 5, WIDTH), np.float32)
    terms[:, :, BIAS] = 0.5
    terms[:, :, PATCHES, :4] = rng.normal(size=(IMAGES, BLOCKS, 4)) * [[[9], [3], [1]]]
    terms[:, :, REGISTERS, :4] = 0.1 * rng.normal(size=(IMAGES, BLOCKS, 4))
    terms[:, 1:, SKIP, 8:12] = rng.normal(size=(IMAGES, 2, 4)) * [[[3], [9]]]
    terms[:, 2, REGISTERS, :4] *= 1 / np.linalg.norm(terms[:, 2, PATCHES], axis=-1, keepdims=True) ** 2
    return terms


def make_subject(name="model", **more):
    terms = make_terms()
    features = {
        "terms_LxExD": terms,
        "terms_ExD": terms[:, -1],
        "head_terms_GxD": 2 * terms[:, -1, :3],
        **more,
    }
    store = SimpleNamespace(read=features.__getitem__, num_read=lambda: IMAGES)
    tokens = {
        "cls": slice(0, 1),
        "register 0": slice(1, 2),
        "register 1": slice(2, 3),
        "patches": slice(3, 9),
    }
    return SimpleNamespace(
        name=name, layout=LAYOUT, store=store, term_names=lambda: NAMES, tokens=lambda: tokens, train=None
    )


def test_the_last_block_is_its_skip_connection():
    result = cls_terms.EXPERIMENT.result([make_subject()], Options())
    (table,) = result.tables
    rows = {row[1]: row[2:] for row in table.rows}
    assert list(rows) == [*NAMES, "non-patch"]
    patches, skip, others = (rows[name] for name in ("patches", "skip", "non-patch"))
    assert rows["cls"] == (None,) * 7 or rows["cls"][:2] == (None, None)
    assert rows["bias"][0] == pytest.approx(0.5 * WIDTH**0.5) and rows["bias"][4] is None
    assert skip[0] == pytest.approx(np.linalg.norm(make_terms()[:, -1, SKIP], axis=-1).mean(), rel=1e-5)
    assert skip[5] > 0.98 and others[5] > 0.98 and patches[5] < 0.15  # CKA with the sum
    assert patches[3] > 0.98 and skip[3] is None  # with attention, which has no skip connection
    assert patches[6] < patches[5] and abs(patches[6]) < 0.1
    assert [picture.name for picture in result.pictures] == ["cka", "cka-with-the-sum", "norms"]
    assert "unbiased" in result.definition


def test_before_the_projection_there_is_no_skip_connection():
    options = Options(is_before_projection=True)
    result = cls_terms.EXPERIMENT.result([make_subject()], options)
    (table,) = result.tables
    rows = {row[1]: row[2:] for row in table.rows}
    assert list(rows) == ["cls", "registers", "patches", "non-patch"]
    after = {
        row[1]: row[2:] for row in cls_terms.EXPERIMENT.result([make_subject()], Options()).tables[0].rows
    }
    assert rows["patches"][0] == pytest.approx(2 * after["patches"][0], rel=1e-5)
    assert rows["patches"][3] == pytest.approx(after["patches"][3]) and rows["patches"][5] is None
    assert [picture.name for picture in result.pictures] == ["cka", "norms"]
    assert "--before_projection" in result.definition


def test_few_images_are_said_to_bias_cka():
    subject = make_subject()
    noise = np.random.default_rng(0).normal(size=(12, 5, WIDTH)).astype(np.float32)
    few = make_subject(terms_ExD=noise, name="few")
    result = cls_terms.EXPERIMENT.result([subject, few], Options())
    assert [line.split(":")[0] for line in result.cautions if "biased upward" in line] == ["few"]


def test_blocks_get_less_from_patches_one_after_the_other():
    result = cls_terms_by_layer.EXPERIMENT.result([make_subject()], Options())
    (table,) = result.tables
    cka = {(row[1], row[2]): row[6] for row in table.rows}
    assert cka[1, "patches"] > 0.99 > cka[2, "patches"] > 0.3 > cka[3, "patches"]
    assert cka[1, "skip"] is None and cka[3, "skip"] > 0.98
    assert [picture.name for picture in result.pictures] == ["cka-model", "norms-model"]


def test_directions_and_norms_that_two_terms_share():
    result = skip_and_registers.EXPERIMENT.result([make_subject()], Options())
    (table,) = result.tables
    rows = {(row[1], row[2]): row[3:] for row in table.rows}
    correlation, cka, smallest, _, largest, overlap, by_chance, count = rows[3, "patches and registers"]
    assert correlation < -0.8 and abs(cka) < 0.1 and count == 4
    assert largest < 0.1 and overlap == pytest.approx(1) and by_chance == 0.25
    _, _, smallest, _, _, overlap, _, _ = rows[3, "patches and skip"]
    assert smallest == pytest.approx(90) and overlap == pytest.approx(0)
    assert rows[1, "patches and skip"] == (None,) * 8  # nothing was skipped to the first block
    assert [picture.name for picture in result.pictures] == ["angles-model", "correlation-model"]


def test_a_register_is_compared_with_the_other_registers_and_with_all_tokens():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(IMAGES, 2, 2, WIDTH)).astype(np.float32)
    hidden[:, 0, 1] *= 5
    norms = np.ones((IMAGES, BLOCKS + 1, 9))
    norms[:, -2, 1:3] = np.linalg.norm(hidden[:, 0], axis=-1)
    norms[:50, -2, 6] = 1000  # a patch is larger in a quarter of the images
    subject = make_subject(register_hidden_2xRxD=hidden, norms_LxT=norms)
    result = register_activations.EXPERIMENT.result([subject], Options())
    (own,), others = (table.rows for table in result.tables)
    assert own[1:3] == (1, 100.0) and own[5] == 75.0
    assert [row[1] for row in others] == ["cls", "register 0", "register 1", "patches"]
    assert [row[4] for row in others] == [0, 0, 75, 25] and others[-1][3] == 1000
