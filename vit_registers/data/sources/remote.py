"""Data in gs://: what is checked before it is read, and what is refused. No TensorFlow."""

import os

from vit_registers.errors import DataError
from vit_registers.storage import objects, paths

_EMULATOR = "CLOUD_STORAGE_EMULATOR_ENDPOINT"  # array_record then uses no credentials
_LOGIN = "run 'gcloud auth application-default login', or set GOOGLE_APPLICATION_CREDENTIALS"


def check_access(path: str, setting: str) -> None:
    """Does nothing for local paths. For one in gs://, checks that its bucket can be listed.

    array_record retries for minutes, without a message, where credentials are missing, and it does not read
    public buckets without them, as gcsfs does. Raises ConfigError for another object store, OSError for a
    bucket that does not exist or may not be listed, DataError if array_record would find no credentials.
    """
    paths.check_scheme(path, setting)
    if not paths.is_remote(path):
        return
    objects.has_objects(path)
    if _EMULATOR not in os.environ:
        import google.auth
        import google.auth.exceptions

        try:
            google.auth.default()  # looks where array_record looks
        except google.auth.exceptions.GoogleAuthError:
            raise DataError(f"{setting}={path}: no credentials of Google Cloud are found: {_LOGIN}") from None


def refuse_folder(path: str, setting: str) -> None:
    """Raises DataError if the path of an image folder is in an object store. Does nothing for local paths."""
    paths.check_scheme(path, setting)
    if paths.is_remote(path):
        raise DataError(
            f"{setting}={path}: image folders are read from local disks only, as a store takes a request for "
            "every file: copy the folder to a disk, and run 'vit-registers prepare --name=NAME "
            "--from_folder=COPY --data_dir=gs://BUCKET/FOLDER', which packs it and uploads it"
        )
