"""Images with captions in folders, lists, tar files and data sets of TFDS."""

import csv
import dataclasses
import io
import itertools
import json
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image

from vit_registers.config import Captions, Config, Data, Model
from vit_registers.data.batch import IMAGE, TOKENS, Texts, Training, View
from vit_registers.data.loaders import open_data
from vit_registers.data.sources import tar_index
from vit_registers.data.tokenizers.catalog import open_tokenizer
from vit_registers.errors import ConfigError, DataError

NUM = 23
KINDS = ("folder", "csv", "tsv", "jsonl", "tar")
TEXTS = Texts(context=24, vocab_size=300)


def png(number):
    """A PNG whose pixel (0, 0) is the number."""
    image_HxW = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
    image_HxW[0, 0] = number
    file = io.BytesIO()
    Image.fromarray(image_HxW).save(file, "PNG")
    return file.getvalue()


def captions_of(number):
    """The captions of an image: as many as its number says, of up to 3."""
    return [f"image {number}, text {i}" for i in range(1 + number % 3)]


def write_images(folder, numbers=range(NUM)):
    folder.mkdir(parents=True, exist_ok=True)
    for i in numbers:
        (folder / f"{i:03}.png").write_bytes(png(i))


def write_folder(root):
    write_images(root / "train")
    for i in range(NUM):
        (root / "train" / f"{i:03}.txt").write_text("\n".join(captions_of(i)) + "\n\n")


def write_table(root, suffix, names=("path", "caption")):
    write_images(root / "train")
    with open(root / f"train{suffix}", "w", newline="") as file:
        table = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
        table.writerow(names)
        for i in range(NUM):
            table.writerows([f"train/{i:03}.png", text] for text in captions_of(i))


def write_jsonl(root):
    write_images(root / "train")
    rows = [{"path": f"train/{i:03}.png", "captions": captions_of(i)} for i in range(NUM)]
    (root / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_tars(root):
    (root / "train").mkdir(parents=True)
    for shard, numbers in enumerate((range(9), range(9, 10), range(10, NUM))):
        with tarfile.open(root / "train" / f"{shard:05}.tar", "w") as tar:
            for i in numbers:
                name = f"./part/{'long' * 40 if i == 12 else ''}{i:05}"
                if i % 2:
                    add(tar, f"{name}.json", json.dumps({"caption": captions_of(i), "url": "x"}).encode())
                add(tar, f"{name}.PNG" if i == 5 else f"{name}.png", png(i))
                if not i % 2:
                    add(tar, f"{name}.json", b'{"caption": "of the json"}')
                    add(tar, f"{name}.txt", "\n".join(captions_of(i)).encode())


WRITE = {
    "folder": write_folder,
    "csv": lambda root: write_table(root, ".csv"),
    "tsv": lambda root: write_table(root, ".tsv"),
    "jsonl": write_jsonl,
    "tar": write_tars,
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    made = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, root in made.items():
        WRITE[kind](root)
    return made


def config_of(root, *, loader="memory", name="image_text", captions=None, **data):
    settings = {
        "name": name,
        "loader": loader,
        "data_dir": str(root),
        "eval_split": "train",
        "batch_size": 5,
        "eval_batch_size": 4,
        "train_ops": "",
        "eval_ops": "",
        "drop_last": True,
        "mean": (0.5,),
        "std": (0.5,),
        "captions": captions or Captions(tokenizer="bytes"),
    }
    model = Model(image_size=(8, 8), channels=1, num_classes=0)
    return Config(model=model, data=Data(**(settings | data)))


def open_with(config, texts=TEXTS):
    training = Training({IMAGE: View(8, 8, "", "data.train_ops")}, {}, texts)
    return open_data(config, training, needs_labels=False)


def take(loader, start_step, number, sharding):
    batches = loader.train_batches(start_step, sharding)
    taken = [jax.tree.map(np.asarray, batch) for batch in itertools.islice(batches, number)]
    batches.close()
    return taken


def numbers_of(batch):
    return batch.views[IMAGE][:, 0, 0, 0].astype(int).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_has_the_same_images_and_captions(kind, roots):
    loader = open_with(config_of(roots[kind]))
    read = loader.captions("train")
    assert loader.num_examples("train") == NUM and loader.class_names == ()
    assert [read(i) for i in range(NUM)] == [captions_of(i) for i in range(NUM)]


@pytest.mark.parametrize("loader", ["memory", "tfdata"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_image_has_one_of_its_captions(kind, loader, roots, device):
    tokenizer, drawn = open_tokenizer("bytes", list), set()
    opened = open_with(config_of(roots[kind], loader=loader))
    for batch in take(opened, 0, 12, device):
        numbers = numbers_of(batch)
        assert len(set(numbers)) == 5 and batch.mask_B.all()  # no image twice
        for number, tokens in zip(numbers, batch.targets[TOKENS], strict=True):
            found = (tokenizer.encode(captions_of(number), 24) == tokens).all(axis=1)
            assert found.sum() == 1
            drawn.add((number, int(found.argmax())))
    assert len(drawn) > NUM + 8  # of 45: other captions in other epochs
    assert opened.texts.counts.texts == 60 and opened.texts.counts.equal == 0


def test_layouts_and_loaders_have_equal_batches_and_resume(roots, device):
    whole = take(open_with(config_of(roots["folder"])), 0, 9, device)
    for kind, loader in itertools.product(KINDS, ("memory", "tfdata")):
        for a, b in zip(
            whole[6:], take(open_with(config_of(roots[kind], loader=loader)), 6, 3, device), strict=True
        ):
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
                np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("loader", ["memory", "tfdata", "pil"])
def test_evaluation_reads_each_image_once(loader, roots, device):
    opened = open_data(config_of(roots["tar"], loader=loader), needs_labels=False)
    found = []
    for batch in opened.eval_batches("train", device):
        mask_B = np.asarray(batch.mask_B)
        found += np.asarray(batch.views[IMAGE])[mask_B, 0, 0, 0].astype(int).tolist()
        assert (np.asarray(batch.targets["label"])[mask_B] == -1).all()
    assert found == list(range(NUM))


def test_columns_have_other_names(tmp_path):
    write_table(tmp_path, ".csv", ("filepath", "title"))
    captions = Captions(tokenizer="bytes", key="title")
    loader = open_with(config_of(tmp_path, image_key="filepath", captions=captions))
    assert loader.captions("train")(2) == captions_of(2)
    for settings, message in (
        ({"captions": captions}, "train.csv, line 1: has no 'path', .*; it has filepath, title"),
        ({"image_key": "filepath"}, "train.csv has 46 lines and no caption: set data.captions.key, which is"),
    ):
        settings = {"on_broken": "skip", **settings}
        with pytest.raises(DataError, match=message):
            open_with(config_of(tmp_path, **settings)).num_examples("train")


class TestImagesWithoutText:
    """An image without a caption stops the run, or is left out and counted."""

    def lacking(self, kind, root):
        """Writes the data set without the captions of the images 4 and 7; returns how they are named."""
        WRITE[kind](root)
        if kind == "folder":
            (root / "train/004.txt").unlink()
            (root / "train/007.txt").write_text(" \n\n")
            return "train/004.png", "train/007.png"
        if kind == "jsonl":
            rows = [json.loads(line) for line in (root / "train.jsonl").read_text().splitlines()]
            rows[4]["captions"], rows[7]["captions"] = [" "], None
            (root / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
            return "train/004.png", "train/007.png"
        with tarfile.open(root / "train/00000.tar", "w") as tar:
            for i in range(9):
                add(tar, f"{i:05}.png", png(i))
                if i != 4:
                    add(
                        tar, f"{i:05}.json", json.dumps({"caption": captions_of(i) if i != 7 else 3}).encode()
                    )
        return "00000.tar: 00004", "00000.tar: 00007.png"

    @pytest.mark.parametrize("loader", ["memory", "tfdata"])
    @pytest.mark.parametrize("kind", ["folder", "jsonl", "tar"])
    def test_left_out_and_counted(self, kind, loader, tmp_path, device):
        names = self.lacking(kind, tmp_path)
        opened = open_with(config_of(tmp_path, loader=loader, on_broken="skip"))
        seen = set()
        for batch in take(opened, 0, 20, device):
            seen |= set(np.array(numbers_of(batch))[batch.mask_B].tolist())
        assert seen == set(range(NUM)) - {4, 7}
        assert sorted(
            name.replace(f" in {tmp_path}/train.jsonl", "") for name in opened.broken_names
        ) == sorted(names)

    @pytest.mark.parametrize("loader", ["memory", "tfdata"])
    @pytest.mark.parametrize("kind", ["folder", "jsonl", "tar"])
    def test_stops(self, kind, loader, tmp_path, device):
        name = self.lacking(kind, tmp_path)[0]
        with pytest.raises(
            DataError, match=f"{name}.* has no caption: give it one, or set config.data.on_broken"
        ):
            take(open_with(config_of(tmp_path, loader=loader)), 0, 9, device)


class TestIndex:
    """Where the samples of many tar files are is kept in a file beside them."""

    @pytest.fixture(autouse=True)
    def of_few_samples(self, monkeypatch):
        monkeypatch.setattr(tar_index, "MIN_SAMPLES", 10)

    def opened(self, root, **settings):
        loader = open_with(config_of(root, on_broken="skip", **settings))
        return [loader.captions("train")(i) for i in range(loader.num_examples("train"))], loader.broken_names

    def test_read_again_until_a_file_changes(self, tmp_path, monkeypatch):
        write_tars(tmp_path)
        with tarfile.open(tmp_path / "train/9.tar", "w") as tar:
            add(tar, "a.png", png(0))
        first = self.opened(tmp_path)
        assert (tmp_path / "train" / tar_index.FILE).exists() and first[1] == {"9.tar: a"}
        assert [path.name for path in (tmp_path / "train").glob(".*")] == [tar_index.FILE]
        with monkeypatch.context() as patch:
            patch.setattr(tarfile, "open", None)  # not called
            assert self.opened(tmp_path) == first
            with pytest.raises(DataError, match=r"9.tar: a has no caption"):
                open_with(config_of(tmp_path))
        with tarfile.open(tmp_path / "train/9.tar", "a") as tar:
            add(tar, "a.txt", b"it has one now")
        captions, broken = self.opened(tmp_path)
        assert captions == [*first[0], ["it has one now"]] and not broken

    @pytest.mark.parametrize("damage", ["cut", "other", "empty"])
    def test_a_damaged_index_is_not_used(self, damage, tmp_path):
        write_tars(tmp_path)
        first, path = self.opened(tmp_path), tmp_path / "train" / tar_index.FILE
        whole = path.read_bytes()
        path.write_bytes({"cut": whole[: len(whole) // 2], "other": b"text", "empty": b""}[damage])
        assert self.opened(tmp_path) == first and path.read_bytes() == whole

    def test_none_is_written_for_few_samples_or_damaged_files(self, tmp_path, monkeypatch):
        write_tars(tmp_path)
        (tmp_path / "train/9.tar").write_text("text")
        self.opened(tmp_path)
        (tmp_path / "train/9.tar").unlink()
        monkeypatch.setattr(tar_index, "MIN_SAMPLES", 100)
        self.opened(tmp_path)
        assert not (tmp_path / "train" / tar_index.FILE).exists()


class TestDamage:
    def test_a_truncated_tar_stops_or_keeps_what_is_before(self, tmp_path, device):
        write_tars(tmp_path)
        path = tmp_path / "train/00002.tar"
        with tarfile.open(path) as tar:
            member = next(member for member in tar.getmembers() if member.name.endswith("00014.png"))
        path.write_bytes(path.read_bytes()[: member.offset_data + 3])
        with pytest.raises(
            DataError, match=r"00002.tar; it is not a whole tar file \(unexpected end of data\)"
        ):
            open_with(config_of(tmp_path))
        loader = open_with(config_of(tmp_path, on_broken="skip"))
        assert loader.num_examples("train") == 14
        assert loader.broken_names == {"00002.tar", "00002.tar: ./part/00014"}

    @pytest.mark.parametrize("loader", ["memory", "tfdata"])
    def test_an_image_that_cannot_be_decoded(self, loader, tmp_path, device):
        (tmp_path / "train").mkdir()
        with tarfile.open(tmp_path / "train/0.tar", "w") as tar:
            for i in range(9):
                add(tar, f"{i}.png", b"text" if i == 6 else png(i))
                add(tar, f"{i}.txt", f"image {i}".encode())
        opened = open_with(config_of(tmp_path, loader=loader, on_broken="skip"))
        masks = [batch.mask_B for batch in take(opened, 0, 6, device)]
        assert 0 < (~np.concatenate(masks)).sum() < 8 and opened.broken_names == {"0.tar: 6.png"}
        with pytest.raises(DataError, match=r"0.tar: 6.png cannot be decoded as an image"):
            take(open_with(config_of(tmp_path, loader=loader)), 0, 6, device)

    def test_what_is_no_tar(self, tmp_path):
        (tmp_path / "train").mkdir()
        (tmp_path / "train/0.tar").write_text("text")
        with pytest.raises(DataError, match=r"0.tar; it is not a whole tar file"):
            open_with(config_of(tmp_path))
        with pytest.raises(DataError, match=r"the 1 tar files of .*/train have no sample with an image"):
            open_with(config_of(tmp_path, on_broken="skip"))

    def test_lines_that_are_not_json(self, tmp_path):
        write_jsonl(tmp_path)
        path = tmp_path / "train.jsonl"
        path.write_text(path.read_text() + '\n\n{"path": \n[3]\n')
        with pytest.raises(DataError, match=r"train.jsonl, line 25; it is not a JSON object"):
            open_with(config_of(tmp_path))
        loader = open_with(config_of(tmp_path, on_broken="skip"))
        assert loader.num_examples("train") == NUM and len(loader.broken_names) == 2

    def test_a_file_that_is_missing(self, tmp_path, device):
        write_table(tmp_path, ".csv")
        (tmp_path / "train/003.png").unlink()
        with pytest.raises(DataError, match=r"train/003.png; No such file"):
            take(open_with(config_of(tmp_path)), 0, 1, device)
        opened = open_with(config_of(tmp_path, on_broken="skip"))
        take(opened, 0, 1, device)
        assert opened.broken_names == {"train/003.png"}


def test_captions_that_are_all_equal(tmp_path):
    write_images(tmp_path / "train")
    for i in range(NUM):
        (tmp_path / "train" / f"{i:03}.txt").write_text("a photo")
    with pytest.raises(DataError, match=r"the first 23 images of 'train' .* all have the caption 'a photo'"):
        open_with(config_of(tmp_path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train_split": "trian"}, "has no split 'trian': did you mean 'train'"),
        ({"data_dir": "/no/such/folder"}, "is not a folder: the layout must be"),
        ({"data_dir": None}, "data.name='image_text' requires data.data_dir: the layout must be"),
        ({"data_dir": "gs://bucket/x"}, "local disks only"),
        ({"label_key": "x"}, "data.label_key='x': data.name='image_text' has no classes"),
        (
            {"captions": Captions(tokenizer="bytes", templates=("a {}",))},
            "data.captions.templates: image_text has captions of its own",
        ),
        ({"drop_last": False}, "data.drop_last=False"),
    ],
)
def test_settings_that_do_not_fit(data, message, roots, device):
    with pytest.raises((ConfigError, DataError), match=message):
        config = config_of(roots["folder"])
        open_with(dataclasses.replace(config, data=dataclasses.replace(config.data, **data))).train_batches(
            0, device
        )


def test_a_folder_without_splits_or_with_two_lists_of_one(tmp_path):
    with pytest.raises(DataError, match="has no splits: the layout must be"):
        open_with(config_of(tmp_path))
    write_jsonl(tmp_path)
    (tmp_path / "train.csv").write_text("path,caption\n")
    with pytest.raises(DataError, match=r"split 'train' of .* is both train.csv and train.jsonl: keep one"):
        open_with(config_of(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no images .* with a .txt of the same name"):
        (tmp_path / "train.csv").unlink()
        open_with(config_of(tmp_path, train_split="empty"))


def test_data_with_captions_and_no_classes_is_refused_for_classification(roots):
    with pytest.raises(DataError, match=r"has captions and no classes: take data with classes"):
        open_data(config_of(roots["folder"]))


class TestTfds:
    """A data set with the features of coco_captions, and one with a caption for each image."""

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory):
        tfds = pytest.importorskip("tensorflow_datasets")

        class CocoCaptions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.1.0")
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2014")]  # noqa: RUF012
            code_path = None

            def _info(self):
                features = {
                    "image": tfds.features.Image(),
                    "image/id": np.int64,
                    "captions": tfds.features.Sequence({"id": np.int64, "text": np.str_}),
                    "objects": tfds.features.Sequence({"label": tfds.features.ClassLabel(num_classes=3)}),
                    "alt": tfds.features.Text(),
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples() for split in ("train", "restval", "val", "test")}

            def _generate_examples(self):
                for i in range(NUM):
                    image = np.zeros((8, 8, 3), np.uint8)
                    image[0, 0] = i
                    texts = [] if i == 4 else captions_of(i)
                    yield (
                        i,
                        {
                            "image": image,
                            "image/id": i,
                            "captions": [{"id": i, "text": text} for text in texts],
                            "objects": [],
                            "alt": f"alt {i}",
                        },
                    )

        path = tmp_path_factory.mktemp("tfds")
        tfds.disable_progress_bar()
        CocoCaptions(data_dir=path, config="2014", file_format="array_record").download_and_prepare()
        return path

    def config(self, folder, **settings):
        return config_of(folder, name="coco_captions", **({"loader": "tfdata"} | settings))

    @pytest.mark.parametrize("loader", ["memory", "tfdata"])
    def test_captions_of_karpathys_splits(self, loader, folder, device):
        opened = open_with(
            self.config(folder, loader=loader, train_split="train+restval", on_broken="skip", batch_size=10)
        )
        assert opened.num_examples("train+restval") == 2 * NUM
        assert opened.captions("val")(5) == captions_of(5) and opened.captions("test")(4) == []
        tokenizer = open_tokenizer("bytes", list)
        for batch in take(opened, 3, 6, device):
            for number, tokens, is_used in zip(
                numbers_of(batch), batch.targets[TOKENS], batch.mask_B, strict=True
            ):
                if is_used:
                    assert (tokenizer.encode(captions_of(number), 24) == tokens).all(axis=1).sum() == 1
                else:
                    assert number in (0, 4)  # zero: what is left out in memory
        assert len(opened.broken_names) in (1, 2)

    def test_another_feature(self, folder):
        opened = open_with(self.config(folder, captions=Captions(tokenizer="bytes", key="alt")))
        assert opened.captions("val")(5) == ["alt 5"]
        with pytest.raises(DataError, match=r"data.captions.key='text'.*alt or captions/text"):
            open_with(self.config(folder, captions=Captions(tokenizer="bytes", key="text")))

    def test_an_image_without_captions_stops(self, folder, device):
        with pytest.raises(DataError, match="record 4 of split 'train' of coco_captions has no caption"):
            take(open_with(self.config(folder)), 0, 5, device)
