"""Where the parameters of the main configs lie is as docs/parameters says."""

import subprocess
import sys

import pytest

from tests.fixtures.quick import parametrize_quick
from tools.dump_parameters import CARDS, FOLDER, card_table


@parametrize_quick("name", CARDS)
def test_the_tables_are_those_of_the_configs(name):
    ours, written = card_table(CARDS[name]), (FOLDER / f"{name}.txt").read_text()
    assert ours.splitlines() == written.splitlines(), "if that is meant: python -m tools.dump_parameters"


def test_there_is_a_table_for_each_card_and_no_other():
    assert {path.stem for path in FOLDER.iterdir()} == set(CARDS)


@pytest.mark.slow
def test_a_table_wants_a_number_of_devices(quick):
    command = [sys.executable, "-m", "tools.dump_parameters", "--config=configs/digits.py"]
    done = subprocess.run(command, cwd=FOLDER.parents[1], env=quick(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: --config requires --devices=N")
