"""Prepared TFDS data sets: found by name or path, and opened. Does not import TensorFlow.

A data set is in DATA_DIR/name/version or DATA_DIR/name/config/version. No builder's code is run.
"""

import ast
import json
import os
import re
from collections.abc import Collection
from typing import NamedTuple

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import constants, naming, read_only_builder

from vit_registers.config import nearest
from vit_registers.data.sources import remote
from vit_registers.errors import DataError

# name, name/config, name:1.2.3, name/config:1.2.3
_NAME = re.compile(
    r"(?P<data>[A-Za-z_]\w*)(/(?P<config>[\w+.-]+))?(:(?P<version>(\d+|\*)(\.(\d+|\*)){2}))?", re.ASCII
)
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)
_FILES = ("dataset_info.json", "features.json")  # of each prepared version
_BUILDER = "_dataset_builder"  # the suffix of the stem of a builder's file


class Name(NamedTuple):
    """A data set as TFDS names it, see _NAME."""

    data: str
    config: str | None
    version: str | None

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        return f"{self.data}{config}" + (f":{self.version}" if self.version else "")


def open_builder(
    name: str, data_dir: str | None, *, setting: str = "data.name"
) -> tfds.core.DatasetBuilder | None:
    """The prepared data set, or None if nothing of that name is in `data_dir` (None: TFDS's default).

    `name` is a name of TFDS, the path of a builder (a file, or a folder with one), or the folder of a
    prepared data set or version; `data_dir` may be such a folder too. Errors call `name` by its `setting`.
    Raises DataError if that version or config is not prepared, and for damaged or unreadable folders.
    """
    try:
        remote.check_access(name, setting)
        remote.check_access(data_dir or str(full_data_dir(None)), "data.data_dir")
        path = as_path(name)
        if path is not None and find_script(path) is None:
            return _open_folder(path, name, setting)
        return _open_name(parse_name(name, setting), full_data_dir(data_dir), setting)
    except OSError as error:
        where = error.filename or data_dir  # of StoreError too
        raise DataError(f"{setting}={name!r}: {where} cannot be read: {error.strerror or error}") from None


def as_path(name: str) -> epath.Path | None:
    """`name` as a path, which may not exist, or None if it is a name of TFDS."""
    path = epath.Path(name if "://" in name else os.path.abspath(os.path.expanduser(name)))
    is_written_so = name.startswith(("/", ".", "~")) or name.endswith(".py") or "://" in name
    if is_written_so or not _NAME.fullmatch(name) or ("/" in name and _is_version(path)):
        return path
    return None


def find_script(path: epath.Path) -> epath.Path | None:
    """The Python file of a builder: the path itself, or what TFDS finds in the folder; None if nothing."""
    if path.suffix == ".py":
        return path
    inside = (path / f"{path.name}{_BUILDER}.py", path / f"{path.name}.py")
    return next((file for file in inside if file.is_file()), None)


def parse_name(name: str, setting: str = "data.name") -> Name:
    """The parsed name, or that of the builder in the file or folder `name`, which is not executed."""
    match, path = _NAME.fullmatch(name), as_path(name)
    if path is None:
        assert match is not None, name
        return Name(naming.camelcase_to_snakecase(match["data"]), match["config"], match["version"])
    script = find_script(path)
    if script is None or not script.is_file():
        raise _neither(name, setting)
    return Name(_name_in(script), None, None)


def _neither(name: str, setting: str) -> DataError:
    return DataError(
        f"{setting}={name!r} is neither a name of TFDS (name, name/config, name:1.2.3) nor the path of a "
        "builder or of a prepared data set"
    )


def _name_in(script: epath.Path) -> str:
    try:
        tree = ast.parse(script.read_text())
    except (SyntaxError, ValueError) as error:  # ValueError: not text
        raise DataError(f"{script} cannot be read as Python: {error}") from None
    found: dict[str, ast.ClassDef] = {}
    used: set[str] = set()  # as bases of builders
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base) for base in node.bases]
            if any(base in found or base.endswith("Builder") for base in bases):
                found[node.name] = node
                used.update(bases)
    builders = [name for name in found if name not in used]
    if len(builders) != 1:
        has = f"{len(builders)} builders ({', '.join(builders)})" if builders else "no builder"
        raise DataError(
            f"{script} has {has}: it must have one class that derives from a builder of tfds.core"
        )
    return _builder_name(found[builders[0]], script)


def _builder_name(node: ast.ClassDef, script: epath.Path) -> str:
    """The text that the class assigns to `name`, or the name that TFDS makes from class or file."""
    for item in node.body:
        match item:
            case ast.Assign(targets=[ast.Name(id="name")], value=ast.Constant(value=value)) if value:
                return str(value)
    if node.name != "Builder":
        return naming.camelcase_to_snakecase(node.name)
    return script.stem.removesuffix(_BUILDER) if script.stem.endswith(_BUILDER) else script.parent.name


def full_data_dir(data_dir: str | None) -> epath.Path:
    """The folder of data sets; None gives TFDS's default."""
    return epath.Path(os.path.expanduser(data_dir or str(constants.DATA_DIR)))


def hint_at_name(name: str, known: Collection[str]) -> str:
    """The names of data sets that are near to `name`, or where to find them."""
    hint = nearest(name, known)
    return hint if len(hint) < 200 else "see the catalog of tensorflow.org/datasets, or give a builder's path"


def not_prepared(name: str, data_dir: str | None, *, setting: str = "data.name") -> DataError:
    """The error for a data set that open_builder did not find."""
    root = full_data_dir(data_dir)
    where = str(root) if root.is_dir() else f"{root} (which does not exist)"
    known = tfds.list_builders(with_community_datasets=False)
    if as_path(name) is None and parse_name(name).data not in known:
        there = [folder for folder in _folders(root) if _versions(root / folder)]
        hint = hint_at_name(parse_name(name).data, {*known, *there, "digits", "folder"})
        made = f"vit-registers prepare --name={name} --from_folder=DIR makes it of a folder of images"
        return DataError(
            f"{setting}={name!r} is neither prepared in {where} nor known to TFDS: {hint}; {made}"
        )
    return DataError(
        f"{setting}={name!r} is not prepared in {where}: run "
        f"'python -m vit_registers.prepare --name={name} --data_dir={root}', or set data.data_dir"
    )


def _open_name(name: Name, root: epath.Path, setting: str) -> tfds.core.DatasetBuilder | None:
    if root.exists() and not root.is_dir():
        raise DataError(f"data.data_dir={str(root)!r} is a file: set it to the folder of data sets")
    if _is_version(root):
        builder = read_builder(root)
        found = Name(builder.info.name, builder.info.config_name or None, str(builder.info.version))
        if any(a not in (None, b) for a, b in zip(name, found, strict=True)):
            raise DataError(
                f"data.data_dir={str(root)!r} holds {found}, not {name}: set {setting}={found}, or set "
                "data.data_dir to the folder of data sets"
            )
        return builder
    if not (root / name.data).is_dir():  # root may be the folder of the data set, or of its config
        root = next((folder.parent for folder in (root, root.parent) if folder.name == name.data), root)
    versions = _versions(root / name.data)
    folder = _choose(versions, name, root)
    if folder is not None:
        return read_builder(folder)
    if versions:
        has = ", ".join(str(found) for found in versions)
        raise DataError(
            f"{setting}={str(name)!r} is not prepared in {root}, which has {has}: set {setting} to one of "
            f"them, or run 'python -m vit_registers.prepare --name={name} --data_dir={root}'"
        )
    unfinished = [folder for folder in _folders(root / name.data) if constants.INCOMPLETE_PREFIX in folder]
    if unfinished:
        raise DataError(
            f"{root / name.data} has only {unfinished[0]}, whose preparation is not finished: "
            "wait until it is, or delete it and run vit_registers.prepare again"
        )
    _list(root)
    return None


def _open_folder(path: epath.Path, name: str, setting: str) -> tfds.core.DatasetBuilder:
    if _is_version(path):
        return read_builder(path)
    if not name or not path.is_dir():
        _list(path.parent)
        raise _neither(name, setting)
    versions = _versions(path)
    if not versions:
        remote.refuse_folder(str(path), setting)
    configs = {found.config for found in versions}
    if len(configs) != 1:
        has = ", ".join(str(folder.relative_to(path)) for folder in versions.values())
        raise DataError(
            f"{setting}={name!r} holds {f'{has}: name one of them' if has else 'no data set of TFDS'}"
        )
    return read_builder(list(versions.values())[-1])


def _is_version(folder: epath.Path) -> bool:
    return _VERSION.fullmatch(folder.name) is not None and any((folder / file).exists() for file in _FILES)


def _versions(folder: epath.Path) -> dict[Name, epath.Path]:
    found: dict[Name, epath.Path] = {}
    for config in ("", *_folders(folder)):
        if not _VERSION.fullmatch(config) and not config.startswith("."):
            versions = [name for name in _folders(folder / config) if _VERSION.fullmatch(name)]
            for version in sorted(versions, key=lambda text: [int(number) for number in text.split(".")]):
                found[Name(folder.name, config or None, version)] = folder / config / version
    return found


def _folders(folder: epath.Path) -> list[str]:
    return sorted(path.name for path in _list(folder) if path.is_dir())


def _list(folder: epath.Path) -> list[epath.Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _choose(versions: dict[Name, epath.Path], name: Name, root: epath.Path) -> epath.Path | None:
    configs, config = {found.config for found in versions}, name.config
    if config is None and None not in configs:
        config = _default_config(root / name.data) or (configs.pop() if len(configs) == 1 else None)
    version = re.compile(re.escape(name.version or "*.*.*").replace(r"\*", r"\d+"))
    fitting = [one for one in versions if one.config == config and version.fullmatch(one.version or "")]
    return versions[fitting[-1]] if fitting else None


def _default_config(folder: epath.Path) -> str | None:
    file = folder / ".config" / constants.METADATA_FILENAME
    try:
        return json.loads(file.read_text())["default_config_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_builder(folder: epath.Path) -> tfds.core.DatasetBuilder:
    """The data set in a version folder. Raises DataError if its description is missing or damaged."""
    again = "delete the folder and run vit_registers.prepare again"
    there = {path.name for path in folder.iterdir()}  # one request in gs://, is_file would be one for each
    for file in _FILES:
        if file not in there:
            raise DataError(f"{folder} is only partly prepared, as it has no {file}: {again}")
    try:
        builder = read_only_builder.builder_from_directory(folder)
        lengths = [length for split in builder.info.splits.values() for length in split.shard_lengths]
        if not lengths or min(lengths) < 0:
            raise ValueError(f"the files of its splits have {lengths} examples")
    except Exception as error:  # TFDS raises many types for damaged files
        if isinstance(_cause(error), PermissionError):
            raise _cause(error) from None
        raise DataError(f"{folder} cannot be read, {one_line(error)}: {again}") from None
    return builder


def one_line(error: BaseException) -> str:
    """The text of a TFDS error in one line of at most about 300 characters: its beginning and its end."""
    error = _cause(error)
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else f"{text[:100]} ... {text[-195:]}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
