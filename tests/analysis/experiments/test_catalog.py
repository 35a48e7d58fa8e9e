"""The catalog of experiments against the documents, the files and the features."""

import inspect
from pathlib import Path

import pytest

from vit_registers.analysis.experiments.catalog import EXPERIMENTS, markdown_table
from vit_registers.analysis.features.table import FEATURES

ROOT = Path(__file__).parents[3]


def test_the_document_has_the_table_of_the_catalog():
    text = (ROOT / "docs" / "experiments.md").read_text()
    assert f"\n\n{markdown_table()}\n" in text, "run python -m tools.experiments_table"


def test_every_experiment_has_the_file_of_its_name():
    """Shared modules hold no experiment."""
    folder = ROOT / "vit_registers" / "analysis" / "experiments"
    files = {path.stem for path in folder.glob("*.py") if "\nEXPERIMENT = " in path.read_text()}
    assert files == {name.replace("-", "_") for name in EXPERIMENTS}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_columns_and_comparison_are_declared(name):
    one = EXPERIMENTS[name]
    assert one.tables and all(one.tables.values())
    assert bool(one.compares) != (one.sums_up is not None)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_features_are_there_without_an_intervention(name):
    for feature in EXPERIMENTS[name].features:
        assert FEATURES[feature].needs != "intervention"


def test_what_a_model_lacks_is_named():
    assert EXPERIMENTS["register-activations"].lacking(("cls", "patches")) == "registers"
    assert EXPERIMENTS["accuracy"].lacking(("cls", "patches")) == "head"
    assert EXPERIMENTS["attention-maps"].lacking(("patches",)) == "cls and no registers and no summaries"
    assert EXPERIMENTS["attention-maps"].lacking(("registers", "patches")) is None
    assert EXPERIMENTS["cost"].lacking(()) is None


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_that_run_the_model_say_so(name):
    """They share a thread, as two must not write the same features at once."""
    source = inspect.getsource(inspect.getmodule(EXPERIMENTS[name].measure))
    calls = (".rerun(", ".native(", "run_unedited(", "edited_models.start_trial(")
    calls += ("find_variants(", "compare_variants(", "segment_by_texts(")
    assert EXPERIMENTS[name].runs_model == any(call in source for call in calls)
