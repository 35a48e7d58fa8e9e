"""Where prepared data sets are found: names, versions, configs, paths; what is half there is refused."""

import os
import shutil

import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from vit_registers.data.loaders import open_data
from vit_registers.data.sources.boxes import open_tfds_boxes
from vit_registers.errors import DataError

LOADERS = ("array_record", "memory_array_record")


@pytest.fixture
def root(data_dirs, tmp_path):
    """A copy of the data set in array_record, to be damaged."""
    return shutil.copytree(data_dirs["array_record"], tmp_path / "root")


def refusal(config):
    with pytest.raises(DataError) as error:
        open_data(config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", LOADERS)
@parametrize_quick(
    ("name", "data_dir"),
    [
        *(("toy", ""), ("Toy", ""), ("toy:1.0.0", ""), ("toy:1.*.*", "")),
        *(("toy", "toy"), ("toy", "toy/1.0.0"), ("toy:1.0.0", "toy/1.0.0")),
        *(("{}/toy", None), ("{}/toy/1.0.0", None), ("{}/toy/1.0.0/", "")),
        *(("{}/code/toy.py", ""), ("{}/code/toy.py", "toy/1.0.0"), ("{}/code/other.py", "")),
        *(("{}/toy_code/toy", ""), ("{}/toy_code/toy/toy_dataset_builder.py", "")),
    ],
    number=2,
)
def test_one_data_set_by_all_its_names(kind, name, data_dir, make_config, root, device, small):
    (root / "code").mkdir()
    (root / "code" / "toy.py").write_text("raise SystemExit\nclass Toy(GeneratorBasedBuilder): pass")
    (root / "code" / "other.py").write_text(
        "class Base(tfds.core.GeneratorBasedBuilder): pass\nclass Other(Base):\n  name = 'toy'"
    )
    (root / "toy_code" / "toy").mkdir(parents=True)
    (root / "toy_code" / "toy" / "toy_dataset_builder.py").write_text("class Builder(ConfigBasedBuilder): 1")
    where = None if data_dir is None else str(root / data_dir)
    loader = open_data(make_config(kind, name=name.format(root), data_dir=where))
    batch = small.take(loader.eval_batches("test", device), None)
    np.testing.assert_array_equal(small.numbers(batch)[batch.mask_B], range(small.NUM_TEST))


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize(
    ("name", "data_dir", "message"),
    [
        (
            "toy:2.0.0",
            "",
            "data.name='toy:2.0.0' is not prepared in {}, which has toy:1.0.0: set data.name to",
        ),
        ("toy/large", "", "data.name='toy/large' is not prepared in {}, which has toy:1.0.0"),
        ("pairs", "", "which has pairs/a:1.0.0, pairs/b:2.0.0, pairs/b:10.0.0"),
        ("pairs/b:1.0.0", "", "which has pairs/a:1.0.0, pairs/b:2.0.0, pairs/b:10.0.0"),
        ("{}/pairs", "", "holds a/1.0.0, b/2.0.0, b/10.0.0: name one of them"),
        (
            "mnist",
            "toy/1.0.0",
            "data.data_dir='{}/toy/1.0.0' holds toy:1.0.0, not mnist: set data.name=toy:1.0.0",
        ),
        ("toy:2.0.0", "toy/1.0.0", "holds toy:1.0.0, not toy:2.0.0"),
        (
            "mnist",
            "nowhere",
            "is not prepared in {}/nowhere (which does not exist): run 'python -m vit_registers.prepare",
        ),
        ("tyo", "", "neither prepared in {} nor known to TFDS: did you mean 'toy'?"),
        ("mnist", "file", "data.data_dir='{}/file' is a file: set it to the folder of data sets"),
        ("{}/nowhere", "", "data.name='{}/nowhere' is neither a name of TFDS"),
        ("{}/nowhere.py", "", "data.name='{}/nowhere.py' is neither a name of TFDS"),
        ("{}/file", "", "data.name='{}/file' is neither a name of TFDS"),
        ("{}/empty.py", "", "{}/empty.py has no builder: it must have one class"),
        ("{}/two.py", "", "{}/two.py has 2 builders (A, B): it must have one class"),
        ("{}/broken.py", "", "{}/broken.py cannot be read as Python: "),
        ("{}/binary.py", "", "{}/binary.py cannot be read as Python: "),
        *((odd, "", "is neither a name of TFDS") for odd in ("to y", "toy:1", "töy", "a/b/c", "toy\n", "\0")),
    ],
)
def test_what_is_not_there(kind, name, data_dir, message, make_config, root):
    for config, version in (("a", "1.0.0"), ("b", "2.0.0"), ("b", "10.0.0")):
        shutil.copytree(root / "toy" / "1.0.0", root / "pairs" / config / version)
    (root / "file").write_text("")
    (root / "empty.py").write_text("class A: pass")
    (root / "two.py").write_text("class A(XBuilder): pass\nclass B(XBuilder): pass")
    (root / "broken.py").write_text("class A(XBuilder")
    (root / "binary.py").write_bytes(b"\xff\xfe\0")
    config = make_config(kind, name=name.format(root), data_dir=str(root / data_dir))
    assert message.format(root) in refusal(config)


def test_the_newest_version_and_the_default_config(make_config, root):
    for config, version in (("a", "9.0.0"), ("b", "2.0.0"), ("b", "10.0.0")):
        shutil.copytree(root / "toy" / "1.0.0", root / "pairs" / config / version)
    (root / "pairs" / "b" / "10.0.0" / "features.json").unlink()
    assert f"{root}/pairs/b/10.0.0 is only partly prepared" in refusal(
        make_config("array_record", name="pairs/b", data_dir=str(root))
    )
    (root / "pairs" / ".config").mkdir()
    (root / "pairs" / ".config" / "metadata.json").write_text('{"default_config_name": "b"}')
    assert f"{root}/pairs/b/10.0.0 is only partly prepared" in refusal(
        make_config("array_record", name="pairs", data_dir=str(root))
    )
    open_data(make_config("array_record", name="pairs/a", data_dir=str(root)))


DAMAGE = {
    "gone": None,
    "empty": b"",
    "no fields": b"{}",
    "null": b"null",
    "binary": b"\xff\0",
    "cut": b'{"name"',
}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_damaged_descriptions(kind, file, make_config, root):
    path = root / "toy" / "1.0.0" / file
    for what, content in DAMAGE.items():
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        expected = f"is only partly prepared, as it has no {file}" if what == "gone" else "cannot be read, "
        message = refusal(make_config(kind, data_dir=str(root)))
        assert message.startswith(f"{root}/toy/1.0.0 {expected}")
        assert message.endswith("delete the folder and run vit_registers.prepare again")
    with pytest.raises(DataError, match=r"toy/1.0.0 cannot be read"):
        open_tfds_boxes("toy", "train", data_dir=str(root))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all")
@pytest.mark.parametrize(
    "place", ["", "toy", "toy/1.0.0", "toy/1.0.0/dataset_info.json", "toy/1.0.0/features.json"]
)
def test_what_may_not_be_read_is_not_called_damaged(place, make_config, root):
    path = root / place
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        message = refusal(make_config("array_record", data_dir=str(root)))
    finally:
        path.chmod(mode)
    assert f"{path} cannot be read: Permission denied" in message.replace("/ cannot", " cannot")
    assert "delete" not in message


@pytest.mark.parametrize("kind", LOADERS)
def test_other_formats_of_files(kind, make_config, root):
    path = root / "toy" / "1.0.0" / "dataset_info.json"
    path.write_text(path.read_text().replace('"array_record"', '"riegeli"'))
    message = refusal(make_config(kind, data_dir=str(root)))
    assert message.startswith(
        f"{path.parent} has riegeli files: delete the folder and prepare it as array_record"
    )


def test_a_preparation_that_is_not_finished(make_config, root):
    (root / "toy" / "1.0.0").rename(root / "toy" / "incomplete.ABCDEF_1.0.0")
    message = refusal(make_config("array_record", data_dir=str(root)))
    assert "toy has only incomplete.ABCDEF_1.0.0, whose preparation is not finished" in message


@pytest.mark.parametrize("kind", ["array_record", "memory_array_record", "tfrecord"])
def test_a_file_of_records_that_is_missing_is_named_before_it_is_read(kind, make_config, data_dirs, tmp_path):
    base = kind.removeprefix("memory_")
    root = shutil.copytree(data_dirs[base], tmp_path / "root")
    (root / "toy" / "1.0.0" / f"toy-train.{base}-00002-of-00004").unlink()
    loader = open_data(make_config(kind, data_dir=str(root)))
    for split in ("train", "train[-20:]"):
        with pytest.raises(
            DataError, match=rf"lacks the file .*toy-train\.{base}-00002-of-00004: copy it there"
        ):
            loader.num_examples(split)
    assert loader.num_examples("train[:1shard]") == 14


@pytest.mark.parametrize("damage", ["cut off", "empty", "flipped", "link to nothing"])
def test_damaged_records_in_memory(damage, make_config, root, device):
    path = root / "toy" / "1.0.0" / "toy-train.array_record-00001-of-00004"
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "link to nothing":
        path.symlink_to("/nowhere")
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes({"cut off": data[: len(data) // 2], "empty": b"", "flipped": data}[damage])
    loader = open_data(make_config("memory_array_record", data_dir=str(root)))
    with pytest.raises(
        DataError, match=r"^reading split 'train' of toy failed: .*; see that all files"
    ) as error:
        loader.train_batches(0, device)
    assert "\n" not in str(error.value)
