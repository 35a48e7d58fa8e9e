"""Errors of the store are one line each, and requests to a busy store are repeated."""

import socket
import threading
import time

import pytest

from tests.fixtures.faulty_store import FaultyStore
from tools import emulator as emulators
from vit_registers.storage import files, objects


@pytest.fixture
def store(emulator, monkeypatch):
    """The store behind a proxy, which this process uses."""
    with FaultyStore(emulator.address) as proxy:
        _use(monkeypatch, proxy.environment)
        yield proxy


def _use(monkeypatch, environment):
    import fsspec

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    files_of_proxy = fsspec.filesystem(
        "gcs", skip_instance_cache=True, use_listings_cache=False, token="anon"
    )
    objects.store()  # sets the level of the log
    monkeypatch.setattr(objects, "store", lambda: files_of_proxy)


CASES = {
    401: "the credentials are missing or expired: gcloud auth application-default login",
    403: "permission denied: grant roles/storage.objectUser on the bucket",
    404: f"there is no bucket gs://{emulators.BUCKET}",
}


@pytest.mark.parametrize("code", CASES)
def test_an_error_that_the_user_can_put_right_is_one_line_at_once(store, gs_folder, code):
    store.code = code
    started = time.monotonic()
    for act in (files.check_writable, files.is_folder):
        with pytest.raises(objects.StoreError) as raised:
            act(gs_folder)
        assert CASES[code] in raised.value.strerror and "\n" not in raised.value.strerror
        assert raised.value.filename.startswith(gs_folder)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("code", [503, 429])
def test_a_busy_store_is_asked_again(store, gs_folder, code):
    store.code = code
    threading.Timer(2.0, lambda: setattr(store, "code", None)).start()
    files.write_bytes(f"{gs_folder}/x", b"data")
    assert store.refused >= 2 and files.read_file(f"{gs_folder}/x") == b"data"


@pytest.mark.slow  # half a minute
def test_a_store_that_stays_away_is_one_line(emulator, gs_folder, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        _use(monkeypatch, emulators.environment(f"http://127.0.0.1:{probe.getsockname()[1]}"))
        started = time.monotonic()
        with pytest.raises(objects.StoreError, match="the store does not answer"):
            files.write_bytes(f"{gs_folder}/x", b"data")
        assert 15 < time.monotonic() - started < 90
