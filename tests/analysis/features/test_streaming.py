"""Every experiment in small parts equals the experiment in one part, on 200 images."""

import numpy as np
import pytest
from flax import nnx

from tests.fixtures.digits import make_config
from vit_registers.analysis import opening
from vit_registers.analysis import subject as subject_file
from vit_registers.analysis.experiments import probe_global
from vit_registers.analysis.experiments.catalog import EXPERIMENTS
from vit_registers.analysis.features.extract import extract
from vit_registers.analysis.options import Options
from vit_registers.data.loaders import open_data
from vit_registers.models.vit import ViT

pytestmark = pytest.mark.slow

NUM_IMAGES = 200
OPTIONS = Options(rule="quantile:0.97", num_edited=NUM_IMAGES, num_examples=2)
MODEL = {
    "width": 32,
    "num_heads": 4,
    "mlp_dim": 32,
    "patch_size": 2,
    "num_registers": 2,
    "summary_factor": 2,
    "mask": "fractal",
    "pooling": "cls",
}


def _measured(root, batch_size):
    """All experiments on a random model, whose features came in batches of that size."""
    config = make_config(model=MODEL, data={"eval_batch_size": batch_size})
    opened = opening.OpenedModel(
        name="random",
        path="random",
        step=None,
        sha256="0",
        model=ViT(config.model, rngs=nnx.Rngs(0)),
        config=config,
        loader=open_data(config),
        num_images=NUM_IMAGES,
    )
    names = dict.fromkeys(name for experiment in EXPERIMENTS.values() for name in experiment.features)
    subject = extract(opened, tuple(names), root, OPTIONS)
    return {name: experiment.run([subject], OPTIONS) for name, experiment in EXPERIMENTS.items()}


def test_parts_give_what_the_whole_gives(tmp_path, monkeypatch):
    """One test, because two passes over all experiments take long."""
    monkeypatch.setattr(probe_global, "_SEEDS", (0,))  # more seeds do not test parts
    results = []
    for size in (24, NUM_IMAGES):
        monkeypatch.setattr(subject_file, "_PART", size)
        results.append(_measured(tmp_path / str(size), size))
    for name in EXPERIMENTS:
        parts, whole = (found[name] for found in results)
        assert parts.gaps == whole.gaps
        assert [table.columns for table in parts.tables] == [table.columns for table in whole.tables]
        for one, other in zip(parts.tables, whole.tables, strict=True):
            _compare(one, other, name)


def _compare(one, other, name):
    assert len(one.rows) == len(other.rows), name
    for row, expected in zip(one.rows, other.rows, strict=True):
        for cell, value in zip(row, expected, strict=True):
            if isinstance(value, float):
                np.testing.assert_allclose(cell, value, rtol=1e-4, atol=1e-5, err_msg=f"{name}: {row}")
            else:
                assert cell == value, (name, row)
