"""The texts of each class: templates filled with names, by tasks.zero_shot.prompts. No JAX."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from vit_registers.config import Captions, ZeroShotSegmentationSettings, ZeroShotSettings
from vit_registers.config.strings import parse_call
from vit_registers.data.class_names import some
from vit_registers.errors import ConfigError
from vit_registers.evaluation.zero_shot.packaged import ClassTexts, packaged_texts, texts_of_file

SIMPLE = ("a photo of a {}.",)
_WHERE = "tasks.zero_shot.prompts"


class Prompts(NamedTuple):
    """The texts of each class, equally many of each, with what they are made of."""

    texts: list[list[str]]
    names: tuple[str, ...]  # of the classes, as in the texts


def _captions(captions: Captions) -> ClassTexts:
    return ClassTexts(captions.templates or SIMPLE, captions.class_texts)


def _simple(captions: Captions) -> ClassTexts:
    del captions
    return ClassTexts(SIMPLE)


def _package(captions: Captions, data: str) -> ClassTexts:
    del captions
    return packaged_texts(data, where=_WHERE)


def _file(captions: Captions, path: str) -> ClassTexts:
    del captions
    return texts_of_file(path, where=_WHERE)


PROMPTS: dict[str, Callable[..., ClassTexts]] = {
    "captions": _captions,
    "simple": _simple,
    "package": _package,
    "file": _file,
}


def class_prompts(
    settings: ZeroShotSettings | ZeroShotSegmentationSettings,
    captions: Captions,
    class_names: Sequence[str],
) -> Prompts:
    """The prompts of these classes.

    Names that tasks.zero_shot.prompts gives are for the classes in their order; without any, those of the
    data are taken, with spaces for _. Raises ConfigError if their number differs, ConfigError, DataError or
    MissingPackageError for prompts that are not there.
    """
    call = parse_call(settings.prompts, PROMPTS, where=_WHERE, example="package(data='imagenet1k')")
    templates, names = PROMPTS[call.name](captions, **call.arguments)
    if names and len(names) != len(class_names):
        raise ConfigError(
            f"{_WHERE}={settings.prompts!r} has {len(names)} names of classes ({some(names)}), and the data "
            f"has {len(class_names)} ({some(class_names)}): give one for each, in the order of the classes"
        )
    names = names or tuple(name.replace("_", " ") for name in class_names)
    return Prompts([[template.replace("{}", name) for template in templates] for name in names], names)
