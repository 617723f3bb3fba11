import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from deit_jax import register_source
from deit_jax.config import ConfigError, default_config
from deit_jax.config_check import validate, without_effect
from deit_jax.data import registry
from deit_jax.data.classes import with_classes
from deit_jax.data.decoding import PaddedCrop, evaluation_crop
from deit_jax.data.identity import Identity
from deit_jax.data.loading import eval_batches, train_batches
from deit_jax.data.own_source import OwnSource
from deit_jax.data.registry import open_extra_set, open_source, source_names
from deit_jax.data.sampling import TrainOrder
from deit_jax.data.sources import DataError, MissingDataError, UnusableError, notes_of
from deit_jax.evaluation.run import open_extra_sets
from tests.tiny import tiny_config

NAMES = ("red", "green", "blue")


class Plain:
    """A minimal source."""

    def __init__(self, count=12):
        self.count = count
        if not hasattr(self, "class_names"):
            self.class_names = list(NAMES)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = np.zeros((8, 8, 3), np.uint8)
        image[..., index % 3] = 200
        return image, np.int64(index % 3)


class Full(Plain):
    notes = ("a note",)

    def __init__(self, count=12, key=""):
        super().__init__(count)
        self.labels = np.arange(count) % 3
        self.key = key

    def describe(self, index):
        return f"card {index}"

    def fingerprint(self):
        return self.key


def config(**fields):
    data = default_config().data
    data.update({"source": "cards", "path": ""} | fields)
    return data


def registered(result, split="train", **fields):
    """Opens a registered source whose opener returns, or raises, `result`."""

    def open_cards(data, split):
        if isinstance(result, Exception):
            raise result
        return result

    registry._SOURCES.pop("cards", None)
    register_source("cards", open_cards)
    return open_source(config(**fields), split)


def test_opener_gets_split_names_and_parts_are_taken_from_its_result(modules):
    seen = []

    def open_cards(data, split):
        seen.append((data.train_split, data.eval_split, data.path, data.name, split))
        return Plain(20)

    register_source("cards", open_cards)
    fields = dict(path="/cards", name="old", train_split="seen[:75%]", eval_split="seen[75%:]")
    train, held_out = (open_source(config(**fields), split) for split in ("train", "eval"))
    assert seen == [("seen", "seen", "/cards", "old", split) for split in ("train", "eval")]
    assert (len(train), len(held_out)) == (15, 5)
    described = [{source.describe(i) for i in range(len(source))} for source in (train, held_out)]
    assert not described[0] & described[1]
    assert len(open_source(config(train_split=""), "train")) == 20 and seen[-1][0] == ""
    open_source(config(eval_split="a + b"), "train")
    with pytest.raises(DataError, match=r"split 'a \+ b' is invalid"):
        open_source(config(eval_split="a + b"), "eval")
    open_source(SimpleNamespace(**config().to_dict()), "train")  # any object with these fields


def test_opener_may_take_parts_itself(modules):
    def open_cards(data, split):
        assert (data.train_split, data.eval_split) == ("a+b[:50%]", "validation")
        return Plain()

    register_source("cards", open_cards, takes_parts=True)
    assert len(open_source(config(train_split="a+b[:50%]"), "train")) == 12


def test_registered_source_is_an_extra_set(modules, capsys):
    def open_cards(data, split):
        if data.path == "/nowhere":
            raise FileNotFoundError(2, "No such file or directory", data.path)
        assert split == "eval" and data.images_per_class is None
        assert (data.train_split, data.eval_split, data.name) == ("test", "test", "x")
        return Full(9)

    register_source("cards", open_cards)
    entry = {"source": "cards", "name": "x", "path": "/cards", "split": "test[:3]"}
    found = open_extra_set(ConfigDict(entry))
    assert len(found) == 3 and found.describe(0).startswith("card ")
    configured = tiny_config(model__name="deit_tiny_patch16_224", distillation__kind="none", teacher__weights="")
    with configured.unlocked():
        configured.evaluation.extra = {"here": entry, "gone": entry | {"path": "/nowhere"}}
    validate(configured)
    assert list(open_extra_sets(configured, NAMES[::-1], strict=True)) == ["here"]
    assert "config.evaluation.extra.gone is skipped: the data source cards: opening eval" in capsys.readouterr().out
    with pytest.raises(
        MissingDataError, match=r"the data source cards: opening eval raises FileNotFoundError: .*/nowhere"
    ):
        open_extra_set(ConfigDict(entry | {"path": "/nowhere"}))


def test_batches_limits_and_classes_work_as_for_other_sources(modules):
    source = registered(Full(12), images_per_class=2)
    assert len(source) == 6 and source.class_names == NAMES and notes_of(source) == ["a note"]
    with pytest.raises(DataError, match=r"data\.images_per_class needs the labels of all images at once"):
        open_plain()
        open_source(config(source="plain", images_per_class=2), "train")
    assert len(open_source(config(max_eval_images=5), "eval")) == 5
    plain = open_source(config(source="plain"), "train")
    order = TrainOrder(12, 12, repeats=1, group_size=2, groups_per_block=2, seed=0)
    (batch,) = train_batches(plain, order, PaddedCrop(8, 0), start_step=0, stop_step=1, num_threads=0)
    assert sorted(batch["label"].tolist()) == sorted([0, 1, 2] * 4)
    for image, label in zip(batch["image"], batch["label"], strict=True):
        assert image[0, 0].argmax() == label
    other = with_classes(plain, NAMES[::-1], what="images", of="model")
    assert [other[i].label for i in range(3)] == [2, 1, 0]
    again = pickle.loads(pickle.dumps(plain))
    assert (
        again[4].label == 1 and again.describe(4) == "image 4 of the data source plain" and not hasattr(again, "notes")
    )


def open_plain():
    register_source("plain", lambda data, split: Plain())


def test_identity_of_an_own_source(modules):
    def identity(source):
        return Identity.of(registered(source), registered(source, "eval"))

    plain, labelled, keyed = identity(Plain()), identity(Full(key="")), identity(Full(key="first"))
    assert plain.train.digest == "" and keyed.train.digest == "first"
    record = plain.record()
    assert identity(Plain(13)).other_images(record, evaluation=False) == ["12 training images then, 13 now"]
    assert identity(Full(key="second")).other_images(keyed.record(), evaluation=False) == [
        "12 training images as before, but not the same ones"
    ]
    assert labelled.train.digest == ""  # its own fingerprint
    del Full.fingerprint
    try:
        first, second = Full(), Full()
        second.labels = second.labels[::-1].copy()
        assert identity(first).train.digest
        assert identity(second).other_images(identity(first).record(), evaluation=False)
    finally:
        Full.fingerprint = lambda self: self.key


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "its opener returns None, which has no __len__ and no __getitem__ and no class_names; return an object"),
        ([1, 2], "its opener returns a list, which has no class_names; return an object"),
        (type("Text", (Plain,), {"class_names": "abc"})(), "class_names is 'abc'; give the name of each class"),
        (type("Numbers", (Plain,), {"class_names": (0, 1)})(), r"class_names is '\(0, 1\)'; give the name of each class"),
        (type("None_", (Plain,), {"class_names": ()})(), r"class_names is '\(\)'; give the name of each class"),
        (type("Late", (Plain,), {"labels": np.arange(12)})(), "label 3 of image 3 is outside the 3 classes"),
        (type("Half", (Plain,), {"labels": [0.5] * 12})(), r"labels are float64\[12\] for 12 images; give integers"),
        (type("Few", (Plain,), {"labels": [0]})(), r"labels are int64\[1\] for 12 images"),
        (ZeroDivisionError("no cards"), r"opening train raises ZeroDivisionError: no cards \(.*test_own_source\.py, line \d+\)$"),
        (KeyError(), "opening train raises KeyError"),
        (DataError("the cards are wet"), "^the cards are wet$"),
    ],
)  # fmt: skip
def test_invalid_source_raises_one_line(modules, result, message):
    with pytest.raises(DataError, match=message) as raised:
        registered(result)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(("the data source cards: ", "the cards are wet"))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((np.zeros((2, 2), np.uint8), 1.0), "the label '1.0' is not an integer"),
        ((np.zeros((2, 2), np.uint8), "red"), "the label 'red' is not an integer"),
        ((np.zeros((2, 2), np.uint8), None), "the label 'None' is not an integer"),
        ((np.zeros((2, 2), np.uint8), (1, 2)), r"the label '\(1, 2\)' is not an integer"),
        ((np.zeros((2, 2), np.uint8), 3), "label 3 is outside the 3 classes"),
        ((np.zeros((2, 2), np.uint8), -1), "label -1 is outside the 3 classes"),
        (("photo.jpg", 1), "the image is a str; give the bytes of a file or a uint8 array"),
        ((np.zeros((2, 2)), 1), "float64"),
        ((b"no image", 1), "cannot be decoded"),
        (np.zeros((2, 2), np.uint8), "is a ndarray; give a pair of image and label"),
        (RuntimeError("torn"), r"reading it raises RuntimeError: torn \(.*test_own_source\.py, line \d+\)"),
    ],
)
def test_invalid_example_is_reported(modules, example, message):
    class Bad(Plain):
        def __getitem__(self, index):
            if isinstance(example, Exception):
                raise example
            return example

    source = registered(Bad(), "eval")
    with pytest.raises(DataError, match=rf"image 0 of the data source cards.*{message}") as raised:
        next(iter(eval_batches(source, evaluation_crop(default_config().evaluation, 8), 4, num_threads=0)))
    assert "\n" not in str(raised.value)


def test_missing_file_can_be_replaced(modules):
    class Gone(Plain):
        def __getitem__(self, index):
            return open(f"/nowhere/{index}.png", "rb").read(), 0

    with pytest.raises(UnusableError, match=r"image 7 of the data source cards: FileNotFoundError.*/nowhere/7\.png"):
        registered(Gone())[7]


def test_multi_label_source_is_an_extra_set(modules):
    class Several(Plain):
        multi_label = True

        def __getitem__(self, index):
            return super().__getitem__(index)[0], [0, 2] if index else []

    with pytest.raises(DataError, match=r"has several labels per image"):
        registered(Several())
    source = open_extra_set(ConfigDict({"source": "cards", "name": "", "path": "", "split": "test"}))
    assert (source[0].label, source[1].label) == ((), (0, 2))


@pytest.mark.parametrize(
    ("name", "function", "message"),
    [
        ("my source", open_plain, "is not a name of letters, digits and underscores"),
        ("folder", open_plain, "there is already a source 'folder'"),
        ("cards", 3, "open of 'cards' is 3, not a function"),
    ],
)
def test_invalid_registration_raises(modules, name, function, message):
    with pytest.raises(ValueError, match=message):
        register_source(name, function)


def test_name_cannot_be_registered_twice(modules):
    register_source("cards", open_plain)
    register_source("cards", open_plain)
    with pytest.raises(ValueError, match="there is already a source 'cards'"):
        register_source("cards", registered)
    assert source_names()[-1] == "cards" and source_names().count("cards") == 1 and "tfds" in source_names()
    validate(tiny_config(data__source="cards"))
    with pytest.raises(ConfigError, match=r"data\.source='card' is none of .*npz, folder, tar, parquet, .*, cards$"):
        validate(tiny_config(data__source="card"))
    with pytest.raises(DataError, match=r"data\.source='card' is unknown; choose .*, parquet, .* or cards"):
        open_source(config(source="card"), "train")
    configured = tiny_config(data__source="cards", data__name="mine", data__held_out=0.1)
    assert not [name for name, _ in without_effect(configured, ["data.name"]) if name.startswith("data.")]


CARDS = """
import sys
import numpy as np
import deit_jax

class Cards:
    class_names = ("a", "b")

    def __len__(self):
        return 8

    def __getitem__(self, index):  # from another plugin, which the worker must import itself
        return np.full((4, 4), sys.modules["helper"].SHADE, np.uint8), index % 2

deit_jax.register_source("cards", lambda data, split: Cards())
"""


@pytest.mark.long
def test_workers_read_a_source_of_a_plugin(modules):
    modules(of_cards=CARDS, helper="SHADE = 7\n")
    validate(tiny_config(plugins=("helper", "of_cards"), data__source="cards"))
    source = open_source(config(), "train")
    order = TrainOrder(8, 8, repeats=1, group_size=2, groups_per_block=2, seed=0)
    batches = train_batches(source, order, PaddedCrop(4, 0), start_step=0, stop_step=2, num_workers=1)
    for batch in batches:
        assert (batch["image"] == 7).all() and sorted(batch["label"].tolist()) == [0] * 4 + [1] * 4


def broken(*arguments):
    raise RuntimeError("no such table")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"fingerprint": broken},
            r"fingerprint\(\) raises RuntimeError: no such table \(.*test_own_source.py, line \d+\)$",
        ),
        ({"describe": broken, "__getitem__": broken}, r"describe\(\) raises RuntimeError: no such table"),
        ({"file_name": broken}, r"file_name\(\) raises RuntimeError: no such table"),
        ({"notes": "a note"}, "notes is 'a note'; give a tuple of strings"),
        ({"folders": "/data"}, "folders is '/data'; give a tuple of strings"),
        ({"folders": (3,)}, "folders is"),
    ],
)
def test_errors_in_optional_methods_are_one_line(fields, message):
    kind = type("Faulty", (Plain,), fields)
    with pytest.raises(DataError, match=message) as raised:
        source = OwnSource("the data source cards", kind())
        source.fingerprint()
        if hasattr(source, "file_name"):
            source.file_name(0)
        source[0]
    assert "\n" not in str(raised.value)
