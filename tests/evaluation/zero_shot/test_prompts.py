"""Prompts: templates and names of runs, of installed packages that are not imported, and of files."""

import json
import sys

import pytest

from vit_registers.config import Captions, ZeroShotSettings
from vit_registers.errors import ConfigError, DataError, MissingPackageError, UserError
from vit_registers.evaluation.zero_shot.packaged import packaged_texts
from vit_registers.evaluation.zero_shot.prompts import class_prompts

NAMES = ("tiger_cat", "dog")


def prompts(text, captions=None, names=NAMES):
    return class_prompts(ZeroShotSettings(prompts=text), captions or Captions(), names)


def test_prompts_of_the_captions_of_a_run():
    captions = Captions(templates=("a {}.", "the {}, a {}"), class_texts=("cat", "dog"))
    found = prompts("captions", captions)
    assert found.texts == [["a cat.", "the cat, a cat"], ["a dog.", "the dog, a dog"]]
    assert found.names == ("cat", "dog")
    assert prompts("simple", captions).texts == [["a photo of a tiger cat."], ["a photo of a dog."]]
    assert prompts("captions").texts == prompts("simple").texts


def test_prompts_of_a_file(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"templates": ["{}!"], "names": ["x", "y"]}))
    assert prompts(f"file(path='{path}')").texts == [["x!"], ["y!"]]
    path.write_text(json.dumps({"templates": ["{}!"]}))
    assert prompts(f"file(path='{path}')").texts == [["tiger cat!"], ["dog!"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "must be an object of JSON"),
        ("{", "is not JSON"),
        ('{"names": ["a"]}', "must have 'templates', a list of texts"),
        ('{"templates": [""]}', "must have 'templates', a list of texts"),
        ('{"templates": ["a photo"]}', "must have {} in the place of the class"),
        ('{"templates": ["{}"], "names": ["a", "b", "c"]}', "has 3 names of classes .* and the data has 2"),
    ],
)
def test_bad_files_are_one_line(tmp_path, content, message):
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        prompts(f"file(path='{path}')")
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="cannot be read"):
        prompts(f"file(path='{tmp_path / 'other.json'}')")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 0 names"),
        ("openai", "prompts='openai' is unknown"),
        ("package", "package requires 'data'"),
        ("file(path=3)", "must be str"),
    ],
)
def test_bad_settings_are_one_line(text, message):
    with pytest.raises(ConfigError, match=message):
        prompts(text)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """packages(*names): a folder of installed packages with files in the form of these two.

    A package that is not named hides the installed one, and has none of its files.
    """

    def make(*names):
        for name in ("open_clip", "clip_benchmark"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported')")
        if "open_clip" in names:
            (tmp_path / "open_clip" / "zero_shot_metadata.py").write_text(
                "OPENAI_IMAGENET_TEMPLATES = (\n    lambda c: f'a {c}.',\n"
                "    lambda c: f'the {c}, {{x}}.',\n)\n"
                "SIMPLE_IMAGENET_TEMPLATES = (lambda c: f'itap of a {c}.',)\n"
                "IMAGENET_CLASSNAMES = ('tench', \"jack-o'-lantern\")\n"
            )
        if "clip_benchmark" in names:
            folder = tmp_path / "clip_benchmark" / "datasets"
            folder.mkdir()
            templates = {"imagenet1k": ["x {c}"], "cifar10": ["a {c}.", "one {c}"]}
            (folder / "en_zeroshot_classification_templates.json").write_text(json.dumps(templates))
            (folder / "en_classnames.json").write_text(json.dumps({"imagenet1k": ["A", "B"]}))
        for name in ("open_clip", "clip_benchmark"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        return tmp_path

    return make


def test_the_file_of_open_clip_is_read_and_not_imported(packages):
    packages("open_clip", "clip_benchmark")
    found = prompts("package(data='imagenet1k')")
    assert found.texts[0] == ["a tench.", "the tench, {x}."]
    assert found.texts[1] == ["a jack-o'-lantern.", "the jack-o'-lantern, {x}."]
    assert "open_clip" not in sys.modules


def test_the_files_of_clip_benchmark(packages):
    packages("clip_benchmark")
    assert prompts("package(data='imagenet1k')").texts == [["x A"], ["x B"]]
    assert prompts("package(data='cifar10')").texts[1] == ["a dog.", "one dog"]
    with pytest.raises(DataError, match="no templates of 'mnist'; it has cifar10, imagenet1k"):
        prompts("package(data='mnist')")


def test_missing_and_damaged_packages_are_one_line(packages):
    folder = packages("open_clip")
    with pytest.raises(MissingPackageError, match="pip install --no-deps clip-benchmark"):
        prompts("package(data='cifar10')")
    (folder / "open_clip" / "zero_shot_metadata.py").write_text("x = 1")
    with pytest.raises(DataError, match="is not the file of OpenCLIP"):
        prompts("package(data='imagenet1k')")


def test_the_prompts_of_imagenet_as_installed():
    try:
        found = packaged_texts("imagenet1k", where="here")
    except MissingPackageError as error:
        pytest.skip(str(error))
    assert len(found.templates) == 80
    assert len(found.names) == 1000
    assert len(set(found.names)) == 998
    assert found.templates[0] == "a bad photo of a {}."
    assert found.names[:2] == ("tench", "goldfish")
