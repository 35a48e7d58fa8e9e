"""Templates and names of classes in files: of an installed package, which is not imported, or of the user."""

import ast
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vit_registers.errors import DataError, MissingPackageError

IMAGENET = "imagenet1k"
_BENCHMARK = "clip_benchmark/datasets/en_{}.json"
_OPEN_CLIP = "open_clip/zero_shot_metadata.py"
_REMEDY = (
    "install one that has it (pip install --no-deps clip-benchmark, or open_clip_torch for "
    f"{IMAGENET}), or give a file: \"file(path='prompts.json')\""
)


class ClassTexts(NamedTuple):
    """Templates with {} in the place of the class, and the names of the classes; () if they are not there."""

    templates: tuple[str, ...]
    names: tuple[str, ...] = ()


def packaged_texts(data: str, *, where: str) -> ClassTexts:
    """The templates and names of a data set, such as "imagenet1k", of open_clip_torch or clip-benchmark.

    Raises MissingPackageError if none of them is installed and has it, DataError if its files are damaged.
    """
    if data == IMAGENET and (path := _find(_OPEN_CLIP)) is not None:
        return _of_python(path)
    paths = [_find(_BENCHMARK.format(part)) for part in ("zeroshot_classification_templates", "classnames")]
    if paths[0] is not None and paths[1] is not None:
        templates, names = (_of_json(path) for path in paths if path is not None)
        if data in templates:
            found = tuple(template.replace("{c}", "{}") for template in templates[data])
            return ClassTexts(found, tuple(names.get(data, ())))
        known = ", ".join(sorted(templates))
        raise DataError(f"{where}: clip-benchmark has no templates of {data!r}; it has {known}")
    raise MissingPackageError(f"{where}: no installed package has templates of {data!r}: {_REMEDY}")


def texts_of_file(path: str, *, where: str) -> ClassTexts:
    """The same of a JSON file {"templates": ["a photo of a {}."], "names": ["cat", ...]}; names are optional.

    Raises DataError for a file that cannot be read or has another form.
    """
    found = _of_json(Path(path).expanduser())
    templates, names = found.get("templates"), found.get("names", [])
    for name, values in {"templates": templates, "names": names}.items():
        if not _are_texts(values):
            raise DataError(f"{where}: {path} must have {name!r}, a list of texts")
    if not templates or not all("{}" in template for template in templates):
        raise DataError(f"{where}: the templates of {path} must have {{}} in the place of the class")
    return ClassTexts(tuple(templates), tuple(names))


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) and value.strip() for value in values)


def _find(file: str) -> Path | None:
    package, _, rest = file.partition("/")
    found = importlib.util.find_spec(package)
    folders = (found.submodule_search_locations or ()) if found else ()
    return next((path for folder in folders if (path := Path(folder, rest)).is_file()), None)


def _of_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} must be an object of JSON")
    return found


def _of_python(path: Path) -> ClassTexts:
    """Of open_clip's file: OPENAI_IMAGENET_TEMPLATES, functions that return f-strings, and the names."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        values = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        templates: Any = values["OPENAI_IMAGENET_TEMPLATES"]
        names = ast.literal_eval(values["IMAGENET_CLASSNAMES"])
        return ClassTexts(tuple(_template(one.body.values) for one in templates.elts), tuple(names))
    except (OSError, SyntaxError, KeyError, AttributeError, ValueError) as error:
        raise DataError(f"{path} is not the file of OpenCLIP that has templates ({error!r})") from None


def _template(parts: Sequence[ast.expr]) -> str:
    """The template of the parts of an f-string."""
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
