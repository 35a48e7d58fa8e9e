"""The names of checkpoints, one grammar for Python and all commands.

RUN            a run folder: its newest intact checkpoint
RUN@1000       the checkpoint of a step
RUN@all        all checkpoints, where several may be given
PATH           a file or folder of another code base
hf://ORG/NAME  a model on the Hugging Face Hub; hf://ORG/NAME@REVISION for a branch, tag or commit
"""

import os
import re
from typing import NamedTuple

from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.interop import hub

ALL = "all"
_STEP = re.compile("0|[1-9][0-9]{0,9}")


class CheckpointName(NamedTuple):
    """A parsed name. Nothing has been read."""

    path: str  # without the step; of a model on the Hub its whole name
    step: int | None = None
    is_all: bool = False  # all steps

    def local(self) -> str:
        """The path on this machine: `path`, or the folder of a model on the Hub, downloaded if needed.

        Raises CheckpointError if it cannot be downloaded.
        """
        return hub.download(self.path) if hub.is_hub(self.path) else self.path


def parse_checkpoint(
    text: str, step: int | None = None, *, where: str, is_all_allowed: bool = False
) -> CheckpointName:
    """The parts of a name. `step` is one that is given beside it, and `where` the setting that errors name.

    A path that exists is taken whole, also if it has an @. Raises ConfigError if two steps are given, and for
    RUN@all where only one checkpoint can be used.
    """
    if hub.is_hub(text):
        hub.check_hub_name(text)
        if step is not None:
            raise ConfigError(
                f"{where}={text}: a step is for run folders; a revision is hf://ORG/NAME@REVISION"
            )
        return CheckpointName(text)
    if text.startswith("~") and os.path.expanduser(text) == text and not os.path.lexists(text):
        raise CheckpointError(f"{where}={text}: there is no user of that name: give the path of the folder")
    path, at, suffix = text.rpartition("@")
    if not at or not path or os.path.lexists(os.path.expanduser(text)):
        return CheckpointName(text, step)
    if suffix == ALL:
        if not is_all_allowed:
            raise ConfigError(f"{where}={text}: @all is for analyze: give one step, as {path}@1000")
        if step is not None:
            raise ConfigError(f"{where}={text} with step {step}: give one of them")
        return CheckpointName(path, is_all=True)
    if not _STEP.fullmatch(suffix):
        if os.path.isdir(os.path.expanduser(path)):
            raise CheckpointError(f"{where}={text}: '{suffix}' is no step: give one as {path}@1000")
        return CheckpointName(text, step)
    if step not in (None, int(suffix)):
        raise ConfigError(f"{where}={text} with step {step}: give one of them")
    return CheckpointName(path, int(suffix))
