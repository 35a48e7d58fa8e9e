"""The example of docs/self_supervised.md runs."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs/self_supervised.md"


@pytest.mark.slow
def test_two_steps_from_given_arrays(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert "'dino_head'" in first
    assert first != second
