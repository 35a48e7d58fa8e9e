"""The occasions on which a setting may differ from the config of a run or of weights."""

import dataclasses
import typing

# Occasions on which a setting may differ.
RESUME = "resume"  # a run is resumed: the setting has no effect on its results
READ = "read"  # a checkpoint is loaded, evaluated or analysed: the parameters keep their meaning
TRANSFER = "transfer"  # training starts from a checkpoint: the setting adds tokens or depends on the task
ALWAYS = (RESUME, READ, TRANSFER)  # the setting selects how a model is computed, not which model it is


def differs_on(*occasions: str) -> dict[str, tuple[str, ...]]:
    """The metadata of a field that may differ on these occasions."""
    return {"may_change": occasions}


def setting(default: typing.Any, *occasions: str) -> typing.Any:
    """A field with its default, which may differ on these occasions."""
    return dataclasses.field(default=default, metadata=differs_on(*occasions))
