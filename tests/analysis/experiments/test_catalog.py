"""What is listed is what there is: documents, features, papers."""

import re
from pathlib import Path

import pytest

from vit_registers.analysis.experiments.catalog import EXPERIMENTS
from vit_registers.analysis.features.table import FEATURES

ROOT = Path(__file__).parents[3]


def test_the_document_has_every_experiment_in_order():
    text = (ROOT / "docs" / "experiments.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+) \| (.+) \|$", text, re.MULTILINE)
    assert rows == [(name, one.question, one.answers) for name, one in EXPERIMENTS.items()]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_features_are_there_without_an_intervention(name):
    for feature in EXPERIMENTS[name].features:
        assert FEATURES[feature].needs != "intervention"


def test_what_a_model_lacks_is_named():
    assert EXPERIMENTS["register-activations"].lacking(("cls", "patches")) == "registers"
    assert EXPERIMENTS["accuracy"].lacking(("cls", "patches")) == "head"
    assert EXPERIMENTS["attention-maps"].lacking(("patches",)) == "cls and no registers"
    assert EXPERIMENTS["attention-maps"].lacking(("registers", "patches")) is None
    assert EXPERIMENTS["cost"].lacking(()) is None
