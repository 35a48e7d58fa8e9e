"""Tensors that are no weights are refused by name: not finite, quantised, or not floating point."""

import json
import os
import re
import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import vit_registers
from vit_registers import fine_tuning, loading
from vit_registers.config import Config, InitFrom, Model
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.interop import containers, from_state_dict, reading
from vit_registers.interop.export import targets
from vit_registers.interop.hints import Hints
from vit_registers.interop.values import as_float32, check_finite
from vit_registers.runs.checkpoints import Checkpoints
from vit_registers.training.state import TrainState

NAME = "blocks.1.norm1.weight"  # of 32 values


@pytest.fixture
def state(make, params):
    """The tensors of a tiny model under timm's names."""
    model = make()
    return dict(targets.export(model.model, params(model), "timm").weights(np.float32))


def _changed(state, values, dtype=np.float32):
    tensor = state[NAME].astype(dtype)
    tensor[: len(values)] = values
    return state | {NAME: tensor}


NOT_FINITE = {
    "NaN": ([np.nan], np.float32, "1 NaN"),
    "infinity": ([np.inf, -np.inf], np.float32, "2 infinity"),
    "NaN and infinity": ([np.nan, 1, -np.inf, np.nan], np.float32, "2 NaN and 1 infinity"),
    "beyond float32": ([1e39, -1e300, 1e30], np.float64, "2 beyond float32"),
    "all three": ([np.nan, np.inf, 1e39], np.float64, "1 NaN and 1 infinity and 1 beyond float32"),
    "half": ([np.nan, np.inf], np.float16, "1 NaN and 1 infinity"),
    "bfloat16": ([np.nan, np.inf], ml_dtypes.bfloat16, "1 NaN and 1 infinity"),
}


WAYS = [("load", kind) for kind in NOT_FINITE]
WAYS += [(way, kind) for way in ("from_state_dict", "convert", "init_from") for kind in ("NaN", "all three")]


@pytest.mark.parametrize(("way", "kind"), WAYS)
def test_values_that_are_not_finite_are_named_and_counted(way, kind, state, run_here, tmp_path):
    values, dtype, counts = NOT_FINITE[kind]
    path, run = tmp_path / "weights.safetensors", tmp_path / "new" / "run"
    there = _changed(state, values, dtype)
    save_file(there, path)
    if way == "convert":
        code, _, err = run_here("convert", f"--input={path}", f"--output={run}", "--num_heads=4")
        assert code == 2
    elif way == "init_from":
        with pytest.raises(CheckpointError) as caught:
            fine_tuning.start_leaves(InitFrom(path=str(path), num_heads=4), Model())
    else:
        with pytest.raises(CheckpointError) as caught:
            if way == "load":
                vit_registers.load(path, num_heads=4)
            else:
                from_state_dict(there, source="timm", num_heads=4)
    line = err.strip() if way == "convert" else str(caught.value)
    assert f"'{NAME}' has {counts} among its 32 values" in line and "\n" not in line
    assert way == "from_state_dict" or str(path) in line
    assert sorted(tmp_path.iterdir()) == [path]


def test_large_and_small_values_are_none_of_these(state):
    values = [np.finfo(np.float32).max, -np.finfo(np.float32).max, 1e-300, 1e-45, 0]
    model = from_state_dict(_changed(state, values, np.float64), source="timm", num_heads=4)
    np.testing.assert_array_equal(model.blocks[1].norm1.scale[:5], np.float32(values))


def test_what_is_finite_is_not_copied():
    array = np.ones((64, 64), np.float32)
    assert as_float32(array, "x", "here") is array
    check_finite(np.zeros((0, 3)), np.zeros((0, 3)), "x", "here")


QUANTISED = {
    "int8": {NAME: np.ones(32, np.int8)},
    "uint8": {NAME: np.ones(32, np.uint8)},
    "bool": {NAME: np.ones(32, bool)},
    "float8_e4m3fn": {NAME: np.ones(32, ml_dtypes.float8_e4m3fn)},
    "float8_e5m2": {NAME: np.ones(32, ml_dtypes.float8_e5m2)},
    "int8 of the patch embedding": {"patch_embed.proj.weight": np.ones((32, 3, 8, 8), np.int8)},
    "4 bits packed": {"blocks.0.mlp.fc1.weight": np.ones((1024, 1), np.uint8)},
    "4 bits packed patch embedding": {"patch_embed.proj.weight": np.ones((3072, 1), np.uint8)},
}
BESIDE = ("SCB", "weight_scale", "weight_scale_inv", "qweight", "qzeros", "scales", "weight.absmax")
BESIDE += ("weight.quant_map", "weight.quant_state.bitsandbytes__nf4", "weight_zero_point", "weight_format")


@pytest.mark.parametrize("what", [*QUANTISED, *BESIDE])
def test_quantised_tensors_are_no_weights(what, state):
    changes = QUANTISED.get(what, {f"blocks.0.attn.qkv.{what}": np.ones(96, np.float32)})
    ((name, tensor),) = changes.items()
    with pytest.raises(CheckpointError) as caught:
        from_state_dict(state | changes, source="timm", num_heads=4)
    line = str(caught.value)
    assert f"'{name}' is {tensor.dtype.name}, perhaps quantised" in line and "\n" not in line


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "I4", "NEW"])
def test_what_safetensors_may_hold_and_numpy_cannot(dtype, tmp_path):
    header = json.dumps({NAME: {"dtype": dtype, "shape": [8], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match=f"'{NAME}' is {dtype}, perhaps quantised"):
        containers.open_weights(tmp_path / "a.safetensors")


OTHERS = ["int16", "int32", "int64", "uint16", "uint32", "uint64", "complex64"]


@pytest.mark.parametrize("dtype", OTHERS)
def test_what_is_not_floating_point_is_no_weight(dtype, state):
    with pytest.raises(CheckpointError, match=f"'{NAME}' is {dtype}, not floating point"):
        from_state_dict(state | {NAME: state[NAME].astype(dtype)}, source="timm", num_heads=4)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, ">f4"])
def test_floating_point_of_any_width_is_read(dtype, state):
    tensor = state[NAME].astype(dtype)
    model = from_state_dict(state | {NAME: tensor}, source="timm", num_heads=4)
    np.testing.assert_array_equal(model.blocks[1].norm1.scale, tensor.astype(np.float32))


@pytest.mark.parametrize("target, dtype", [("timm", "float16"), ("transformers", "float16"), ("run", None)])
def test_what_the_dtype_of_an_export_cannot_hold_is_refused(target, dtype, state, run_here, tmp_path):
    path, out = tmp_path / "weights.safetensors", tmp_path / "new" / "out"
    save_file(_changed(state, [70_000.0]), path)
    args = [f"--input={path}", "--num_heads=4", f"--to={target}", f"--output={out}"]
    code, _, err = run_here("convert", *args, *([f"--dtype={dtype}"] if dtype else []))
    if dtype is None:
        assert code == 0, err
        return
    assert code == 2 and "1 beyond float16 among its 32 values" in err and len(err.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == [path]


def test_infinities_of_a_fixed_mask_are_read(tmp_path, make, params):
    settings = {"use_cls": False, "pooling": "gap", "has_cls_position": False, "positions": "sincos2d"}
    settings |= {"extra_positions": "sincos2d", "summaries": "zeros", "registers": "zeros"}
    model = make(summary_factor=2, mask="fractal_released", **settings)
    arrays = dict(targets.export(model.model, params(model), "mup_vit").weights(np.float32))
    assert np.isinf(arrays["mask"]).any()
    weights = containers.from_arrays(arrays)
    opened = reading.understand(weights, source="mup_vit", hints=Hints(num_heads=4))
    assert opened.model.mask == "fractal_released"
    assert all(np.isfinite(leaf).all() for _, leaf in reading.iter_leaves(opened))
    arrays["mask"][0, 0] = np.nan
    with pytest.raises(CheckpointError, match="none of the masks of this code"):
        reading.understand(containers.from_arrays(arrays), source="mup_vit", hints=Hints(num_heads=4))


@pytest.fixture
def run_of(make, params):
    """run_of(folder): a run folder of a tiny model with one NaN, as training could have left it."""

    def run_of(folder):
        model = make()
        tree = params(model)
        norm = tree["blocks"][1]["norm1"]
        norm["scale"] = norm["scale"].at[3].set(np.nan)
        state = TrainState(step=jnp.zeros((), jnp.int32), params={"vit": tree}, opt_state=None, ema=None)
        config = Config(model=model.model)
        folder.mkdir(parents=True)
        with Checkpoints(str(folder), config) as written:
            written.save(state, None, origin="a test")
        return folder

    return run_of


@pytest.mark.parametrize("target", ["run", "timm", "transformers", "big_vision"])
def test_a_run_that_is_not_finite_is_not_exported(target, run_of, run_here, tmp_path):
    run, out = run_of(tmp_path / "run"), tmp_path / "new" / "out"
    code, _, err = run_here("convert", f"--input={run}", f"--to={target}", f"--output={out}")
    assert code == 2 and "'blocks/1/norm1/scale' has 1 NaN among its 32 values" in err
    assert f"{run}, step 0" in err and len(err.splitlines()) == 1 and not out.parent.exists()


def test_training_does_not_start_from_a_run_that_is_not_finite(run_of, tmp_path):
    run = str(run_of(tmp_path / "run"))
    with pytest.raises(CheckpointError, match="'blocks/1/norm1/scale' has 1 NaN"):
        fine_tuning.start_leaves(InitFrom(path=run), loading.open_run(run).config.model)


@pytest.mark.parametrize("what", ["save", "check", "ctrl-C"])
@pytest.mark.parametrize("is_there", [False, True])
def test_convert_leaves_nothing_of_what_it_made(what, is_there, state, run_here, tmp_path, monkeypatch):
    path, out = tmp_path / "weights.safetensors", tmp_path / "new" / "run"
    save_file(state, path)
    if is_there:
        out.mkdir(parents=True)
        (out / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    error = KeyboardInterrupt if what == "ctrl-C" else CheckpointError
    save = Checkpoints.save

    def fail(*args, **settings):
        if what != "check":
            save(*args, **settings)
        raise error("no")

    target = (loading, "read_model") if what == "check" else (Checkpoints, "save")
    monkeypatch.setattr(*target, fail)
    monkeypatch.setattr(os, "_exit", sys.exit)  # which ends the program, not this process
    code, _, err = run_here("convert", f"--input={path}", f"--output={out}", "--num_heads=4")
    assert (code, err) == ((130, "error: interrupted\n") if what == "ctrl-C" else (2, "error: no\n"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "hint",
    [
        *({"image_size": size} for size in ("32", 8.0, True, 0, -8, (8,), (8, 8, 8), (32, 0), (32, "32"))),
        *({"num_heads": value} for value in ("4", 4.0, True, 0, -1)),
        *({"channels": value} for value in ("1", 1.0)),
    ],
    ids=str,
)
def test_hints_that_are_no_numbers_of_something(hint, state):
    ((name, value),) = hint.items()
    with pytest.raises(ConfigError, match=re.escape(f"{name}={value!r}: must be")):
        from_state_dict(state, source="timm", **{"num_heads": 4} | hint)


def test_an_image_size_of_numpy(state):
    for size in (np.int64(48), [np.int32(48), 48]):
        model = from_state_dict(state, source="timm", num_heads=4, image_size=size)
        assert model.model.image_size == (48, 48)
