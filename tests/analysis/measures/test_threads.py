"""Small fits use one thread of BLAS, large ones as many as before."""

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

from vit_registers.analysis.measures import position_probe, probes
from vit_registers.evaluation import logistic
from vit_registers.evaluation.threads import threads_for


def _threads():
    found = ThreadpoolController().select(user_api="blas").info()
    assert found, "numpy's BLAS is not known to threadpoolctl"
    return {library["num_threads"] for library in found}


@pytest.mark.parametrize(("num_products", "number"), [(900 * 64 * 10, 1), (1_000_000 * 768 * 1000, 2)])
def test_threads_by_size(num_products, number):
    with threadpool_limits(limits=2, user_api="blas"):
        with threads_for(num_products):
            assert _threads() == {number}
        assert _threads() == {2}


def test_probes_of_few_examples_use_one_thread(monkeypatch):
    used = []
    fit, minimize = logistic.fit_logistic, position_probe._Objective.minimize

    def counted(function):
        return lambda *arguments, **named: (used.append(_threads()), function(*arguments, **named))[1]

    monkeypatch.setattr(logistic, "fit_logistic", counted(fit))
    monkeypatch.setattr(position_probe._Objective, "minimize", counted(minimize))
    rng = np.random.default_rng(0)
    token_NxD, label_N = rng.normal(size=(40, 3)).astype(np.float32), np.arange(40) % 2
    with threadpool_limits(limits=2, user_api="blas"):
        probes.logistic_probe(token_NxD, label_N, token_NxD, label_N, strengths=(1.0,), seed=0)
        position_probe.fit_position_probe(token_NxD.reshape(10, 4, 3), seed=0)
    assert len(used) > 2 and all(threads == {1} for threads in used)
