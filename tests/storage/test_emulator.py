"""The server that tests of gs:// use has what the seam relies on."""

import subprocess
import sys

import pytest

from tools import emulator as emulators


def _files():
    import fsspec

    return fsspec.filesystem("gcs", use_listings_cache=False)


def test_objects_are_there_after_the_server_was_stopped_and_an_object_is_created_once(emulator, gs_folder):
    files = _files()
    files.pipe_file(f"{gs_folder}/a/b", b"one")
    emulator.stop()
    emulator.start()
    assert files.cat_file(f"{gs_folder}/a/b") == b"one" and files.info(f"{gs_folder}/a/b")["crc32c"]
    with pytest.raises(FileExistsError):
        files.pipe_file(f"{gs_folder}/a/b", b"two", mode="create")
    assert files.cat_file(f"{gs_folder}/a/b") == b"one"


def test_a_command_gets_the_environment_variables(emulator):
    code = "import os; print(os.environ['TENSORSTORE_GCS_HTTP_URL'])"
    command = [sys.executable, "-m", "tools.emulator", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("http://127.0.0.1:") and done.returncode == 0, done.stderr
    assert done.stdout.strip() != emulator.address
    assert emulators.environment("http://127.0.0.1:1")["STORAGE_EMULATOR_HOST"] == "http://127.0.0.1:1"
