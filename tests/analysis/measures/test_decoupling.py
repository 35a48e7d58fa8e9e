"""CKA, contributions of terms, registers' activations: against plain forms and cases worked by hand."""

import itertools

import numpy as np
import pytest
import scipy.stats

from vit_registers.analysis.measures import decoupling
from vit_registers.analysis.measures.decoupling import CkaSums, norm_table
from vit_registers.errors import DataError

RNG = np.random.default_rng(2)


def cka_of_traces(x, y):
    """Equation 4 of the paper, on the n x n Gram matrices."""
    centre = np.eye(len(x)) - 1 / len(x)
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    return np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))


def cka(x, y):
    """That of one batch; columns of zeros, which change nothing, give both the same width."""
    width = max(x.shape[1], y.shape[1])
    sums = CkaSums()
    sums.add({name: np.pad(z, ((0, 0), (0, width - z.shape[1]))) for name, z in (("x", x), ("y", y))})
    return sums.cka(["x"], ["y"])


@pytest.mark.parametrize(("n", "d", "e"), [(30, 5, 8), (6, 12, 3), (2, 4, 4)])
def test_cka_is_the_trace_form(n, d, e):
    x = RNG.normal(size=(n, d)) + 3
    y = RNG.normal(size=(n, e)) + x[:, :1]
    assert cka(x, y) == pytest.approx(cka_of_traces(x, y), rel=1e-10)
    assert cka(y, x) == pytest.approx(cka(x, y), rel=1e-12)


def test_cka_does_not_see_rotation_scale_and_shift_but_a_general_map():
    x = RNG.normal(size=(40, 6)) * np.arange(1, 7)
    turn = scipy.stats.ortho_group.rvs(6, random_state=0)
    assert cka(x, 0.01 * x @ turn + 5) == pytest.approx(1, abs=1e-10)
    y = RNG.normal(size=(40, 6)) + x
    assert cka(x @ turn, y) == pytest.approx(cka(x, y), rel=1e-10)
    assert cka(x, x @ np.diag([9.0, 1, 1, 1, 1, 0])) < 0.9
    assert cka(x[:, :1] * [[1, 0]], np.ones((40, 1)) * RNG.normal(size=(40, 1))) < 0.5


def test_cka_of_hand_made_vectors():
    x = np.array([[1.0], [-1], [0], [0]])
    assert cka(x, np.array([[0.0], [0], [1], [-1]])) == pytest.approx(0, abs=1e-15)
    # Centred columns of squared length 2 at 45 degrees: the squared cosine.
    assert cka(x, np.array([[1.0], [-1], [1], [-1]])) == pytest.approx(0.5)


def test_cka_without_variance_is_none():
    x = RNG.normal(size=(7, 3))
    for constant in (np.zeros((7, 2)), np.full((7, 2), 0.1), np.full((7, 2), 1e6 / 3, np.float32)):
        assert cka(x, constant) is None
        assert cka(constant, x) is None
    assert cka(x[:1], x[:1]) is None
    assert cka(x, np.full((7, 2), 1e3) + 1e-4 * x[:, :2]) is not None


def unbiased(x, y):
    width = max(x.shape[1], y.shape[1])
    terms = {name: np.pad(z, ((0, 0), (0, width - z.shape[1]))) for name, z in (("x", x), ("y", y))}
    return CkaSums.of(
        lambda: [{name: z[at] for name, z in terms.items()} for at in np.split(np.arange(len(x)), [3])]
    )


def hsic_1(k, m):
    """Equation 5 of Song et al. (2012), on Gram matrices without centring."""
    n, k, m = len(k), k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    return (np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()) / (
        n * (n - 3)
    )


@pytest.mark.parametrize(("n", "d", "e"), [(30, 5, 8), (6, 12, 3), (4, 4, 4)])
def test_unbiased_cka_is_that_of_gram_matrices(n, d, e):
    x = RNG.normal(size=(n, d)) + 30
    y = RNG.normal(size=(n, e)) + x[:, :1]
    k, m = x @ x.T, y @ y.T
    expected = hsic_1(k, m) / np.sqrt(hsic_1(k, k) * hsic_1(m, m))
    assert unbiased(x, y).unbiased_cka(["x"], ["y"]) == pytest.approx(expected, rel=1e-7)


def test_of_unrelated_noise_the_unbiased_cka_is_0_and_the_other_d_by_n_plus_d():
    found = []
    for _ in range(40):
        sums = unbiased(RNG.normal(size=(60, 30)), RNG.normal(size=(60, 30)))
        found.append((sums.cka(["x"], ["y"]), sums.unbiased_cka(["x"], ["y"])))
    biased, fair = np.mean(found, axis=0)
    assert biased == pytest.approx(30 / 90, abs=0.02)
    assert abs(fair) < 0.02 and np.min(found, axis=0)[1] < 0


def test_the_unbiased_cka_does_not_see_rotation_scale_and_shift_and_approaches_the_other():
    x = RNG.normal(size=(40, 6)) * np.arange(1, 7)
    turn = scipy.stats.ortho_group.rvs(6, random_state=0)
    y = RNG.normal(size=(40, 6)) + x
    same = unbiased(x, 0.01 * x @ turn + 5)
    assert same.unbiased_cka(["x"], ["y"]) == pytest.approx(1, abs=1e-9)
    own = unbiased(x, y).unbiased_cka(["x"], ["y"])
    assert unbiased(x @ turn + 3, 7 * y - 2).unbiased_cka(["x"], ["y"]) == pytest.approx(own, rel=1e-9)
    x = RNG.normal(size=(4000, 3))
    many = unbiased(x, x + RNG.normal(size=x.shape))
    assert many.unbiased_cka(["x"], ["y"]) == pytest.approx(many.cka(["x"], ["y"]), abs=2e-3)


def test_unbiased_cka_that_is_not_defined_is_none():
    x = RNG.normal(size=(7, 3))
    assert unbiased(x, np.full((7, 2), 0.1)).unbiased_cka(["x"], ["y"]) is None
    assert unbiased(x[:3], x[:3]).unbiased_cka(["x"], ["y"]) is None
    assert unbiased(x[:3], x[:3]).cka(["x"], ["y"]) == pytest.approx(1)


def test_unbiased_cka_of_sums_of_terms():
    terms = make_terms(50)
    sums = CkaSums.of(
        lambda: [{name: term[at] for name, term in terms.items()} for at in (slice(20), slice(20, 50))]
    )
    whole, part = sum(terms.values()), terms["skip"] + terms["registers"]
    found = sums.unbiased_cka(list(terms), ["registers", "skip"])
    assert found == pytest.approx(unbiased(whole, part).unbiased_cka(["x"], ["y"]), rel=1e-9)


def test_leading_directions_are_those_of_the_singular_vectors():
    x = RNG.normal(size=(30, 5)) * [1, 9, 0.1, 4, 0] + 7
    axes = unbiased(x, x).leading_directions(["x"], 3)
    _, _, expected = np.linalg.svd(x - x.mean(axis=0))
    np.testing.assert_allclose(np.abs(np.sum(axes * expected[:3].T, axis=0)), 1, atol=1e-8)
    assert unbiased(x, x).leading_directions(["x"], 9).shape == (5, 4)  # it does not vary along one of five
    assert unbiased(x, np.full((30, 2), 0.3)).leading_directions(["y"], 2) is None


def make_terms(n, d=4):
    shared = RNG.normal(size=(n, d))
    return {
        "patches": shared + 0.5 * RNG.normal(size=(n, d)),
        "registers": RNG.normal(size=(n, d)) * 2 - shared,
        "cls_self": 0.1 * RNG.normal(size=(n, d)),
        "skip": shared * 3 + 100,
    }


def in_batches(terms, edges):
    sums = CkaSums()
    for start, stop in itertools.pairwise(edges):
        sums.add({name: term[start:stop] for name, term in terms.items()})
    return sums


def test_sums_give_the_cka_of_sums_whatever_the_batches():
    terms = make_terms(50)
    attention, every = ["patches", "registers", "cls_self"], list(terms)
    for edges in ([0, 50], [0, 1, 2, 30, 50], [0, 17, 17, 50]):
        sums = in_batches(terms, edges)
        assert sums.num_images == 50
        for full in (attention, every, ["registers"]):
            whole = sum(terms[name] for name in full)
            expected = {name: cka(whole, term) for name, term in terms.items()}
            assert sums.with_full(full) == pytest.approx(expected, rel=1e-9)
        halves = sums.cka(["skip", "patches"], ["cls_self", "registers"])
        x, y = terms["skip"] + terms["patches"], terms["cls_self"] + terms["registers"]
        assert halves == pytest.approx(cka_of_traces(x, y), rel=1e-9)


def test_sums_keep_a_small_variance_beside_a_mean_that_drifts():
    n = 60
    large = 1e5 + np.linspace(0, 1, n)[:, None] * 3  # sorted: no batch has the mean of all
    terms = {name: term * 1e-2 + large for name, term in make_terms(n).items()}
    sums = in_batches(terms, [0, 3, 20, 21, 60])
    expected = cka_of_traces(*(terms[x] - terms[x].mean(axis=0) for x in ("patches", "registers")))
    assert sums.cka(["patches"], ["registers"]) == pytest.approx(expected, rel=1e-7)
    assert 0 < expected < 1 - 1e-6


def test_sums_give_none_for_terms_without_variance():
    terms = make_terms(20)
    terms["bias"] = np.full((20, 4), 0.3)
    terms["minus"] = -terms["patches"].astype(np.float32)  # what is left is rounding
    sums = in_batches(terms, [0, 7, 20])
    found = sums.with_full(["patches", "registers", "bias"])
    assert found["bias"] is None
    assert found["patches"] == pytest.approx(cka(terms["patches"] + terms["registers"], terms["patches"]))
    assert sums.cka(["patches", "minus"], ["registers"]) is None
    assert sums.cka(["patches"], ["minus"]) == pytest.approx(1)
    assert in_batches(terms, [0, 1]).cka(["patches"], ["skip"]) is None


def test_norms_shares_and_cosines_of_terms():
    terms = {
        "patches": np.array([[3.0, 0], [0, 0], [1, 1]]),
        "registers": np.array([[0.0, 4], [0, 0], [-1, -1]]),
        "skip": np.array([[0.0, 5], [2, 0], [0, 7]]),
    }
    table = norm_table(terms, ["patches", "registers"])
    np.testing.assert_allclose(table.norm["full"], [5, 0, 0])
    np.testing.assert_allclose(table.norm["skip"], [5, 2, 7])
    np.testing.assert_allclose(table.share["registers"], [4 / 12, 0, np.sqrt(2) / (2 * np.sqrt(2) + 7)])
    np.testing.assert_allclose(sum(table.share.values()), 1)
    np.testing.assert_allclose(table.cosine["patches"], [0.6, np.nan, np.nan])
    np.testing.assert_allclose(table.cosine["skip"], [0.8, np.nan, np.nan])
    with_skip = norm_table(terms, list(terms))
    np.testing.assert_allclose(with_skip.norm["full"], [np.hypot(3, 9), 2, 7])
    summary = table.summary()
    assert summary["norm"]["skip"].median == 5 and summary["norm"]["skip"].mean == pytest.approx(14 / 3)
    assert summary["cosine"]["patches"][:3] == (1, 2, pytest.approx(0.6))


def test_terms_that_are_not_finite_are_refused_by_name():
    terms = {"patches": np.array([[np.nan, 1]]), "skip": np.ones((1, 2))}
    for measure in (CkaSums().add, lambda x: norm_table(x, ["skip"])):
        with pytest.raises(DataError, match="rows of the term 'patches' are not finite"):
            measure(terms)


GROUPS = {"cls": slice(0, 1), "registers": slice(1, 3), "summaries": slice(3, 3), "patches": slice(3, 7)}


def test_shares_leave_out_cls_and_sum_to_one():
    weight = RNG.dirichlet(np.ones(7), size=(4, 3))
    found = decoupling.attention_shares(weight, GROUPS, use_renormalised=True)
    assert list(found) == ["registers", "summaries", "patches"]
    np.testing.assert_allclose(sum(found.values()), 1)
    mean = weight.mean(axis=1)
    np.testing.assert_allclose(found["registers"], mean[:, 1:3].sum(1) / (1 - mean[:, 0]))
    raw = decoupling.attention_shares(weight, GROUPS, use_renormalised=False)
    np.testing.assert_allclose(raw["cls"], mean[:, 0])
    np.testing.assert_allclose(sum(raw.values()), 1)


def test_shares_are_of_the_mean_head_and_nan_where_all_goes_to_cls():
    weight = np.zeros((2, 2, 7))
    weight[0, 0, 1] = 1.0  # one head sees a register only
    weight[0, 1, [0, 3]] = 0.75, 0.25  # the other itself, and a patch
    weight[1, :, 0] = 1
    found = decoupling.attention_shares(weight, GROUPS, use_renormalised=True)
    assert found["registers"][0] == pytest.approx(0.8)  # and not the mean of 1 and 0
    assert np.isnan(found["patches"][1])


def test_layer_similarity_is_the_cosine_with_the_last():
    last = np.array([1.0, 0, 0])
    layers = np.stack([[0.0, 2, 0], [3, 3, 0], [-4, 0, 0], last])[None]
    np.testing.assert_allclose(decoupling.layer_similarity(layers), [[0, np.sqrt(0.5), -1, 1]], atol=1e-15)
    back = 7 * layers[:, ::-1]
    np.testing.assert_allclose(decoupling.layer_similarity(back), [[0, 0, np.sqrt(0.5), 1]], atol=1e-15)


def make_registers():
    """Register 2 is the highest in 8 of 10 images, register 0 in the others."""
    hidden = RNG.normal(size=(10, 4, 6))
    hidden[:, 2] += np.array([0, -50, 0, 0, 20, 0])
    hidden[:2, 0] *= 1000
    return hidden.astype(np.float32), (hidden - hidden.mean(-1, keepdims=True)) * [1, 0.02, 1, 1, 0.05, 1]


def test_register_of_highest_norm_and_its_likeness():
    hidden, normed = make_registers()
    found = decoupling.register_activations(hidden, normed, num_dimensions=3)
    norms = [[np.sqrt((token.astype(float) ** 2).sum()) for token in image] for image in hidden]
    np.testing.assert_allclose(found.norm_BxR, norms, rtol=1e-10)
    assert (found.register, found.consistency) == (2, 0.8)
    ordered = [sorted(image) for image in norms]
    np.testing.assert_allclose(found.ratio_B, [image[-1] / image[-2] for image in ordered])
    for value, tokens in [(found.cosine_before, hidden[:, 2]), (found.cosine_after, normed[:, 2])]:
        unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
        assert value == pytest.approx((unit @ unit.T)[np.triu_indices(10, 1)].mean(), abs=1e-6)
    assert found.cosine_before > 0.98 > found.cosine_after


def test_largest_dimensions_are_chosen_before_the_norm_and_keep_their_sign():
    hidden, normed = make_registers()
    found = decoupling.register_activations(hidden, normed, num_dimensions=2)
    np.testing.assert_array_equal(found.dimensions, [1, 4])
    np.testing.assert_allclose(found.mean_before, hidden[:, 2, [1, 4]].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.mean_after, normed[:, 2, [1, 4]].mean(axis=0))
    assert found.mean_before[0] < 0 < found.mean_before[1]
    assert len(decoupling.register_activations(hidden, normed).dimensions) == 6


def test_one_register_of_one_image_has_no_ratio_and_no_cosine():
    hidden, normed = make_registers()
    found = decoupling.register_activations(hidden[:1, :1], normed[:1, :1])
    assert (found.ratio_B, found.cosine_before, found.cosine_after) == (None, None, None)
    assert (found.register, found.consistency) == (0, 1.0)


def test_a_register_is_compared_with_all_tokens():
    norms = np.array([[1.0, 9, 3, 3], [1, 2, 8, 3], [0, 6, 0, 0]])
    share, ratio = decoupling.highest_of_all(norms, 1)
    assert share == pytest.approx(2 / 3)
    np.testing.assert_allclose(ratio, [3, 0.25, np.nan])
    assert decoupling.highest_of_all(norms[:, :1], 0) == (1.0, None)
