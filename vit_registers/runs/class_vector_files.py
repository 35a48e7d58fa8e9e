"""Vectors of classes on disk, beside the results of a checkpoint: evaluation/class_vectors/DIGEST.npz."""

import io
import zipfile

import numpy as np
from etils import epath

from vit_registers.storage import files

_FOLDER = "class_vectors"


class ClassVectorFiles:
    """The KeptVectors of evaluation/zero_shot/kept.py in a folder of results, of this machine or of gs://."""

    def __init__(self, results: epath.Path) -> None:
        self._folder = results / _FOLDER

    def read(self, key: str) -> np.ndarray | None:
        """The vectors that were written with this key; None if there are none, or if the file is damaged."""
        try:
            with np.load(io.BytesIO(files.read_file(self._path(key))), allow_pickle=False) as arrays:
                return arrays["class_YxE"] if str(arrays["key"]) == key else None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def write(self, key: str, class_YxE: np.ndarray) -> None:
        """Writes the vectors; does nothing where files cannot be written."""
        file = io.BytesIO()
        np.savez(file, key=np.array(key), class_YxE=class_YxE)
        try:
            files.make_folder(self._folder)
            files.write_bytes(self._path(key), file.getvalue())
        except OSError:
            return

    def _path(self, key: str) -> epath.Path:
        return self._folder / f"{key[:16]}.npz"
