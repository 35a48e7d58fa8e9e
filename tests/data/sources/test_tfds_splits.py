"""Splits as text: as TFDS reads them, or refused where TFDS gives other examples than were asked for."""

import itertools

import pytest

from tests.fixtures.quick import parametrize_quick
from vit_registers.data.loaders import open_also_eval, open_data
from vit_registers.data.sources.tfds_splits import parse_split
from vit_registers.errors import DataError

# More than 57 examples, 100 % or 4 files are past the end.
BOUNDS = (
    *(
        "0",
        "1",
        "-1",
        "20",
        "57",
        "-57",
        "58",
        "-58",
        "1_0",
        "0%",
        "33.3%",
        "-33.3%",
        "100%",
        "101%",
        "-0.5%",
    ),
    *("0shard", "1shard", "4shard", "5shard", "-1shard", "-5shard"),
)
REFUSED = {
    "train[50:1000]": "split 'train[50:1000]' of toy reaches 1000, but 'train' has 57 examples",
    "train[-100:]": "reaches -100, but 'train' has 57 examples",
    "train[:100shard]": "reaches 100, but 'train' has 4 files",  # TFDS gives all
    "train[4shard]": "'train' has 4 files",
    "train[200%:]": "has the bound 200%: write -100% to 100%",
    "train[10:10]": "split 'train[10:10]' of toy is empty: 'train' has 57 examples",
    "train[10:5]": "is empty",
    "train[57:]": "is empty",
    "train[:0shard]": "is empty",  # TFDS gives all
    "train[5:50%]": "has bounds of two units",  # TFDS reads 5%
    "train[1.5:]": "only % may have a fraction",
    "train[:50%]+train[40%:]": "has 5 examples twice",
    "train+train": "has 57 examples twice",
    "tset": "toy has no split 'tset': did you mean 'test'?",
    "trian[:5]": "toy has no split 'trian' (in 'trian[:5]'): did you mean 'train'?",
    "train[:5]+tset": "no split 'tset' (in 'train[:5]+tset')",
    " train ": "toy has no split ' train ': did you mean 'train'?",
    "": "split '' of toy cannot be read: parts are written as in 'train[:99%]'",
    "train[:]": "cannot be read",
    "train[3]": "cannot be read",
    "train[ :5]": "cannot be read",
    "train[:nan%]": "cannot be read",
    "train+": "cannot be read",
    "train[1:2:3]": "cannot be read",
}


@pytest.fixture(scope="module")
def toy(data_dirs):
    tfds = pytest.importorskip("tensorflow_datasets")
    return tfds.builder_from_directory(str(data_dirs["array_record"] / "toy" / "1.0.0"))


def test_parts_are_those_of_tfds(toy):
    tfds = pytest.importorskip("tensorflow_datasets")
    shard_lengths = {name: info.shard_lengths for name, info in toy.info.splits.items()}

    def records(split):
        found = toy.info.splits[split].file_instructions
        return [(part.filename, part.skip, part.take) for part in found]

    texts = [f"train[{a}:{b}]" for a, b in itertools.product(["", *BOUNDS], repeat=2)]
    texts += [f"train[{a}]" for a in BOUNDS]
    texts += ["all", "train", "train+test", "test + train[:10]", "train[20:30]+train[:10]+test[-5:]"]
    num_equal = 0
    for text in texts:
        try:
            parts = parse_split(text, shard_lengths, data="toy")
        except DataError:
            continue
        ours = []
        for part in parts:
            ours += records(tfds.core.ReadInstruction(part.name, from_=part.start, to=part.stop, unit="abs"))
        assert ours == records(text), text
        num_equal += 1
    assert num_equal > 60


@pytest.mark.parametrize("kind", ["array_record", "memory_array_record", "tfrecord"])
def test_what_is_refused_for_training_and_evaluation(kind, make_config, device):
    loader = open_data(make_config(kind))
    for split, message in REFUSED.items():
        with pytest.raises(DataError) as error:
            loader.num_examples(split)
        assert message in str(error.value)
        with pytest.raises(DataError) as again:
            next(iter(loader.eval_batches(split, device)))
        assert str(again.value) == str(error.value)
    with pytest.raises(DataError, match="reaches 1000, but 'train' has 57 examples"):
        next(open_data(make_config(kind, train_split="train[50:1000]")).train_batches(0, device))


@parametrize_quick("kind", ["memory_array_record", "array_record", "tfrecord"])
def test_parts_hold_their_examples(kind, make_config, device, small):
    loader = open_data(make_config(kind))
    for split, expected in {
        "train[-5:]": range(52, 57),
        "train[10:20]+test": [*range(10, 20), *range(11)],
        "train[1shard]": range(14, 28),
    }.items():
        batch = small.take(loader.eval_batches(split, device), None)
        assert small.numbers(batch)[batch.mask_B].tolist() == list(expected)
        assert loader.num_examples(split) == len(expected)


def test_other_splits_to_evaluate(make_config):
    config = make_config("array_record", also_eval=("toy train[50:1000]",))
    with pytest.raises(DataError, match="reaches 1000, but 'train' has 57 examples"):
        open_also_eval(config, open_data(config))
