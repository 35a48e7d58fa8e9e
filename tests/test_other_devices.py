"""A run is loaded on the devices of this machine, whatever it was trained on. Here: 8 of a CPU."""

import dataclasses
import json

import numpy as np
import pytest

import vit_registers
from tests.fixtures.digits import make_config
from tests.fixtures.quick import parametrize_quick
from vit_registers import config as config_lib
from vit_registers.config import (
    READ,
    RESUME,
    TRANSFER,
    Config,
    InitFrom,
    Mesh,
    may_change,
)
from vit_registers.evaluate import evaluate
from vit_registers.fine_tuning import start_settings
from vit_registers.models.attention.api import BACKENDS

pytestmark = pytest.mark.usefixtures("compiled_once")

CONFIG = make_config(
    # 8 devices take 360 images, which is one batch.
    data={"batch_size": 4, "eval_batch_size": 356},
    optimizer={"accumulation_steps": 2},
)
# Settings of other machines: 4 or 12 devices in a mesh, kernels of a TPU or GPU.
TRAINED = {
    "4 devices": {"mesh": Mesh(data=2, fsdp=2, tensor=1)},
    "12 devices": {"mesh": Mesh(data=2, fsdp=2, tensor=3)},
    "a tensor axis": {"mesh": Mesh(data=1, fsdp=1, tensor=2)},
    "TPUs": {"attention": "splash", "use_scan": True, "remat": "block"},
    "GPUs": {"attention": "cudnn", "dtype": "bfloat16"},
}


def _trained_on(where):
    settings = dict(TRAINED[where])
    mesh = settings.pop("mesh", Mesh())
    return dataclasses.replace(CONFIG, mesh=mesh, model=dataclasses.replace(CONFIG.model, **settings))


@pytest.mark.slow
@pytest.mark.parametrize("where", TRAINED)
def test_a_run_is_evaluated_and_loaded_on_other_devices(untrained, tmp_path, capsys, where):
    config = _trained_on(where)
    untrained(tmp_path / "run", config)
    plain = dataclasses.replace(CONFIG.model, dtype=config.model.dtype)
    untrained(tmp_path / "plain", dataclasses.replace(CONFIG, model=plain))
    results = [
        evaluate(str(tmp_path / name), step=None, overrides={}, params=None) for name in ("plain", "run")
    ]
    assert results[0]["images"] == results[1]["images"] == 359
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-5)
    said = capsys.readouterr().out
    attention = config.model.attention
    assert (f"run: computed with model.attention='xla', as model.attention='{attention}'" in said) == (
        attention != "xla"
    )
    images = np.zeros((1, 8, 8, 1), np.float32)
    models = [vit_registers.load(str(tmp_path / name)) for name in ("plain", "run")]
    np.testing.assert_array_equal(*(np.asarray(model(images).logits) for model in models))


@pytest.mark.slow
def test_a_run_of_a_back_end_that_was_removed_is_evaluated_and_the_name_is_refused(
    untrained, run_here, monkeypatch, tmp_path
):
    model = dataclasses.replace(CONFIG.model, attention="structured")
    with monkeypatch.context() as patch:
        patch.setitem(BACKENDS, "structured", BACKENDS["xla"])  # as in the version that wrote it
        untrained(tmp_path, dataclasses.replace(CONFIG, model=model))
    code, out, err = run_here("evaluate", f"--checkpoint={tmp_path}")
    assert code == 0, err
    assert out.startswith(
        f"{tmp_path}: computed with model.attention='xla', as model.attention='structured' is not in this "
        "version, which has xla, cudnn, splash, auto\n"
    )
    code, _, err = run_here("evaluate", f"--checkpoint={tmp_path}", "--config.model.attention=structured")
    assert (code, err.count("\n")) == (2, 1), err
    assert "model.attention='structured' is unknown: known: auto, cudnn, splash, xla" in err
    assert start_settings(InitFrom(path=str(tmp_path)))[0].attention == "xla"


@parametrize_quick("where", ["12 devices", "TPUs"])
def test_a_run_is_analysed_and_converted_on_other_devices(run_here, untrained, tmp_path, where):
    untrained(tmp_path / "run", _trained_on(where))
    run, out = f"--checkpoint={tmp_path}/run", f"--out={tmp_path}/out"
    code, _, err = run_here("analyze", "norms", run, out, "--num_images=4")
    assert code == 0, err
    assert json.loads((tmp_path / "out" / "norms" / "numbers.json").read_text())
    code, out, err = run_here(
        "convert", f"--input={tmp_path}/run", f"--output={tmp_path}/out.npz", "--to=timm"
    )
    assert code == 0, err
    assert "equal bit for bit" in out


@pytest.mark.slow
def test_devices_and_batches_that_are_asked_for_are_taken_or_refused(untrained, run_here, tmp_path):
    untrained(tmp_path, _trained_on("4 devices"))
    checkpoint = f"--checkpoint={tmp_path}"
    assert run_here("evaluate", checkpoint, "--config.mesh.fsdp=8", "--config.mesh.data=1")[0] == 0
    for args, message in (
        (
            ("--config.mesh.fsdp=3",),
            "does not use the 8 devices that there are: give sizes whose product is 8",
        ),
        (("--config.data.eval_batch_size=12",), "data.eval_batch_size=12 is not divisible by 8 devices"),
        (
            ("--config.model.num_registers=1",),
            "--config.model.num_registers: a checkpoint keeps the settings of its training",
        ),
    ):
        code, _, err = run_here("evaluate", checkpoint, *args)
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err
    code, _, err = run_here("analyze", "norms", checkpoint, "--config.mesh.fsdp=2")
    assert (code, err.count("\n")) == (2, 1), err
    assert "--config.mesh.fsdp: analyze spreads images over all devices" in err


def test_how_a_model_is_computed_may_change_always_and_what_it_is_never():
    known = config_lib.flatten(config_lib.to_dict(Config()))
    allowed = {occasion: may_change(occasion) for occasion in (RESUME, READ, TRANSFER)}
    for settings in allowed.values():
        assert settings < known.keys()
        assert {"model.attention", "model.remat", "model.use_scan"} <= settings
        assert settings.isdisjoint({"model.width", "model.depth", "model.norm_eps", "model.patch_size"})
    assert "data.data_dir" in allowed[RESUME] and "data.mean" not in allowed[RESUME]
    assert {"data.mean", "mesh.tensor", "model.dtype"} <= allowed[READ]
    assert "model.num_registers" in allowed[TRANSFER] - allowed[READ] - allowed[RESUME]
