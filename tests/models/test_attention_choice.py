"""model.attention=auto: what it selects, and that it does without a back end that fails or is wrong."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from tests.fixtures.digits import make_config
from vit_registers.config import Model
from vit_registers.models import attention_choice
from vit_registers.models.attention.api import BACKENDS
from vit_registers.models.attention.xla import attend_xla
from vit_registers.train import train

MODEL = Model(
    width=32,
    depth=1,
    num_heads=2,
    patch_size=4,
    image_size=(16, 16),
    summary_factor=2,
    mask="fractal",
    positions="alibi2d",
    num_registers=2,
    dtype="bfloat16",
    attention="auto",
)


def _fail(q, k, v, **settings):
    raise RuntimeError("no kernel for this device\nand a stack trace")


BROKEN = {
    "fails": (_fail, "cudnn fails on this device: no kernel for this device"),
    "no mask": (
        lambda q, k, v, *, mask_TxT, bias_NxTxT: attend_xla(q, k, v, bias_NxTxT=bias_NxTxT),
        "cudnn is wrong on this device: its output differs by",
    ),
    "no bias": (
        lambda q, k, v, *, mask_TxT, bias_NxTxT: attend_xla(q, k, v, mask_TxT=mask_TxT),
        "cudnn is wrong on this device: its output differs by",
    ),
    "NaN": (lambda q, k, v, **settings: v * jnp.nan, "its output differs by nan"),
}


@pytest.fixture
def on_gpu(monkeypatch):
    """on_gpu(cudnn): a GPU whose cudnn back end is that function."""

    def on_gpu(cudnn):
        monkeypatch.setattr(attention_choice, "platform", lambda: "gpu")
        monkeypatch.setitem(BACKENDS, "cudnn", cudnn)

    return on_gpu


def test_a_back_end_that_is_right_is_used(on_gpu):
    on_gpu(attend_xla)
    assert attention_choice.choose_attention(MODEL) == (dataclasses.replace(MODEL, attention="cudnn"), None)


@pytest.mark.parametrize("case", ["fails", "no mask", "no bias", "NaN"])
def test_a_back_end_that_fails_or_is_wrong_is_not(case, on_gpu):
    cudnn, reason = BROKEN[case]
    on_gpu(cudnn)
    model, obstacle = attention_choice.choose_attention(MODEL)
    assert model.attention == "xla" and reason in obstacle and "\n" not in obstacle


@pytest.mark.parametrize(
    "changed", [{"dtype": "float32"}, {"width": 36, "num_heads": 3}, {"remat": "attention"}], ids=str
)
def test_what_cudnn_cannot_compute_is_xla(changed, on_gpu):
    on_gpu(_fail)
    model = dataclasses.replace(MODEL, **changed)
    assert attention_choice.choose_attention(model) == (dataclasses.replace(model, attention="xla"), None)


def test_other_back_ends_are_left_alone(on_gpu):
    on_gpu(_fail)
    model = dataclasses.replace(MODEL, attention="splash")
    assert attention_choice.choose_attention(model) == (model, None)


@pytest.mark.slow
def test_a_run_records_its_choice_and_says_if_it_resumes_with_another(on_gpu, tmp_path, capfd):
    model = {"attention": "auto", "dtype": "bfloat16", "width": 16, "num_heads": 2}
    train(make_config(model=model, run={"total_steps": 4}), str(tmp_path))
    assert json.loads((tmp_path / "result.json").read_text())["attention"] == "xla"
    assert json.loads((tmp_path / "config.json").read_text())["model"]["attention"] == "auto"
    capfd.readouterr()
    on_gpu(attend_xla)
    train(make_config(model=model, run={"total_steps": 4}), str(tmp_path))
    assert "trained with model.attention='xla' and resumes with 'cudnn'" in capfd.readouterr().out
    on_gpu(_fail)
    train(make_config(model=model, run={"total_steps": 4}), str(tmp_path / "other"))
    said = capfd.readouterr().out
    assert "model.attention='auto' is xla: cudnn fails on this device: no kernel for this device" in said
