"""The same operations on a local folder and in gs://, and what only gs:// has."""

import sys

import pytest
from etils import epath

from vit_registers.errors import ConfigError
from vit_registers.storage import contents, files, line_file, objects, paths


@pytest.fixture(params=["local", "gs"])
def folder(request, tmp_path):
    if request.param == "local":
        return epath.Path(tmp_path)
    return epath.Path(request.getfixturevalue("gs_folder"))


def test_reading_writing_listing_and_removal(folder):
    one = folder / "a" / "one.json"
    files.make_folder(one.parent)
    assert not files.exists(one) and files.read_json_object(one) is None
    files.write_json(one, {"x": float("nan")})
    assert files.read_json_object(one) == {"x": None} and files.read_end(one, 4) == b"ll\n}\n"[-4:]
    assert files.read_end(one, 1000) == files.read_file(one)
    assert files.is_folder(folder / "a") and not files.is_folder(one) and files.names(folder) == ["a"]
    files.copy(one, folder / "a" / "two")
    assert files.names(folder / "a") == ["one.json", "two"] and files.modified_s(one) > 1e9
    with files.appended(folder / "log") as log:
        log.write(b"1\n")
    with files.appended(folder / "log") as log:
        log.write(b"2\n")
    assert files.read_file(folder / "log") == b"1\n2\n"
    files.remove_file(one)
    files.remove_file(one)
    files.remove(folder / "a")
    assert not files.exists(folder / "a") and files.names(folder) == ["log"]
    with pytest.raises(FileNotFoundError):
        files.read_file(one)


def test_a_change_of_a_file_is_found(folder):
    files.make_folder(folder / "state" / "d")
    files.write_bytes(folder / "state" / "d" / "x", b"data")
    listed = contents.describe(folder)
    assert [*listed] == ["state/d/x"] and listed["state/d/x"]["bytes"] == 4
    assert contents.Contents(folder).find_difference("state/d/x", listed["state/d/x"], is_quick=False) is None
    files.write_bytes(folder / "state" / "d" / "x", b"Data")
    there = contents.Contents(folder)
    assert [*there.names("state")] == ["d/x"]
    assert there.find_difference("state/d/x", listed["state/d/x"], is_quick=True) is None
    assert "has changed" in there.find_difference("state/d/x", listed["state/d/x"], is_quick=False)
    assert there.find_difference("state/y", {"bytes": 1}, is_quick=True) == "is missing"


def test_a_folder_copied_from_gs_is_checked_by_reading_it(gs_folder, tmp_path):
    files.write_bytes(f"{gs_folder}/x", b"data")
    listed = contents.describe(epath.Path(gs_folder))
    assert "crc32c" in listed["x"]
    (tmp_path / "x").write_bytes(b"data")
    assert contents.Contents(tmp_path).find_difference("x", listed["x"], is_quick=False) is None
    (tmp_path / "x").write_bytes(b"dbta")
    assert "CRC32C differs" in contents.Contents(tmp_path).find_difference("x", listed["x"], is_quick=False)


def test_lines_in_gs_are_put_when_due_and_before_a_save(gs_folder, monkeypatch):
    path = epath.Path(gs_folder) / "metrics.jsonl"
    files.write_text(path, "0\n")
    lines = line_file.open_lines(path)
    assert lines.append(b"1\n") is None and files.read_file(path) == b"0\n"
    assert lines.before_save() is None and files.read_file(path) == b"0\n1\n"
    lines._next_s = 0.0  # as after 10 s
    assert lines.append(b"2\n") is None and files.read_file(path) == b"0\n1\n2\n"


def test_nothing_of_a_bucket_that_is_missing_is_taken_for_an_empty_folder(emulator):
    for act in (objects.has_objects, lambda path: objects.write_object(path, b"")):
        with pytest.raises(objects.StoreError) as raised:
            act("gs://no-such-bucket/run")
        assert raised.value.strerror == "there is no bucket gs://no-such-bucket"


@pytest.mark.parametrize("path", ["s3://bucket/run", "gs://", "gs:///run", "gs:/bucket/run", "az://b/run"])
def test_other_stores_and_missing_buckets_are_refused(path):
    with pytest.raises(ConfigError, match="--workdir="):
        paths.check_scheme(path, "--workdir")


@pytest.mark.parametrize(
    "path", ["runs/a", "/runs/a", "gs://bucket/run", "gs://my-bucket.x_1", "C:x", "a:b/c"]
)
def test_local_paths_and_buckets_are_taken(path):
    paths.check_scheme(path, "--workdir")


def test_tensorflow_is_not_imported(gs_folder, emulator):
    import subprocess

    code = (
        "import sys; from vit_registers.storage import files, objects; from etils import epath\n"
        f"files.write_bytes('{gs_folder}/x', b'1'); assert epath.Path('{gs_folder}/x').read_bytes() == b'1'\n"
        "assert not objects.store().dircache.use_listings_cache\n"
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
