"""More splits and data sets to evaluate while training, and the whole of it on recipes at a small size."""

import json
import sys

import pytest

from vit_registers import config as config_lib
from vit_registers.errors import DataError
from vit_registers.train import train

TINY = {"model.depth": 1, "model.width": 16, "model.num_heads": 2, "optimizer.warmup_steps": 1}


def _config(monkeypatch, **overrides):
    monkeypatch.syspath_prepend("configs")
    monkeypatch.delitem(sys.modules, "digits", raising=False)
    import digits

    return config_lib.override(digits.get_config("steps=2"), TINY | overrides)


def test_other_splits_are_evaluated_beside_the_first(tmp_path, monkeypatch):
    also = ("digits train", "digits train[:10%]")
    config = _config(monkeypatch, **{"data.also_eval": also, "data.loader": "tfdata"})
    config = config_lib.override(config_lib.to_dict(config), {"data.data_dir": str(tmp_path / "data")})
    train(config, str(tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = {key: value for line in lines for key, value in line.items() if key.endswith("/images")}
    assert found == {"test/images": 359, "digits:train/images": 1438, "digits:train[:10%]/images": 144}


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ("digits tset", "digits has no split 'tset': did you mean 'test'"),
        ("imagenet2012_real validation", "is not prepared in .*; or leave it out"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_the_first_step(also, message, tmp_path, monkeypatch):
    config = _config(monkeypatch, **{"data.also_eval": (also,), "data.data_dir": str(tmp_path)})
    with pytest.raises(DataError, match=message):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()
