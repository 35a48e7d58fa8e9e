"""Vectors of classes are computed once for a checkpoint, and again for other parameters, texts or files."""

import jax
import numpy as np
import pytest

from vit_registers.config import Mesh, Text
from vit_registers.data.tokenizers.byte_values import Bytes
from vit_registers.evaluation.text_vectors import TextReader, text_vectors
from vit_registers.evaluation.zero_shot import classify
from vit_registers.evaluation.zero_shot.kept import vectors_key
from vit_registers.evaluation.zero_shot.prompts import Prompts
from vit_registers.objectives.image_text.towers import init_text
from vit_registers.runs.class_vector_files import ClassVectorFiles
from vit_registers.runtime.mesh import make_mesh
from vit_registers.storage import paths
from vit_registers.training.sharding import parameter_shardings, put_same

TEXT = Text(width=16, depth=1, num_heads=2, mlp_dim=32, vocab_size=258, context=12, embed_dim=8)
READER = TextReader(TEXT, Bytes())
PROMPTS = Prompts([["a cat", "the cat"], ["a dog", "the dog"], ["a cow", "the cow"]], ("cat", "dog", "cow"))


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(Mesh(), devices=jax.devices()[:2])


@pytest.fixture(scope="module")
def params():
    return {"text": jax.device_get(init_text(TEXT, key=jax.random.key(0)))}


@pytest.fixture
def vectors(tmp_path, mesh, params, monkeypatch):
    """vectors(...) -> (class_YxE, whether the text tower ran)."""
    calls = []

    def counted(*args):
        calls.append(args)
        return text_vectors(*args)

    monkeypatch.setattr(classify, "text_vectors", counted)

    def vectors(*, params=params, prompts=PROMPTS, reader=READER, folder=tmp_path):
        before = len(calls)
        kept = ClassVectorFiles(paths.folder(str(folder)))
        return classify.class_vectors(reader, params, prompts, mesh, kept=kept), len(calls) > before

    return vectors


def test_a_second_call_does_not_run_the_text_tower(vectors, mesh, params):
    first, is_run = vectors()
    assert is_run
    second, is_run = vectors()
    assert not is_run
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, classify.class_vectors(READER, params, PROMPTS, mesh))


def changed(params, change):
    found = jax.tree.map(np.array, params)
    change(found["text"])
    return found


def _next_float(text):
    kernel = next(iter(jax.tree.leaves(text)))
    kernel.flat[-1] = np.nextafter(kernel.flat[-1], np.float32(np.inf))


def _swap_tokens(text):
    table = next(x for x in jax.tree.leaves(text) if x.shape[0] == TEXT.vocab_size)
    table[[97, 98]] = table[[98, 97]]


@pytest.mark.parametrize("change", [_next_float, _swap_tokens])
def test_other_parameters_have_other_vectors(vectors, params, change):
    vectors()
    assert vectors(params=changed(params, change))[1]
    assert not vectors(params=changed(params, change))[1]
    assert not vectors()[1]  # those of the first ones are still there


def test_other_texts_and_settings_have_other_vectors(vectors):
    vectors()
    assert vectors(prompts=PROMPTS._replace(texts=[*PROMPTS.texts[:2], ["a cow", "one cow"]]))[1]
    assert vectors(prompts=PROMPTS._replace(texts=PROMPTS.texts[::-1]))[1]
    assert vectors(reader=TextReader(Text(**{**vars(TEXT), "activation": "quick_gelu"}), Bytes()))[1]

    class Others(Bytes):
        def saved(self):
            return {**super().saved(), "more": 1}

    assert vectors(reader=TextReader(TEXT, Others()))[1]
    assert not vectors()[1]


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "other key"])
def test_a_damaged_file_is_computed_again(vectors, tmp_path, damage):
    first, _ = vectors()
    (path,) = (tmp_path / "class_vectors").iterdir()
    content = path.read_bytes()
    if damage == "other key":
        with np.load(path) as arrays:
            np.savez(path, class_YxE=np.zeros_like(arrays["class_YxE"]), key=np.array("0" * 64))
    else:
        flipped = bytearray(content)
        flipped[content.index(first.tobytes()) + 5] ^= 1
        path.write_bytes({"cut": content[:-50], "changed": bytes(flipped), "empty": b""}[damage])
    again, is_run = vectors()
    assert is_run
    np.testing.assert_array_equal(first, again)
    assert not vectors()[1]


def test_where_nothing_can_be_written_they_are_computed(vectors, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for _ in range(2):
        assert vectors(folder=tmp_path / "file")[1]
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_they_are_kept_in_an_object_store(vectors, gs_folder):
    assert vectors(folder=gs_folder)[1]
    assert not vectors(folder=gs_folder)[1]


def test_the_key_does_not_depend_on_the_sharding(params, mesh):
    keys = set()
    for shape in ({}, {"fsdp": 4}, {"tensor": 2}):
        other = make_mesh(Mesh(**shape)) if shape else mesh
        placed = put_same(params, parameter_shardings(params, other))
        keys.add(vectors_key(READER, placed, PROMPTS, other))
    assert len(keys) == 1
