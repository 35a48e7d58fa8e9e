"""What `structured` finds in a mask."""

import jax
import numpy as np
import pytest

from vit_registers.models.attention.api import BACKENDS
from vit_registers.models.attention.structured import num_pairs, runs
from vit_registers.models.masks import MASKS, build_mask
from vit_registers.models.tokens import TokenLayout, summary_grids


def mask_of(name, k, side=14):
    grid = (side, side)
    layout = TokenLayout(has_cls=True, num_registers=4, summary_grids=summary_grids(grid, k), patch_grid=grid)
    return build_mask(name, layout)


@pytest.mark.parametrize("name", [name for name in MASKS if name != "none"])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_runs_hold_every_allowed_pair_once(name, k):
    mask_TxT = mask_of(name, k)
    covered = np.zeros(mask_TxT.shape, int)
    at = 0
    for run in runs(mask_TxT):
        assert run.start == at
        at = run.stop
        covered[run.start : run.stop, run.keys] += 1
        rows, column = np.nonzero(run.is_gathered_RxM)
        np.add.at(covered, (run.start + rows, run.gathered_RxM[rows, column]), 1)
    assert at == len(mask_TxT)
    assert (covered[mask_TxT] == 1).all()
    assert (covered <= 1).all()
    assert num_pairs(mask_TxT) >= covered.sum()


def test_fractal_masks_of_14_x_14_leave_out_what_they_can():
    # With cls and 4 registers: pairs that are computed, of all. The masks allow 0.664, 0.876 and 0.929 of
    # them; of the last it is not worth the trouble.
    found = {k: num_pairs(mask_of("fractal", k)) / mask_of("fractal", k).size for k in (2, 3, 4)}
    assert found == pytest.approx({2: 0.693, 3: 0.878, 4: 1.0}, abs=0.001)
    patches = runs(mask_of("fractal", 2))[-1]
    # All patches; themselves, cls, registers and the one summary of all; one summary of each other level.
    assert (patches.stop - patches.start, len(patches.keys), patches.gathered_RxM.shape[1]) == (196, 202, 2)


@pytest.mark.parametrize("mask", ["random", "full"])
def test_a_mask_without_structure_is_attention_in_plain_xla(mask):
    rng = np.random.default_rng(0)
    mask_TxT = rng.random((60, 60)) < (0.5 if mask == "random" else 1.0)
    (run,) = runs(mask_TxT)
    assert (run.start, run.stop, len(run.keys)) == (0, 60, 60)
    q, k, v = (rng.normal(size=(1, 60, 2, 8)).astype(np.float32) for _ in range(3))
    ours, xla = (
        jax.jit(lambda q, k, v, name=name: BACKENDS[name](q, k, v, mask_TxT=mask_TxT))(q, k, v)
        for name in ("structured", "xla")
    )
    np.testing.assert_array_equal(ours, xla)


def test_a_model_gives_the_same_answers_and_taps(build, forward, images):
    settings = {"image_size": (32, 32), "summary_factor": 2, "mask": "fractal_local", "positions": "alibi2d"}
    found, expected = (
        forward(build(attention=name, **settings), images(size=(32, 32))) for name in ("structured", "xla")
    )
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5), found, expected)
