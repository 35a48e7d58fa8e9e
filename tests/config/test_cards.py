"""Run cards are found by name, and `vit-registers configs` describes them."""

import runpy
from pathlib import Path

import pytest

from vit_registers.config import cards
from vit_registers.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_run_cards_of_a_clone_are_the_files_in_configs():
    assert list(cards.card_paths().values()) == sorted(CONFIGS.glob("*.py"))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_run_card_describes_itself_and_all_its_arguments(path):
    card = cards.read_card(path)
    assert card.title.endswith(".") and card.defaults and card.has_sweep
    assert all(name in card.arguments for name in card.defaults if name != "steps"), card.arguments
    assert runpy.run_path(str(path))["__doc__"].startswith(card.title)


def test_names_come_before_folders_and_paths_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits.py").write_text("")
    assert cards.find_config("digits") == CONFIGS / "digits.py"
    assert cards.find_config("digits.py") == Path("digits.py")
    assert cards.find_config("./digits") == Path("digits")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("digts", "there is no such run card: did you mean 'digits'"),
        ("mnist", "there is no such run card: known: cifar10, clip_cifar10, clip_digits, deit3"),
        ("digits.py", "there is no such file; the run card is digits"),
        ("configs/digits.py", "there is no such file; the run card is digits"),
        ("other.py", "there is no such file$"),
        ("digits,registers=4", "follow a colon, as in digits:registers=4"),
        ("digits.registers=4", "follow a colon, as in digits:registers=4"),
    ],
)
def test_what_is_not_there_is_answered_with_the_nearest(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        cards.find_config(given)


def test_configs_lists_shows_and_copies(run_here, tmp_path):
    code, out, _ = run_here("configs")
    assert code == 0 and all(path.stem in out for path in CONFIGS.glob("*.py"))
    code, out, _ = run_here("configs", "digits")
    assert code == 0 and "steps      2000" in out and "File: " in out
    target = tmp_path / "mine.py"
    assert run_here("configs", "digits", f"--copy={target}")[0] == 0
    assert target.read_text() == (CONFIGS / "digits.py").read_text()
    assert run_here("configs", str(target))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digts",), "did you mean 'digits'"),
        (("--copy=mine.py",), "name a run card first"),
        (("digits", "--copy=mine"), "give the name of a Python file"),
        (("digits", f"--copy={__file__}"), "exists: give another name"),
        ((__file__,), "is not a config file"),
    ],
)
def test_wrong_commands_are_one_line(run_here, arguments, message):
    code, _, err = run_here("configs", *arguments)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and message in err
