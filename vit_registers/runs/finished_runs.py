"""Finished runs of sweeps in a CSV file: a line a run, to be kept where the run folders are not.

A run is found by the digest of its config. Lines of one file may come from several machines and commits.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from vit_registers import config as config_lib
from vit_registers.config import Config
from vit_registers.digests import text_digest
from vit_registers.errors import ConfigError
from vit_registers.storage import files, paths
from vit_registers.strict_json import dumps

COLUMNS = ("run", "seed", "config", "commit", "time_s", "result")  # result: that of result.json, as JSON
_DIGITS = 16  # of the digest
_NEEDED = ("metrics", "time_s")  # of a result


def config_digest(config: Config) -> str:
    """The digest of the settings that differ from their defaults and have an effect on results.

    Settings that may change when a run is resumed are left out, and so are defaults: a setting that a later
    version adds does not change the digest.
    """
    free = config_lib.may_change(config_lib.RESUME)
    ours, default = (config_lib.flatten(config_lib.to_dict(one)) for one in (config, Config()))
    own = {key: value for key, value in ours.items() if key not in free and value != default.get(key)}
    return text_digest(json.dumps(sorted(own.items()), default=repr))[:_DIGITS]


class FinishedRuns:
    """The lines of a CSV file with COLUMNS. A file that does not exist has none."""

    def __init__(self, path: epath.Path) -> None:
        """Raises ConfigError for a file that cannot be read, or is no such table."""
        self.path = path
        self._results: dict[str, Mapping[str, Any]] = {}
        for number, digest, result in self._read():
            if digest in self._results:
                raise ConfigError(
                    f"{path}, line {number}: the config {digest} has a line before: leave one of them"
                )
            self._results[digest] = result

    def find(self, config: Config) -> Mapping[str, Any] | None:
        """The result of the run with this config; None if the file has none."""
        return self._results.get(config_digest(config))

    def add(self, run: str, config: Config, result: Mapping[str, Any]) -> None:
        """Appends the line of a finished run, unless the file has one of its config. Raises ConfigError."""
        digest = config_digest(config)
        if digest in {known for _, known, _ in self._read()}:
            return
        values = (
            run,
            config.run.seed,
            digest,
            result.get("commit") or "",
            result["time_s"],
            dumps(result, indent=None),
        )
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self._has_header:
            writer.writerow(COLUMNS)
        writer.writerow(values)
        try:
            # One write at the end of the file, so that lines of several sweeps are not mixed.
            with files.appended(self.path) as file:
                file.write(text.getvalue().encode())
        except OSError as error:
            raise ConfigError(f"--finished={self.path} cannot be written: {error.strerror}") from None
        self._results[digest] = result

    def _read(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """(line number, digest, result) of each run."""
        try:
            text = files.read_file(self.path).decode()
        except FileNotFoundError:
            text = ""
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"--finished={self.path} cannot be read: {why}") from None
        self._has_header = bool(text)
        lines = csv.DictReader(io.StringIO(text, newline=""))
        if text and tuple(lines.fieldnames or ()) != COLUMNS:
            raise ConfigError(
                f"--finished={self.path} is no table of finished runs, whose columns are {','.join(COLUMNS)}"
            )
        for line in lines:
            where = f"{self.path}, line {lines.line_num}"
            try:
                result = json.loads(line["result"] or "")
            except (TypeError, ValueError):
                result = None
            if not isinstance(result, dict) or not line["config"] or None in line:
                raise ConfigError(f"{where}: the result is no JSON object, or the line is cut off")
            if missing := [name for name in _NEEDED if name not in result]:
                raise ConfigError(f"{where}: the result has no {missing[0]!r}")
            yield lines.line_num, line["config"], result


def read_finished(name: str | None) -> FinishedRuns | None:
    """The file of the flag --finished, None without it. Raises ConfigError."""
    if name is None:
        return None
    path = paths.folder(name)
    if paths.is_remote(name) or path.suffix != ".csv" or not files.is_folder(path.parent):
        raise ConfigError(f"--finished={name}: must be the path of a .csv file in a local folder that exists")
    return FinishedRuns(path)
