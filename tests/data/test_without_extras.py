"""What requires a package of an extra is refused in one line that names the extra."""

import pytest

from tests.fixtures.digits import make_config
from vit_registers import errors
from vit_registers.data.loaders import open_data
from vit_registers.data.sources import boxes
from vit_registers.runs.writers import MetricWriter

INSTALL = ', which is not installed: pip install "vit-registers[data]"'


@pytest.fixture
def without(monkeypatch):
    """without("tensorflow", ...): as if these packages were not installed."""

    def without(*names):
        for module in ("errors", "runs.writers"):
            missing = lambda *asked: next((name for name in asked if name in names), None)  # noqa: E731
            monkeypatch.setattr(f"vit_registers.{module}.missing_package", missing)

    return without


def test_packages_are_looked_for_without_importing_them():
    assert errors.missing_package("json", "no_such_package", "other") == "no_such_package"
    assert errors.missing_package("json") is None


@pytest.mark.parametrize(
    ("packages", "data", "message"),
    [
        (
            ("tensorflow",),
            {"loader": "tfdata", "name": "folder"},
            f"data.loader='tfdata' (data.name='folder') requires tensorflow{INSTALL}"
            ", or set data.loader='memory' for images that fit into memory",
        ),
        (
            ("tensorflow",),
            {"loader": "tfdata", "name": "cifar10"},
            f"data.loader='tfdata' (data.name='cifar10') requires tensorflow{INSTALL}",
        ),
        (
            ("array_record",),
            {"name": "cifar10"},
            f"data.name='cifar10', a data set of TFDS, requires array_record{INSTALL}",
        ),
    ],
)
def test_data_of_an_extra(without, packages, data, message):
    without(*packages)
    with pytest.raises(errors.MissingPackageError) as raised:
        open_data(make_config(data=data))
    assert str(raised.value) == message


def test_boxes_and_prepare(without, run_here):
    without("tensorflow_datasets")
    with pytest.raises(
        errors.MissingPackageError, match=r'--boxes=voc:test requires .* "vit-registers\[data\]"$'
    ):
        boxes.open_tfds_boxes("voc", "test")
    code, _, err = run_here("prepare", "--name=cifar10")
    assert code == 2 and err == (
        "error: prepare requires tensorflow_datasets, which is not installed: pip install "
        '"vit-registers[data]"\n'
    )


def test_without_clu_a_run_has_no_tensorboard_files_and_says_so(without, tmp_path, capsys):
    without("clu")
    with MetricWriter(tmp_path, start_step=0, use_tensorboard=True) as writer:
        writer.write(1, {"loss": 2.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    out = capsys.readouterr().out
    assert (
        out.startswith("no TensorBoard files are written: clu is not installed: pip install")
        and out.count("\n") == 1
    )
