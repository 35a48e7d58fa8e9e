"""Features that were damaged on the disk are computed again, whichever they are; numbers stay the same."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from tests.fixtures.quick import parametrize_quick
from vit_registers.analysis import opening
from vit_registers.analysis.experiments.catalog import EXPERIMENTS
from vit_registers.analysis.features.extract import extract
from vit_registers.analysis.subject import Options
from vit_registers.config import Config, Data, Model
from vit_registers.data.loaders import open_data
from vit_registers.models.vit import ViT

OPTIONS = Options(rule="quantile:0.9", num_edited=12)
MODEL = Model(
    width=32, depth=1, num_heads=4, mlp_dim=32, patch_size=2, image_size=(8, 8), channels=1, num_classes=10
)
NAMES = ("norms_LxT", "image_HxWxC", "logits_Y")


@pytest.fixture(scope="module")
def opened():
    data = Data(
        loader="memory", name="digits", eval_split="test", train_ops="", eval_ops="", mean=(0.5,), std=(0.5,)
    )
    config = dataclasses.replace(Config(), model=MODEL, data=dataclasses.replace(data, eval_batch_size=8))
    model, loader = ViT(MODEL, rngs=nnx.Rngs(0)), open_data(config)
    return opening.OpenedModel(
        name="a", path="a", step=None, sha256="a", model=model, config=config, loader=loader, num_images=12
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("reuse")


def _measured(opened, root):
    subject = extract(opened, NAMES, root, OPTIONS)
    results = [EXPERIMENTS[name].run([subject], OPTIONS) for name in ("accuracy", "remove-outliers")]
    return [table.rows for result in results for table in result.tables]


@parametrize_quick("name", [*NAMES, "is_valid", "label", "edited"])
def test_a_damaged_feature_is_computed_again(opened, root, capfd, name):
    """Of an edited model as well."""
    expected = _measured(opened, root)
    capfd.readouterr()
    assert _measured(opened, root) == expected
    assert "computed again" not in capfd.readouterr().err
    pattern = "a-remove-*/norms_LxT.npy" if name == "edited" else f"a-[0-9a-f]*/{name}.npy"
    path = sorted((root / "features").glob(pattern))[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert _measured(opened, root) == expected
    assert f"{path} is damaged (its SHA-256 is not the one recorded)" in capfd.readouterr().err
    assert np.isfinite(np.load(path)).all()
