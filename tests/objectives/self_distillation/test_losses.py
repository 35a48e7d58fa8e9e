"""Heads, targets and losses of self-distillation: check values of the released code, torch, properties.

The inputs of the check values are sin(p + f n), n = 0, 1, ...; the values are outputs of DINOv2's classes
(facebookresearch/dinov2 at b8931f7) on a CPU in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_registers.objectives.self_distillation import heads, losses, targets


def wave(shape, phase, frequency):
    """sin(phase + frequency n) in row-major order, float32."""
    number = int(np.prod(shape))
    return np.sin(phase + frequency * np.arange(number)).astype(np.float32).reshape(shape)


TEACHER_MxZ = 0.3 * wave((6, 8), 0.4, 1.3)
EVERY_M = np.ones(6, bool)


def sinkhorn(logits_MxZ, temperature=0.05, is_row_M=None, chunks=1):
    rows = np.ones(len(logits_MxZ), bool) if is_row_M is None else is_row_M
    parts = (jnp.asarray(x).reshape(chunks, -1, *np.shape(x)[1:]) for x in (logits_MxZ, rows))
    return targets.sinkhorn_offset(lambda chunk: chunk, *parts, temperature)


def probabilities(logits, offset, temperature=0.05):
    return np.asarray(losses.target_probabilities(jnp.asarray(logits), offset, temperature))


def test_sinkhorn_check_values():
    t_MxZ = probabilities(TEACHER_MxZ, sinkhorn(TEACHER_MxZ))
    want = [0.0390750, 0.393325, 0.0202760, 9.0e-6, 3.8e-5, 0.205704, 0.338922, 0.00265]
    np.testing.assert_allclose(t_MxZ[0], want, rtol=1e-5, atol=3e-6)
    np.testing.assert_allclose(
        t_MxZ.sum(0), [0.772, 0.789, 0.707, 0.697, 0.771, 0.777, 0.789, 0.698], atol=6e-4
    )
    np.testing.assert_allclose(t_MxZ.sum(1), 1, atol=1e-6)


def released_sinkhorn(logits_MxZ, temperature):
    """The published algorithm in float64."""
    q = np.exp(np.asarray(logits_MxZ, np.float64) / temperature).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdims=True) * q.shape[0]
        q /= q.sum(0, keepdims=True) * q.shape[1]
    return (q * q.shape[1]).T


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_sinkhorn_in_chunks_is_the_published_algorithm(chunks):
    logits_MxZ = np.random.default_rng(0).standard_normal((16, 12)).astype(np.float32) * 0.3
    t_MxZ = probabilities(logits_MxZ, sinkhorn(logits_MxZ, chunks=chunks))
    np.testing.assert_allclose(t_MxZ, released_sinkhorn(logits_MxZ, 0.05), rtol=1e-4, atol=1e-7)


def test_padded_rows_change_nothing_in_sinkhorn():
    padded = np.concatenate([TEACHER_MxZ, np.full((2, 8), 5.0, np.float32)])
    is_row = np.arange(8) < 6
    a, b = sinkhorn(padded, is_row_M=is_row, chunks=2), sinkhorn(TEACHER_MxZ)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert not np.asarray(sinkhorn(padded, is_row_M=np.zeros(8, bool))).any()


def test_sinkhorn_does_not_overflow_where_the_published_exponential_does():
    logits = TEACHER_MxZ * 40
    assert (logits / 0.05).max() > np.log(np.finfo(np.float32).max)
    t = probabilities(logits, sinkhorn(logits))
    assert np.isfinite(t).all()
    np.testing.assert_allclose(t, released_sinkhorn(logits - logits.max(), 0.05), rtol=2e-4, atol=1e-6)


def test_centred_softmax_and_its_centre():
    t = probabilities(TEACHER_MxZ, targets.centre_offset(jnp.zeros(8), 0.05))
    want = [0.014531, 0.539014, 0.003276, 6e-6, 3.2e-5, 0.045168, 0.397079, 0.000895]
    np.testing.assert_allclose(t[0], want, rtol=1e-5, atol=1e-6)
    centre = targets.update_centre(jnp.zeros(8), TEACHER_MxZ.sum(0), 6)
    want = [0.001157, 0.000659, -0.000805, -0.001089, 0.000222, 0.001208, 0.000424, -0.000981]
    np.testing.assert_allclose(centre, want, atol=6e-7)
    np.testing.assert_array_equal(targets.update_centre(centre, jnp.zeros(8), 0), centre)
    shifted = probabilities(TEACHER_MxZ, targets.centre_offset(centre, 0.05))
    np.testing.assert_allclose(
        shifted, jax.nn.softmax((TEACHER_MxZ - np.asarray(centre)[None]) / 0.05), rtol=1e-5
    )


def _log(t_MxZ):
    """Logits and offset whose targets at T = 1 are t."""
    return jnp.log(t_MxZ), jnp.zeros(t_MxZ.shape[-1])


def test_dino_and_ibot_check_values():
    t_MxZ = probabilities(TEACHER_MxZ, sinkhorn(TEACHER_MxZ))
    teacher, offset = _log(t_MxZ)
    student = wave((3, 8), 1, 1.1)
    ce = losses.cross_entropies(student[:, None], teacher[:3, None], offset, 1.0)[:, 0, 0]
    np.testing.assert_allclose(ce.mean(), 11.553146, rtol=1e-5)
    student, weight = wave((4, 8), 1, 1.1), np.array([1 / 3, 1 / 3, 1 / 3, 1], np.float32)
    ce = losses.cross_entropies(student[:, None], teacher[:4, None], offset, 1.0)[:, 0, 0]
    np.testing.assert_allclose((ce * weight).sum() / 4, 5.029314, rtol=1e-5)


def test_no_gradient_to_the_teacher():
    def loss(teacher, offset):
        return losses.cross_entropies(wave((3, 2, 8), 1, 1.1), teacher, offset, 0.05).sum()

    grads = jax.grad(loss, argnums=(0, 1))(jnp.asarray(wave((3, 2, 8), 0, 1.7)), jnp.ones(8))
    assert not any(np.asarray(g).any() for g in grads)


def test_uniform_rows_have_ln_of_the_prototypes():
    ce = losses.cross_entropies(jnp.zeros((2, 3, 64)), jnp.zeros((2, 2, 64)), jnp.zeros(64), 0.04)
    np.testing.assert_allclose(ce, np.log(64), rtol=1e-6)


def test_koleo_check_value_and_neighbours():
    x = heads.unit(jnp.asarray(wave((6, 5), 0.3, 1.9)))
    value = losses.koleo(x[None], EVERY_M[None])[0]
    np.testing.assert_allclose(value.mean(), 1.885481, rtol=1e-5)
    neighbours = [2, 3, 0, 1, 2, 3]
    distance = np.linalg.norm(np.asarray(x) - np.asarray(x)[neighbours], axis=-1)
    np.testing.assert_allclose(value, -np.log(distance), rtol=1e-5)


def test_koleo_against_torch_with_its_gradient():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(1).standard_normal((2, 6, 5)).astype(np.float32)

    def ours(x):
        return losses.koleo(heads.unit(x), jnp.ones((2, 6), bool)).mean(axis=1).sum()

    leaf = torch.tensor(x, requires_grad=True)
    normal = torch.nn.functional.normalize(leaf, eps=1e-8, dim=-1)
    total = 0
    for one in normal:
        dots = one @ one.T
        dots.fill_diagonal_(-1)
        distance = torch.nn.PairwiseDistance(2, eps=1e-8)(one, one[dots.argmax(dim=1)])
        total = total - torch.log(distance + 1e-8).mean()
    total.backward()
    value, grad = jax.value_and_grad(ours)(jnp.asarray(x))
    np.testing.assert_allclose(value, total.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_koleo_of_equal_features_is_finite(dtype):
    value, grad = jax.value_and_grad(lambda x: losses.koleo(x, jnp.ones((1, 4), bool)).sum())(
        jnp.ones((1, 4, 3), dtype) / 2
    )
    assert np.isfinite(value)
    assert np.isfinite(np.asarray(grad, np.float32)).all()


def test_koleo_leaves_out_padding_and_lone_rows():
    x = heads.unit(jnp.asarray(wave((6, 5), 0.3, 1.9)))
    padded = jnp.concatenate([x, x[:2]])[None]
    is_row = (np.arange(8) < 6)[None]
    value = losses.koleo(padded, is_row)[0]
    np.testing.assert_allclose(value[:6], losses.koleo(x[None], EVERY_M[None])[0], rtol=1e-6)
    assert not np.asarray(value[6:]).any()
    assert not np.asarray(losses.koleo(x[None, :1], np.ones((1, 1), bool))).any()


def test_head_check_value():
    shapes = [(5, 4), (5,), (5, 5), (5,), (3, 5), (3,)]
    w = [wave(shape, 0.1 * i, 1.3) for i, shape in enumerate(shapes)]
    g, v = 1 + 0.1 * wave((6, 1), 0.6, 1.3), wave((6, 3), 0.7, 1.3)
    layers = {i: {"kernel": w[2 * i].T, "bias": w[2 * i + 1]} for i in range(3)}
    head = jax.tree.map(jnp.asarray, {"mlp": layers, heads.LAST_LAYER: {"g": g[:, 0], "v": v.T}})
    out = heads.logits(head, wave((1, 4), 0.5, 0.9))
    want = [0.888172, -0.433433, -0.137961, 0.634017, -0.835969, 0.502532]
    np.testing.assert_allclose(out[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("num_prototypes", "bottleneck", "number"),
    [(65_536, 256, 23_662_848), (131_072, 384, 57_545_088), (131_072, 256, 40_505_600)],
)
def test_head_sizes(num_prototypes, bottleneck, number):
    shapes = jax.eval_shape(
        lambda key: heads.init_head(
            key, width=1024, hidden=2048, bottleneck=bottleneck, num_prototypes=num_prototypes
        ),
        jax.random.key(0),
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == number


def test_initial_values():
    head = heads.init_head(jax.random.key(0), width=64, hidden=256, bottleneck=256, num_prototypes=512)
    assert 0.0610 < np.abs(head[heads.LAST_LAYER]["v"]).max() <= 0.0625
    np.testing.assert_allclose(np.std(head["mlp"][1]["kernel"]), 0.02, rtol=0.02)
    assert np.abs(heads.logits(head, wave((3, 64), 0, 1.7))).max() <= 1 + 1e-6


def test_the_gradient_of_a_zero_vector_is_finite():
    value, grad = jax.value_and_grad(lambda x: heads.unit(x).sum())(jnp.zeros((2, 3)))
    assert value == 0
    assert np.isfinite(grad).all()
