"""Downloads and prepares a TFDS data set as array_record, which is read by random access.

    python -m tools.prepare_data --name=cifar10 [--data_dir=DIR]

For data sets whose archives TFDS cannot download, such as imagenet2012, put them into
DIR/downloads/manual first.
"""

from vit_registers import startup

startup.begin(__name__)

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import flags

from vit_registers import cli
from vit_registers.errors import DataError


def main() -> None:
    """The command line."""
    import tensorflow_datasets as tfds

    name, data_dir = flags.FLAGS.name, flags.FLAGS.data_dir
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # of the many packages below; all that matters is what it says
        raise DataError(f"{name} was not prepared: {type(error).__name__}: {error}") from error
    print(f"{name} is in {builder.data_dir}")


if __name__ == "__main__":
    flags.DEFINE_string("name", None, "TFDS name, such as cifar10 or imagenette/160px-v2.")
    flags.DEFINE_string("data_dir", None, "Where to; TFDS's own default if not given.")
    flags.mark_flags_as_required(["name"])
    cli.run(main)
