"""Experiments on self-supervised runs: planted collapse, numbers by hand, gaps in one line."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import digits, dino_digits
from vit_registers import loading
from vit_registers.analysis.experiments import (
    feature_spread,
    outliers_by_registers,
    prototype_use,
    self_distillation,
)
from vit_registers.analysis.measures.outliers import find
from vit_registers.analysis.options import Options
from vit_registers.config import Mesh, from_mapping, to_dict
from vit_registers.objectives.self_distillation import heads

CONFIG = from_mapping(dino_digits.get_config().to_dict())
RNG = np.random.default_rng(0)


def _subject(name, run=None, step=None, registers=4, **more):
    given = {"store": SimpleNamespace(missing=lambda names: names), "num_not_finite": 0, "num_parameters": 1}
    given["params"] = None
    layout = SimpleNamespace(num_registers=registers, num_summaries=0)
    return SimpleNamespace(name=name, run=run, step=step, layout=layout, **given | more)


def _write(folder, config=CONFIG, **values):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    logged = {"dino_local": 3.0, "dino_global": 1.0, "ibot": 1.5, "koleo": 0.04, "teacher_entropy": 3.5}
    logged |= {"prototypes_used": 48.0, "feature_std": 0.12} | values
    record = {f"train/{key}": value if math.isfinite(value) else None for key, value in logged.items()}
    lines = [json.dumps({"step": 10 * i, **record}) for i in range(1, 41)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_terms_and_monitors_by_hand(tmp_path):
    run = _write(tmp_path / "run")
    subjects = [_subject("early", run, 200), _subject("late", run, 400)]
    result = self_distillation.EXPERIMENT.run(subjects, Options())
    (table,) = result.tables
    found = {row[1]: row[2:] for row in table.rows}
    ln = math.log(64)
    np.testing.assert_allclose(found["DINO, local"], (3.0, 3.0, 400, 0.75 * ln))
    np.testing.assert_allclose(found["iBOT"], (1.5, 1.5, 400, 0.5 * ln))
    np.testing.assert_allclose(found["entropy of targets, %"][1], 100 * 3.5 / ln)
    np.testing.assert_allclose(found["prototypes in use, %"][1], 75.0)
    np.testing.assert_allclose(found["standard deviation"][1], 0.12 * 8)
    np.testing.assert_allclose(found["distance to the nearest"][1], math.exp(-0.2))
    assert {row[0] for row in table.rows} == {"late"}  # both models have the metrics of one run
    assert result.finding.startswith(
        "For late: no sign of collapse: the entropy of the targets ends at 84.2 %"
    )
    assert "(n = 40 logged steps)" in result.finding and not result.gaps and len(result.pictures) == 3


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"feature_std": 0.001}, "features have collapsed to one vector"),
        ({"teacher_entropy": 0.001, "prototypes_used": 1.1}, "targets have collapsed to few prototypes"),
        ({"teacher_entropy": math.log(64)}, "targets are uniform"),
        ({"teacher_entropy": math.nan}, "values are not finite"),
    ],
)
def test_collapse_is_named(tmp_path, values, verdict):
    run = _write(tmp_path / "run", **values)
    result = self_distillation.EXPERIMENT.run([_subject("run", run, 400)], Options())
    assert f"For run: {verdict}:" in result.finding and result.remarks == {"run": verdict}
    assert "nan" not in result.finding


def test_what_is_missing_is_one_line(tmp_path):
    supervised = from_mapping(digits.get_config().to_dict())
    distillation = dataclasses.replace(CONFIG.objective.self_distillation, koleo_weight=0.0)
    objective = dataclasses.replace(CONFIG.objective, self_distillation=distillation)
    without = dataclasses.replace(CONFIG, objective=objective)
    subjects = [
        _subject("weights"),
        _subject("supervised", _write(tmp_path / "supervised", supervised), 1),
        _subject("empty", tmp_path / "empty", 1),
        _subject("no koleo", _write(tmp_path / "no", without, koleo=0.0), 1),
    ]
    result = self_distillation.EXPERIMENT.run(subjects, Options())
    assert result.gaps == [
        "weights: not a run, so that its training is not known",
        "supervised: objective.name='classification' has no teacher and no prototypes",
        "empty: no metrics.jsonl or config.json: it is not a run, or a converted one",
        "no koleo: koleo_weight is 0, so that distances were not logged",
    ]


def test_spread_against_pairs():
    x_BxD = RNG.standard_normal((40, 6)) + 0.5
    found = feature_spread.spread(x_BxD)
    unit = x_BxD / np.linalg.norm(x_BxD, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(40) for j in range(40) if i != j]
    assert found.cosine == pytest.approx(np.mean([unit[i] @ unit[j] for i, j in pairs]))
    nearest = [min(np.linalg.norm(unit[i] - unit[j]) for j in range(40) if j != i) for i in range(40)]
    assert found.nearest == pytest.approx(np.exp(np.mean(np.log(nearest))), rel=1e-5)
    assert found.std == pytest.approx(unit.std(axis=0).mean() * math.sqrt(6))
    share = np.linalg.eigvalsh(np.cov(unit.T))
    share /= share.sum()
    assert found.dimensions == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_a_sphere_and_a_collapse():
    sphere = feature_spread.spread(RNG.standard_normal((2000, 16)))
    assert sphere.std == pytest.approx(1, abs=0.01) and abs(sphere.cosine) < 0.01
    assert sphere.dimensions == pytest.approx(16, abs=0.2)
    point = feature_spread.spread(np.ones((5, 4)))
    assert point.std < 1e-9 and point.cosine == pytest.approx(1) and point.dimensions is None
    assert point.nearest < 1e-6


@pytest.mark.parametrize("steps", [(None,), (100, 200)])
def test_spread_over_steps(steps):
    run = None if None in steps else Path("run")
    store = SimpleNamespace(read=lambda name: RNG.standard_normal((50, 8)))
    subjects = [_subject(f"m@{step}", run, step, store=store) for step in steps]
    result = feature_spread.EXPERIMENT.result(subjects, Options())
    assert [row[1] for row in result.tables[0].rows] == [*steps]
    assert "n = 50 images" in result.finding and len(result.pictures) == 1


def test_outliers_by_registers_take_the_last_step_of_a_run(tmp_path):
    few, many = np.ones((30, 16)), np.ones((30, 16))
    few[:, 0] = 9.0
    given = [("b", 4, 200, many), ("a", 0, 200, few), ("a0", 0, 100, many)]
    subjects = [
        _subject(
            name,
            tmp_path / str(registers),
            step,
            registers,
            patch_norms=lambda norms=norms: norms,
            outliers=lambda rule, norms=norms: find(norms, rule),
        )
        for name, registers, step, norms in given
    ]
    result = outliers_by_registers.EXPERIMENT.result(subjects, Options(rule="absolute:5"))
    assert result.tables[0].rows == [("a", 200, 0, 0, 6.25, 9.0), ("b", 200, 4, 0, 0.0, 1.0)]
    assert "lowest with 4 registers (0 %) and highest without registers (6.25 %)" in result.finding
    assert len(result.pictures) == 1 and not result.gaps
    alone = outliers_by_registers.EXPERIMENT.result(subjects[:1], Options(rule="absolute:5"))
    assert alone.gaps == [
        "all models have 4 registers; give runs with other numbers of registers with --checkpoint"
    ]
    assert not alone.pictures


def _with_head(head, objective="self_distillation"):
    config = SimpleNamespace(mesh=Mesh(), objective=SimpleNamespace(name=objective))
    copies = {None: head, "student": None if head is None else jax.tree.map(lambda x: -x, head)}
    read = lambda mesh, params: {"dino_head": copies[params]}  # noqa: E731
    return SimpleNamespace(config=config, is_converted=False, read_params=read)


def test_prototype_use_against_the_head(tmp_path, monkeypatch):
    head = heads.init_head(jax.random.key(0), width=8, hidden=16, bottleneck=8, num_prototypes=12)
    x_BxD = RNG.standard_normal((300, 8)).astype(np.float32)
    monkeypatch.setattr(loading, "open_run", lambda run, step: _with_head(head))
    store = SimpleNamespace(read=lambda name: x_BxD)
    subject = _subject("m", tmp_path, 7, store=store)
    result = prototype_use.EXPERIMENT.result([subject], Options())
    logits_BxZ = np.asarray(heads.logits(head, x_BxD), np.float64)
    top_Z = np.bincount(logits_BxZ.argmax(1), minlength=12)
    share = top_Z[top_Z > 0] / 300
    weight = np.exp(logits_BxZ / 0.1)
    mean = (weight / weight.sum(1, keepdims=True)).mean(0)
    ((name, step, total, used, effective, by_mean, largest),) = result.tables[0].rows
    assert (name, step, total, used) == ("m", 7, 12, (top_Z > 0).sum())
    np.testing.assert_allclose(
        (effective, by_mean, largest),
        (np.exp(-(share * np.log(share)).sum()), np.exp(-(mean * np.log(mean)).sum()), top_Z.max() / 3),
        rtol=1e-4,
    )
    assert len(result.pictures) == 1 and not result.remarks
    student = prototype_use.EXPERIMENT.result(
        [_subject("m", tmp_path, 7, store=store, params="student")], Options()
    )
    assert student.tables[0].rows != result.tables[0].rows
    one = prototype_use.EXPERIMENT.result([_subject_of_one_image(tmp_path, x_BxD)], Options())
    assert one.remarks == {"m": "all images have one prototype"}
    monkeypatch.setattr(loading, "open_run", lambda run, step: _with_head(None, "classification"))
    other = prototype_use.EXPERIMENT.result([subject, _subject("w", store=store)], Options())
    assert other.gaps == [
        "m: its objective is not self_distillation, so that it has no prototypes",
        "w: not a run, so that it has no prototypes",
    ]


def _subject_of_one_image(run, x_BxD):
    same_BxD = np.repeat(x_BxD[:1], 5, axis=0)
    return _subject("m", run, 7, store=SimpleNamespace(read=lambda name: same_BxD))
