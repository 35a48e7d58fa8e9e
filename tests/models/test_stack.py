"""Blocks as one loop of the program: the values of blocks one by one, for less to compile."""

import jax
import numpy as np
import pytest
from flax import nnx

from vit_registers.models.edits import Edits

SHAPE = {"depth": 4, "num_registers": 2, "drop_path": 0.5, "summary_factor": 2, "mask": "fractal"}


def _program(model, images, function):
    graph, state = nnx.split(model)
    return jax.jit(lambda state: function(nnx.merge(graph, state), images)).lower(state)


def _temporary_bytes(program):
    return program.compile().memory_analysis().temp_size_in_bytes


def _logits(model, x):
    return model(x).logits


def _gradient(model, x):
    return jax.grad(lambda model: (model(x).logits ** 2).sum())(model)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "block"])
def test_all_that_comes_out_is_as_from_blocks_one_by_one(build, images, forward, remat):
    """The first block's rate is 0, where an array of rates must drop nothing and scale nothing."""
    x, key = images(8), jax.random.key(3)
    for drop_key in (None, key):
        loop = forward(build(**SHAPE, remat=remat), x, drop_key)
        scan = forward(build(**SHAPE, remat=remat, use_scan=True), x, drop_key)
        assert jax.tree.structure(scan) == jax.tree.structure(loop)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), scan, loop)


def test_taps_that_nobody_reads_are_not_kept(build, images):
    x = images(2, (32, 32))
    shape = SHAPE | {"image_size": (32, 32), "use_scan": True}
    shallow, deep = (build(**shape | {"depth": depth}) for depth in (3, 9))
    per_block = _temporary_bytes(_program(deep, x, _logits)) - _temporary_bytes(_program(shallow, x, _logits))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(deep.blocks[0])))
    assert per_block / 6 < 1.1 * weights  # the stack of the weights, and no activation


def test_the_program_does_not_grow_with_depth(build, images):
    sizes = []
    for depth in (3, 9):
        text = _program(build(**SHAPE | {"depth": depth, "use_scan": True}), images(2), _logits).as_text()
        sizes.append(text.count("stablehlo.dot_general"))
    assert sizes[0] == sizes[1]


def test_edits_know_the_blocks_apart_as_ever(build, images):
    def edited(model, x):
        edits = Edits(resid=lambda i, resid: resid.at[:, 4].set(0.0) if i == 2 else resid)
        return model(x, edits=edits)

    x = images(2)
    loop, scan = (jax.jit(edited)(build(**SHAPE, use_scan=use), x) for use in (False, True))
    np.testing.assert_array_equal(scan.taps["resid"][2][:, 4], 0.0)
    np.testing.assert_array_equal(scan.logits, loop.logits)
