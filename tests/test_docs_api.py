"""The snippets of docs/api.md run in order."""

import contextlib
import io
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.fixtures.digits import make_config
from vit_registers.config import Data, Model
from vit_registers.interop.export import targets
from vit_registers.models.params import init_params
from vit_registers.runs.checkpoint_folder import TrainedOn

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
MODEL = Model(
    width=32,
    depth=4,
    num_heads=2,
    mlp_dim=64,
    patch_size=14,
    image_size=(28, 28),
    num_registers=4,
    num_classes=3,
)


@pytest.mark.slow
def test_the_snippets_run(untrained, run_here, tmp_path, monkeypatch):
    digits = TrainedOn(class_names=tuple("0123456789"), num_examples=10)
    untrained(tmp_path / "runs" / "digits", make_config(model={"num_registers": 4}), data=digits)
    params = init_params(MODEL, key=jax.random.key(0))
    data = Data(eval_ops="resize('pil_bicubic')")
    folder = tmp_path / "downloads" / "dinov2-with-registers-small"
    targets.write(targets.export(MODEL, params, "transformers"), folder, np.dtype("float32"), data)
    Image.new("RGB", (60, 40), (200, 100, 0)).save(tmp_path / "photo.jpg")
    text = PAGE.read_text().replace("runs/digits@2000", "runs/digits@1")  # the last step of a real run
    for command in re.findall(r"^vit-registers (convert .*?)(?:  #.*)?$", text, re.MULTILINE):
        program, *args = command.split()
        paths = [re.sub(r"=(runs|exported)/", rf"={tmp_path}/\1/", arg) for arg in args]
        code, _, err = run_here(program, *paths)
        assert code == 0, err
    monkeypatch.chdir(tmp_path)
    scope = {}
    blocks = re.findall(r"(<!-- not run: .*? -->\n)?```python\n(.*?)```", text, re.DOTALL)
    assert sum(bool(mark) for mark, _ in blocks) == 1 and len(blocks) > 8
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        for mark, code in blocks:
            if not mark:
                exec(code, scope)
    out = shown.getvalue()
    assert "LoadedModel of downloads/dinov2-with-registers-small" in out
    assert "images are uint8: must be normalised floats; preprocess" in out
    assert scope["images"].shape == (2, 28, 28, 3) and scope["found"].maps.shape == (2, 4, 2, 2)
    assert scope["each"].maps.shape == (4, 2, 2, 1, 2, 2) and scope["tokens"].prefix.shape == (4, 2, 5, 32)
    assert scope["run"].class_names == tuple("0123456789")
    assert scope["outputs"]["logits"].shape == (3, 10)
