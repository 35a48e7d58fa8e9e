"""README.md and docs/: links resolve, commands parse, and the snippets of the README run."""

import functools
import json
import re
import shlex
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tools import docs_pages
from vit_registers import cli
from vit_registers.__main__ import COMMANDS
from vit_registers.analysis.experiments.catalog import EXPERIMENTS
from vit_registers.analyze import ALL
from vit_registers.config import Data, Model
from vit_registers.config.cards import card_paths
from vit_registers.convert import STABLEHLO
from vit_registers.interop.export import targets
from vit_registers.models.params import init_params

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PROGRAM = re.compile(rf"(?:vit-registers|-m vit_registers[. ]) ?({'|'.join(COMMANDS)})(?= |$)")
_LEFT_OUT = ("...", "NAME", "[")  # commands with one of these show the form of a command


def text_of(path):
    """The Markdown of a page or notebook."""
    if path.suffix == ".ipynb":
        return docs_pages.notebook_markdown(json.loads(path.read_text()))
    return path.read_text()


def without_code(text):
    return re.sub(r"`[^`]*`", "", _BLOCK.sub("", text))


def anchors(path):
    """The anchors of the headings of a page, as git hosts and mkdocs make them."""
    titles = _HEADING.findall(_BLOCK.sub("", path.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def commands_of(text):
    """(program, arguments) of each command of our programs in the blocks of a page."""
    for kind, code in _BLOCK.findall(text):
        if kind != "sh":
            continue
        for line in code.replace("\\\n", " ").splitlines():
            found = _PROGRAM.search(line)
            words = shlex.split(line[found.end() :], comments=True) if found else []
            if found and not any(mark in word for word in words for mark in _LEFT_OUT):
                yield found[1], words


COMMANDS_OF_PAGES = sorted({(p, *w) for path in [*PAGES, *NOTEBOOKS] for p, w in commands_of(text_of(path))})


def test_the_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 120
    assert max(len(line) for line in lines if not line.startswith("<img")) <= 120


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_links_resolve(path):
    targets = [one or other for one, other in _LINK.findall(without_code(text_of(path)))]
    for target in targets:
        if target.startswith(("https://", "data:")):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]))
    generated = {*docs_pages.TOP.values(), *(f"notebooks/{path.stem}.md" for path in NOTEBOOKS)}
    assert named == {path.name for path in (ROOT / "docs").glob("*.md")} | generated


def test_the_pages_have_commands_of_every_program():
    assert {program for program, *_ in COMMANDS_OF_PAGES} == set(COMMANDS)
    assert len(COMMANDS_OF_PAGES) > 45


@pytest.fixture
def parse(run_here, monkeypatch):
    """parse("train", ["--flag=..."]) -> (exit code, standard error) of the program, which does not run."""

    def parse_only(main):
        if any(arg.startswith("--config=") for arg in sys.argv):
            cli.call(cli.config_of_flags)
        sys.exit(0)

    def parse(program, args):
        monkeypatch.setattr(cli, "run", parse_only)
        if program in ("analyze", "configs") and args and not args[0].startswith("-"):
            name = args[0].partition(":")[0]
            known = {"analyze": {ALL, *EXPERIMENTS}, "configs": card_paths()}[program]
            if not set(name.split(",")) <= set(known):
                return 2, f"error: {name}"
        if program == "convert":
            kinds = [arg.removeprefix("--to=") for arg in args if arg.startswith("--to=")]
            if not set(kinds) <= {"run", STABLEHLO, *targets.TARGETS}:
                return 2, f"error: {kinds}"
        code, _, err = run_here(program, *args)
        return code, err

    return parse


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder of weights as transformers writes them, of a tiny model with 4 registers."""
    model = Model(
        width=32,
        depth=2,
        num_heads=2,
        mlp_dim=64,
        patch_size=14,
        image_size=(28, 28),
        num_registers=4,
        num_classes=0,
    )
    exported = targets.export(model, init_params(model, key=jax.random.key(0)), "transformers")
    folder = tmp_path_factory.mktemp("tiny") / "facebook" / "dinov2-with-registers-small"
    targets.write(exported, folder, np.dtype("float32"), Data(eval_ops="resize('pil_bicubic')"))
    return folder


@pytest.mark.parametrize("command", COMMANDS_OF_PAGES, ids=" ".join)
def test_commands_parse(command, parse, tmp_path, tiny):
    """Flags, run cards and their arguments, settings and names of experiments exist. Nothing runs."""
    program, *args = command

    (tmp_path / "mine.py").write_text((ROOT / "configs" / "digits.py").read_text())
    files = {"--config=mine.py": f"--config={tmp_path}/mine.py", "path=weights.": f"path={tiny}/model."}
    args = [functools.reduce(lambda arg, old: arg.replace(old, files[old]), files, arg) for arg in args]
    code, err = parse(program, args)
    assert code == 0, err


def test_tools_of_the_pages_exist():
    for path in PAGES:
        for name in re.findall(r"-m (tools[.\w]*)", path.read_text()):
            file = ROOT / name.rstrip(".").replace(".", "/")
            assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), (path.name, name)


def test_snippets_of_the_readme_run(tiny, tmp_path, monkeypatch):
    (tmp_path / "facebook").symlink_to(tiny.parent)
    Image.new("RGB", (60, 40), (200, 100, 0)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    scope = {}
    snippets = [code for kind, code in _BLOCK.findall(README.read_text()) if kind == "python"]
    for code in snippets:
        exec(code.replace("hf://", ""), scope)
    assert len(snippets) == 2 and len(snippets[0].strip().splitlines()) == 5
    assert scope["maps"].shape == (1, 4, 2, 2)
    assert scope["config"].model.depth == 6 and scope["config"].run.total_steps == 500


def test_notebooks_hold_their_outputs():
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        outputs = [one for cell in cells if cell["cell_type"] == "code" for one in cell["outputs"]]
        assert not any(one["output_type"] == "error" for one in outputs)
        assert sum("image/png" in one.get("data", {}) for one in outputs) >= 3
        assert path.stat().st_size < 400_000


@pytest.mark.parametrize(
    "command",
    [
        "train --config=digits:regsters=4 --workdir=x",
        "train --config=digit --workdir=x",
        "train --config=digits --config.model.dpth=3",
        "analyze nroms --checkpoint=x",
        "evaluate --chekpoint=x",
        "convert --input=x --ouput=y",
        "convert --input=x --output=y --to=tinn",
        "configs digit",
    ],
)
def test_wrong_commands_do_not_parse(command, parse):
    program, *args = command.split()
    code, err = parse(program, args)
    assert code == 2 and err.startswith("error: ")
