"""Files of torch: states in states, views, odd tensors; pickles that could run code are refused."""

import argparse
import collections
import pickle
import re
import sys
import warnings
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest

from vit_registers.interop import containers
from vit_registers.interop.containers import from_arrays, open_weights
from vit_registers.interop.export import files


@pytest.mark.parametrize("is_zip", [True, False])
def test_nested_states_are_flattened_and_what_is_no_tensor_left_out(save_torch, is_zip, tmp_path):
    torch = pytest.importorskip("torch")
    ones = torch.ones(2)
    state = {
        "teacher": collections.OrderedDict({"backbone.x": ones, "deep": {"y": ones}}),
        "optimizer": {"state": {0: {"exp_avg": ones}}, "param_groups": [{"params": [0], "w": ones}]},
        "args": argparse.Namespace(lr=0.1, arch="vit_small", betas=(0.9, 0.999), nothing=None),
        "epoch": 3,
        "name": "dino",
        "none": None,
        "parameter": torch.nn.Parameter(ones),
    }
    save_torch(tmp_path / "a.pth", state, is_zip=is_zip)
    names = ["teacher.backbone.x", "teacher.deep.y", "optimizer.state.0.exp_avg", "parameter"]
    weights = open_weights(tmp_path / "a.pth")
    assert list(weights) == names and all(weights[name].tolist() == [1, 1] for name in names)


def test_views_of_one_storage_are_apart(save_torch, tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(12.0).reshape(3, 4)
    save_torch(tmp_path / "a.pth", {"all": base, "column": base[:, 1], "turned": base.T})
    weights = open_weights(tmp_path / "a.pth")
    assert weights["column"].tolist() == [1, 5, 9]
    np.testing.assert_array_equal(weights["turned"], base.numpy().T)
    weights["all"][:] = 0  # a copy: what is asked for next is as it was
    assert weights["column"].tolist() == [1, 5, 9] and weights["all"][2, 3] == 11


def test_a_mapped_file_is_mapped_again_and_stays_the_same(save, check_same, tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "_MAX_MAPPED", 0)
    weights = open_weights(save("pth", tmp_path))
    check_same(weights)
    check_same(weights)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("what", ["sparse", "csr", "quantised", "meta", "complex32"])
def test_tensors_that_are_not_plain_are_named(save_torch, error_of, what, is_zip, tmp_path):
    torch = pytest.importorskip("torch")
    if what == "complex32" and not is_zip:
        pytest.skip("torch cannot read its own")
    make = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "csr": lambda: torch.eye(3).to_sparse_csr(),
        "quantised": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "meta": lambda: torch.ones(2, device="meta"),
        "complex32": lambda: torch.ones(2, dtype=torch.complex32),
    }[what]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about what is made here
        value = make()
        save_torch(tmp_path / "a.pth", {"model": {"w": torch.ones(1), "odd": value}}, is_zip=is_zip)
    for line in (error_of(open_weights, tmp_path / "a.pth"), error_of(from_arrays, {"model.odd": value})):
        assert "'model.odd' is" in line and ("complex32" in line or "dense" in line)


def test_torch_files_that_hold_no_names(save_torch, error_of, tmp_path):
    torch = pytest.importorskip("torch")
    for value, kind in ((torch.ones(2), "Tensor"), ([torch.ones(2)], "list")):
        save_torch(tmp_path / "a.pth", value)
        line = error_of(open_weights, tmp_path / "a.pth")
        assert f"holds a {kind}" in line and "state_dict" in line
    save_torch(tmp_path / "a.pth", {"a": {"b": torch.ones(2)}, "a.b": torch.ones(2)})
    assert "names are the same" in error_of(open_weights, tmp_path / "a.pth")
    endless = {}
    endless["again"] = endless
    save_torch(tmp_path / "a.pth", endless)
    assert "RecursionError" in error_of(open_weights, tmp_path / "a.pth")


class _Scalar:
    """Pickled as a scalar of numpy, made of anything."""

    def __init__(self, part):
        self.part = part

    def __reduce__(self):
        return np.float64(1).__reduce__()[0], (np.dtype("f8"), self.part)


class Namespace(argparse.Namespace):
    """One that is not argparse's own."""


WAYS = ["zip", "legacy", "pickle 2", "pickle 3", "pickle 4", "pickle 5", "args", "array", "scalar"]


@pytest.mark.parametrize("way", WAYS)
def test_a_planted_pickle_is_refused_and_does_not_run(save_torch, error_of, planted, way, tmp_path):
    torch = pytest.importorskip("torch")
    marker, path = tmp_path / "marker", tmp_path / "model.pth"
    state = {"w": torch.ones(2), "x": planted(marker)}
    if way == "args":  # within what is let through
        state = {"w": torch.ones(2), "args": argparse.Namespace(x=planted(marker))}
    if way == "array":
        state = {"w": torch.ones(2), "list": [np.array([planted(marker)], object)]}
    if way == "scalar":
        state = {"w": torch.ones(2), "x": _Scalar(planted(marker))}
    if way.startswith("pickle"):
        path.write_bytes(pickle.dumps({"x": planted(marker)}, protocol=int(way[-1])))
    else:
        save_torch(path, state, is_zip=way != "legacy")
    line = error_of(open_weights, path)
    assert not marker.exists()
    assert str(path) in line and "safetensors.torch.save_file" in line and "trust" in line
    assert "system" in line or "Unsupported operand" in line
    if way in ("zip", "legacy"):  # it would have
        torch.load(path, weights_only=False)
        assert marker.exists()


def test_what_a_pickle_wanted_is_named(save_torch, error_of, tmp_path):
    torch = pytest.importorskip("torch")
    for value, wanted in (
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"args": Namespace(a=1)}, "Namespace"),
        ({"w": np.ones(2)}, "numpy"),
    ):
        save_torch(tmp_path / "a.pth", value)
        assert wanted in error_of(open_weights, tmp_path / "a.pth")


BESIDE = {
    "scalars": [np.float64(1.5), np.float32(2), np.int64(3), np.bool_(True), np.str_("x"), np.float16(1)],
    "others": [3, 2.5, "text", None, True, b"bytes", 1j, {1, 2}, (1, "a"), range(3)],
    "arrays in lists": [np.ones(3), np.array(["a"]), np.zeros((0, 2), bool)],
    "paths": [Path("/a/b"), PurePosixPath("a"), PureWindowsPath("a")],
    "arguments": [argparse.Namespace(best=np.float64(1), out=Path("x"), lr=1e-3, mean=np.ones(3))],
}


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("kind", BESIDE)
def test_what_training_keeps_beside_tensors_is_left_out(kind, is_zip, save_torch, tmp_path):
    """And nothing of numpy is called."""
    torch = pytest.importorskip("torch")
    content = {
        "w": torch.arange(3.0),
        "list": BESIDE[kind],
        "deep": {str(i): v for i, v in enumerate(BESIDE[kind])},
    }
    if kind == "arrays in lists":
        del content["deep"]
    save_torch(tmp_path / "a.pth", content, is_zip=is_zip)
    weights = open_weights(tmp_path / "a.pth")
    assert list(weights) == ["w"] and weights["w"].tolist() == [0, 1, 2]


def test_names_of_numpy_before_2_are_known(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(2), "best": np.float64(2)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    older = entries[name].replace(b"numpy._core.", b"numpy.core.")
    with zipfile.ZipFile(tmp_path / "old.pth", "w", zipfile.ZIP_STORED) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, older if entry == name else content)
    assert b"numpy.core.multiarray" in older
    assert open_weights(tmp_path / "old.pth")["w"].tolist() == [1, 1]


def test_torchscript_is_refused(error_of, tmp_path):
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "ViT-B-32.pt")
    line = error_of(open_weights, tmp_path / "ViT-B-32.pt")
    assert "TorchScript" in line and "torch.jit.load" in line and "save_file" in line and "trust" in line


def test_torch_files_where_torch_is_not(save, error_of, tmp_path, monkeypatch):
    paths = [save("pth", tmp_path), save("legacy", tmp_path)]
    monkeypatch.setitem(sys.modules, "torch", None)
    for path in paths:
        line = error_of(open_weights, path)
        assert str(path) in line and "pip install torch" in line and "safetensors" in line


def test_a_torch_file_that_is_called_safetensors(save, error_of, tmp_path):
    path = save("pth", tmp_path).rename(tmp_path / "model.safetensors")
    assert "rename it to .pth" in error_of(open_weights, path)


def test_nothing_less_restricted_is_called():
    source = Path(containers.__file__).read_text()
    assert source.count("torch.load(") == source.count("weights_only=True") == 1
    assert not re.search(r"weights_only=False|pickle\.loads?\(|jit\.load\(|allow_pickle=True", source)
    assert not re.search(r"pickle\.|allow_pickle=True", Path(files.__file__).read_text())
