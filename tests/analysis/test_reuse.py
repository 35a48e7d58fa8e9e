"""Damaged features on the disk are computed again, and the numbers stay equal."""

import numpy as np
import pytest
from flax import nnx

from tests.fixtures.digits import make_config
from vit_registers.analysis import opening
from vit_registers.analysis.experiments.catalog import EXPERIMENTS
from vit_registers.analysis.features.extract import extract
from vit_registers.analysis.options import Options
from vit_registers.data.loaders import open_data
from vit_registers.models.vit import ViT

OPTIONS = Options(rule="quantile:0.9", num_edited=12)
CONFIG = make_config(
    model={"width": 32, "num_heads": 4, "mlp_dim": 32, "patch_size": 2}, data={"eval_batch_size": 8}
)
NAMES = ("norms_LxT", "image_HxWxC", "logits_Y")


@pytest.fixture(scope="module")
def opened():
    model, loader = ViT(CONFIG.model, rngs=nnx.Rngs(0)), open_data(CONFIG)
    return opening.OpenedModel(
        name="a", path="a", step=None, sha256="a", model=model, config=CONFIG, loader=loader, num_images=12
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("reuse")


def _measured(opened, root):
    subject = extract(opened, NAMES, root, OPTIONS)
    results = [EXPERIMENTS[name].run([subject], OPTIONS) for name in ("accuracy", "remove-outliers")]
    return [table.rows for result in results for table in result.tables]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "is_valid", "label", "edited"])
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
