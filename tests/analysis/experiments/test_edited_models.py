"""Models to which no register can be added are stated gaps."""

import types

import pytest

from vit_registers.analysis.experiments import edited_models
from vit_registers.analysis.report.result import Gap
from vit_registers.config import Model


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"pooling": "cls_registers", "num_registers": 1}, "its head reads the registers"),
        ({"mask": "file(path='m.npy', sha256='0')"}, "the matrix of its mask has no rows"),
    ],
)
def test_no_register_can_be_added(settings, reason, monkeypatch):
    monkeypatch.setattr(edited_models, "find_neurons", lambda subject, options: object())
    found = edited_models.start_trial(types.SimpleNamespace(name="a", model=Model(**settings)), None)
    assert isinstance(found, Gap) and reason in str(found)
