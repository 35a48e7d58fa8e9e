"""Downloads and prepares a TFDS data set as array_record, for random access.

    vit-registers prepare --name=cifar10 [--data_dir=DIR]
    vit-registers prepare --name=my_data/my_data_dataset_builder.py [--data_dir=DIR]
    vit-registers prepare --name=photos --from_folder=DIR [--data_dir=DIR]  # DIR/{train,val}/<class>/*
    vit-registers prepare ... --data_dir=gs://BUCKET/PATH [--local_dir=DIR]

A --data_dir in gs:// is prepared in a local folder first, and then uploaded. The same command
completes an upload that was interrupted.

Your own builder is a Python file with one class that derives from a builder of tfds.core, or the folder
that `tfds new` makes. Its code runs here only; training reads the files that it wrote. For data sets whose
archives TFDS cannot download, such as imagenet2012, put them into DIR/downloads/manual first.

`python -m vit_registers.prepare` is the same command.
"""

from vit_registers import startup

if __name__ == "__main__":
    startup.end_on_interrupt()

from absl import flags

from vit_registers.errors import require_extra


def define_flags() -> None:
    """Defines the flags of the program."""
    flags.DEFINE_string(
        "name", None, "TFDS name, such as cifar10 or imagenette/160px-v2, or the path of a builder."
    )
    flags.DEFINE_string("data_dir", None, "Target folder; TFDS's default if not given. May be in gs://.")
    flags.DEFINE_string("from_folder", None, "Folder DIR/<split>/<class>/* of images that gets the --name.")
    flags.DEFINE_string(
        "local_dir", None, "Folder to prepare in before the upload to gs://; TFDS's default if not given."
    )
    flags.mark_flags_as_required(["name"])


def check_packages() -> None:
    """Raises MissingPackageError unless TFDS is installed."""
    require_extra("data", "tensorflow_datasets", "tensorflow", "array_record", what="prepare")


startup.begin(__name__, define_flags, check_packages)

import importlib
import inspect
import logging
import os
import sys
import types
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # TensorFlow logs a line about it

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import constants, registered

from vit_registers import cli
from vit_registers.config import nearest
from vit_registers.data.sources import folder_builder, tfds_location, tfds_prepared
from vit_registers.data.sources.catalog import SOURCES
from vit_registers.errors import ConfigError, DataError, UserError
from vit_registers.storage import objects, paths, upload


def main() -> None:
    """The command line."""
    name, images = flags.FLAGS.name, flags.FLAGS.from_folder
    data_dir, upload_to = _folders()
    if name in SOURCES:
        why = "this data set needs no preparation" if images is None else "give another name"
        raise DataError(f"--name={name}: {why}")
    path = None if images is not None else tfds_location.as_path(name)
    script = None if path is None else tfds_location.find_script(path)
    logging.getLogger("urllib3.connectionpool").addFilter(_SayOnce())
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        if images is not None:
            builder = folder_builder.make_builder(name, images, data_dir)
        elif script is not None:
            builder = _of_script(Path(script).resolve(), data_dir)
        else:
            builder = _of_name(name, data_dir)
        if builder.data_path.exists():
            again = "raise VERSION in its code" if images is None else f"delete {builder.data_path}"
            print(f"{name} is already prepared; {again} to prepare it again")
        else:
            builder.download_and_prepare(file_format="array_record")
        _check(builder.data_path)
    except UserError:
        raise
    except KeyboardInterrupt:
        line = f"{name} was not prepared: interrupted; run the same command to start again"
        raise DataError(line) from None
    # BaseException: builders are other people's code, which may call sys.exit
    except BaseException as error:
        where = "" if script is None else _line(error, Path(script).resolve())
        raise DataError(f"{name} was not prepared: {where}{tfds_location.one_line(error)}") from error
    print(f"{builder.name} is in {builder.data_dir}")
    if upload_to is not None:
        source = Path(builder.data_path).resolve()
        version = source.relative_to(Path(data_dir).resolve())
        upload.upload_folder(source, f"{upload_to}/{version}", last=constants.DATASET_INFO_FILENAME)


def _folders() -> tuple[str, str | None]:
    """The local folder of --data_dir or --local_dir, which is created, and the --data_dir in gs://."""
    target, local = flags.FLAGS.data_dir, flags.FLAGS.local_dir
    paths.check_scheme(target or "", "--data_dir")
    if target is not None and paths.is_remote(target):
        objects.has_objects(target)  # errors of the store before the work
        given, flag, upload_to = local, "--local_dir", target.rstrip("/")
    elif local is not None:
        raise ConfigError(f"--local_dir={local} is for a --data_dir in gs://: give only --data_dir")
    else:
        given, flag, upload_to = target, "--data_dir", None
    folder = str(tfds_location.full_data_dir(given))
    cli.local_folder(folder, flag)
    return folder, upload_to


class _SayOnce(logging.Filter):
    """Prints one line instead of urllib3's warning for every retry; the last error is raised."""

    _has_said = False

    def filter(self, record: logging.LogRecord) -> bool:
        if not self._has_said:
            self._has_said = True
            print("no connection yet: trying for some minutes", file=sys.stderr, flush=True)
        return False


def _of_name(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    data, config, _ = tfds_location.parse_name(name, "--name")
    known = tfds.list_builders(with_community_datasets=False)
    if data not in known:
        hint = tfds_location.hint_at_name(data, known)
        made = "--from_folder=DIR makes it of a folder of images"
        raise DataError(f"--name={name} is not known to TFDS: {hint}; {made}")
    configs = tfds.builder_cls(data).builder_configs
    if config is not None and config not in configs:
        hint = nearest(config, configs) if configs else "it has no configs"
        raise DataError(f"--name={name}: {data} has no config '{config}': {hint}")
    return tfds.builder(name, data_dir=data_dir)


def _of_script(script: Path, data_dir: str) -> tfds.core.DatasetBuilder:
    if not script.is_file():
        raise DataError(f"--name={script} does not exist: give a Python file with a builder")
    module = _import(script)
    if Path(module.__file__ or "").resolve() != script:
        raise DataError(f"--name={script} has the name of the module {module.__file__}: rename the file")
    classes = [value for value in vars(module).values() if inspect.isclass(value)]
    own = [value for value in classes if value.__module__ == module.__name__]
    found = [value for value in own if issubclass(value, tfds.core.DatasetBuilder)]
    bases = {base for value in found for base in value.__mro__[1:]}
    builders = [value for value in found if value not in bases]
    if len(builders) != 1:
        names = ", ".join(builder.__name__ for builder in builders) or "none"
        raise DataError(
            f"--name={script}: give one class that derives from a builder of tfds.core, not {names}"
        )
    missing = ", ".join(sorted(builders[0].__abstractmethods__))
    if missing:
        raise DataError(f"--name={script}: {builders[0].__name__} lacks {missing}")
    return builders[0](data_dir=data_dir)


def _import(script: Path) -> types.ModuleType:
    """The file as a module of the package that it lies in, as TFDS does it, or alone if that fails."""
    with registered.skip_registration():  # so that a name that TFDS has is allowed
        sys.path.insert(0, str(script.parent.parent))
        try:
            return importlib.import_module(f"{script.parent.name}.{script.stem}")
        except ImportError:
            sys.path[0] = str(script.parent)
            return importlib.import_module(script.stem)


def _line(error: BaseException, script: Path) -> str:
    """'FILE:LINE: ' of the last line of the builder's file that the error came through."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: "
    line, frame = None, error.__traceback__
    while frame is not None:
        if Path(frame.tb_frame.f_code.co_filename).resolve() == script:
            line = frame.tb_lineno
        frame = frame.tb_next
    return "" if line is None else f"{script}:{line}: "


def _check(folder: epath.Path) -> None:
    """Raises DataError for a prepared folder that is incomplete or holds TFRecord files."""
    builder = tfds_location.read_builder(folder)
    for split, info in builder.info.splits.items():
        if info.num_examples:
            tfds_prepared.find_parts(builder, split)
    kind = "unknown" if builder.info.file_format is None else builder.info.file_format.value
    if kind != "array_record":
        cure = "delete the folder to prepare it as array_record, or give another --data_dir"
        raise DataError(f"{folder} holds {kind} files: {cure}")


if __name__ == "__main__":
    cli.run(main)
