"""The rows of the parity table that no other file tests: their model and ours, from a folder and memory."""

import jax
import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from tools import parity_table
from tools.parity.rows import ROWS, error, errors
from vit_registers.interop import reading

pytest.importorskip("torch")
pytest.importorskip("transformers")

# Names of models; test_timm.py, test_transformers.py and others have more of the other rows.
_OWN = ("Siglip", "MetaClip2", "ViTMAE", "ViTMSN", "IJepa", "Radio", "_radio_", "_intern", "beit3")
OWN = [row for row in ROWS if any(part in row.name for part in _OWN)]


@parametrize_quick("row", OWN, number=len(OWN), ids=[f"{row.source} {row.family}" for row in OWN])
def test_tokens_pooled_and_answer_at_both_sizes(row, timm):
    assert max(errors(row)) <= parity_table.LIMIT


@pytest.mark.parametrize(
    "row", [row for row in OWN if row.source == "transformers"], ids=lambda row: row.family
)
def test_names_in_memory_give_the_same_model_as_a_folder(row, numpy_state, params):
    theirs = row.make()
    told = {"hidden_act": "quick_gelu"} if "MetaClip2" in row.name else {}
    ours = reading.from_state_dict(numpy_state(theirs), source="auto", num_heads=4, **told)
    folder = row.load(theirs)
    eps = ours.model.norm_eps if "MSN" not in row.name else 1e-6  # no tensor tells that it is not ViT's
    assert (folder.model.width, folder.model.pooling, folder.model.norm_eps) == (32, ours.model.pooling, eps)
    jax.tree.map(np.testing.assert_array_equal, params(ours), params(folder))


def test_the_error_of_a_wrong_output_is_seen():
    theirs = {"tokens": np.ones((1, 2, 3)), "pooled": np.full((1, 3), 2.0)}
    assert error(theirs, theirs) == 0
    assert error(theirs | {"pooled": np.full((1, 3), 2.5)}, theirs) == 0.25


def test_unknown_words_and_flags_are_refused_before_anything_is_computed():
    for arguments, message in (
        (["--wirte"], "is no flag"),
        (["nothing-of-the-kind"], "no row"),
        (["--write", "radio"], "takes no words"),
    ):
        with pytest.raises(SystemExit, match=message):
            parity_table.main(arguments)
