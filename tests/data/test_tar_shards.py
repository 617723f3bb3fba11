import json
import os
import pickle
import time
from io import BytesIO

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from deit_jax.config import default_config
from deit_jax.data import tar_index, tar_shards
from deit_jax.data.decoding import RandomResizedCrop
from deit_jax.data.loading import train_batches
from deit_jax.data.registry import open_extra_set, open_source
from deit_jax.data.sampling import TrainOrder
from deit_jax.data.sources import DataError, MissingDataError
from tests.data.tars import pack
from tests.data.trees import png

CLASSES = ("ash", "elm", "oak tree", "yew")


def section(path, **fields):
    data = default_config().data
    data.update({"source": "tar", "path": str(path), "index": ""} | fields)
    return data


def refusal(path, split="train", **fields):
    with pytest.raises(DataError) as error:
        open_source(section(path, **fields), split)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(path), "DATA")


def photos(count=37, seed=0):
    """{path in a class folder: an image file}, each of other pixels; names whose order depends on extension and folder."""
    random, found = np.random.default_rng(seed), {}
    for number in range(count):
        file = BytesIO()
        size = random.integers(8, 24, 2).tolist()
        Image.fromarray(random.integers(0, 255, (*size, 3), np.uint8)).save(file, "JPEG" if number % 3 else "PNG")
        name = f"a{'-' * (number % 2)}{number}.{'jpg' if number % 3 else 'png'}"
        found[f"{CLASSES[number % 4]}/{'deep/' * (number % 5 == 1)}{name}"] = file.getvalue()
    return found


def write_folder(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_shards(root, files, form, shards=3, seed=1):
    """Deals the images, in a random order, to shards with a form of label."""
    order = np.random.default_rng(seed).permutation(len(files)).tolist()
    names = list(files)
    for shard in range(shards):
        members = {}
        for name in (names[i] for i in order[shard::shards]):
            folder, _, file = name.partition("/")
            label = CLASSES.index(folder)
            if form == "folder":
                members[f"./train/{name}"] = files[name]
                continue
            packed = f"{label}/{file}"  # no class name in it
            members[packed] = files[name]
            text = str(label) if form == "cls" else json.dumps({"label": folder})
            members[f"{os.path.splitext(packed)[0]}.{'cls' if form == 'cls' else 'json'}"] = text.encode()
        pack(root / f"it-train-{shard:02}.tar", members)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """DATA/folder, and DATA/<form> with its shards, for three forms of labels."""
    root, files = tmp_path_factory.mktemp("data"), photos()
    write_folder(root / "folder/train", files)
    for form in ("folder", "cls", "names"):
        write_shards(root / f"tar-{form}", files, form)
    (root / "tar-cls/classnames.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def folder_of(root):
    return open_source(section(root / "folder", source="folder"), "train")


def batches(source, start=0, stop=None, **settings):
    order = TrainOrder(num_examples=len(source), batch_size=8, repeats=2, seed=3, group_size=2, groups_per_block=2)
    stop = 3 * order.steps_per_epoch if stop is None else stop
    return list(
        train_batches(source, order, RandomResizedCrop(8), start_step=start, stop_step=stop, num_threads=2, **settings)
    )


def assert_equal_batches(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def assert_reads_as(source, expected):
    """The batches of all epochs, from within an epoch, and of each of two hosts."""
    assert_equal_batches(batches(source), expected)
    assert_equal_batches(batches(source, start=5), expected[5:])  # resumed within an epoch
    for stretch in ((0, 4), (4, 8)):  # two hosts
        rows = batches(source, stretches=(stretch,))
        assert_equal_batches(
            rows, [{key: value[slice(*stretch)] for key, value in batch.items()} for batch in expected]
        )


@pytest.mark.parametrize("form", ["folder", "cls", "names"])
def test_same_images_as_the_folder(root, form):
    source, folder = open_source(section(root / f"tar-{form}"), "train"), folder_of(root)
    assert source.class_names == folder.class_names == CLASSES
    assert np.array_equal(source.labels, folder.labels)
    assert [source[i] for i in range(len(source))] == [folder[i] for i in range(len(folder))]
    assert [source.file_name(i) for i in range(len(source))] == [folder.file_name(i) for i in range(len(folder))]
    assert (source.fingerprint() == folder.fingerprint()) == (form == "folder")  # others have other paths


def test_three_epochs_equal_the_folders(root):
    expected = batches(folder_of(root))
    source = open_source(section(root / "tar-folder"), "train")
    assert_reads_as(source, expected)


@pytest.mark.long
def test_worker_processes(root):
    expected = batches(folder_of(root), stop=4)
    source = open_source(section(root / "tar-cls"), "train")
    assert source[0].image  # files are open here
    assert_equal_batches(batches(source, stop=4, num_workers=1), expected)


def test_a_copy_reads_other_files_of_the_same_name(root):
    source = open_source(section(root / "tar-cls"), "train")
    assert source[0] == pickle.loads(pickle.dumps(source))[0]


def test_more_shards_than_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_shards, "_OPEN_FILES", 3)
    files = photos(24)
    source = open_source(section(write_shards(tmp_path, files, "folder", shards=8)), "train")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    expected = [source[i] for i in range(24)]
    order = np.random.default_rng(0).integers(0, 24, 200).tolist()
    assert [source[i] for i in order] == [expected[i] for i in order]
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_numbers_as_classes_and_their_file(tmp_path):
    pack(
        tmp_path / "a/train.tar",
        {f"{i}.{end}": text for i in (0, 12, 3) for end, text in (("png", png()), ("cls", b"%d" % i))},
    )
    source = open_source(section(tmp_path / "a"), "train")
    assert source.class_names == tuple(map(str, range(13))) and source.labels.tolist() == [0, 3, 12]
    (tmp_path / "classes.txt").write_text("\n".join(map("c{}".format, range(20))))
    source = open_source(section(tmp_path / "a"), "train")
    assert source.class_names[12] == "c12" and source.notes == (f"class names come from {tmp_path}/classes.txt",)
    (tmp_path / "classes.txt").write_text("\n".join(map("c{}".format, range(12))))
    assert "has 12 class names, and labels up to 12" in refusal(tmp_path / "a")
    (tmp_path / "classes.txt").write_text("crane\ncrane\n" + "\n".join(map("c{}".format, range(12))))
    assert "has the class name 'crane' twice" in refusal(tmp_path / "a")


def test_parts_and_splits(root):
    whole = open_source(section(root / "tar-folder"), "train")
    train = open_source(section(root / "tar-folder", train_split="train[:60%]"), "train")
    held = open_source(section(root / "tar-folder", eval_split="train[60%:]"), "eval")
    assert len(train) + len(held) == len(whole)
    assert {train.describe(i) for i in range(len(train))}.isdisjoint(held.describe(i) for i in range(len(held)))
    with pytest.raises(MissingDataError, match="no shards of the split 'validation'"):
        open_source(section(root / "tar-folder"), "eval")
    few = open_source(section(root / "tar-folder", images_per_class=2), "train")
    assert np.bincount(few.labels).tolist() == [2, 2, 2, 2]


def test_extra_set(root):
    entry = {"source": "tar", "path": str(root / "tar-cls"), "split": ""}
    assert len(open_extra_set(ConfigDict(entry), "")) == 37
    with pytest.raises(MissingDataError):
        open_extra_set(ConfigDict(entry | {"split": "test"}), "")


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ({"train-0": {"1.png": b""}}, "1.png in DATA/train-0.tar: has no label; add a .cls file, a .json file"),
        (
            {"train-0": {"a/1.png": b"", "a/1.cls": b"1", "b/2.png": b""}},
            "b/2.png in DATA/train-0.tar: its label is in its folder",
        ),
        (
            {"train-0": {"a.png": b"", "a.cls": b"2", "b.png": b"", "b.cls": b"-1"}},
            "b.png in DATA/train-0.tar: has the label -1, which is not a class",
        ),
        ({"train-0": {"a/1.txt": b""}}, "DATA/train-0.tar: no images, only 1 .txt; correct data.path or the split"),
        ({"train-0": {"n1.tar": b"", "n2.tar": b""}}, "no images, only 2 .tar (unpack them)"),
        (
            {"train-0": {"a/1.png": b"", "b/1.png": b""}, "train-1": {"a/1.png": b"", "b/1.png": b""}},
            "hold the same images",
        ),
        ({"train-0": {"a/1.png": b"", "b/1.png": b""}, "train-2": {"a/2.png": b""}}, "the first is train-1.tar"),
        ({"train-0": {"a/1.png": b"", "a/2.png": b""}}, "DATA: only one class ('a'), training needs two"),
    ],
)
def test_faults(tmp_path, shards, message):
    for name, members in shards.items():
        pack(tmp_path / f"{name}.tar", members)
    assert message in refusal(tmp_path)


def test_an_unusable_image_is_named(tmp_path):
    pack(tmp_path / "train.tar", {"a/1.png": b"no image", "b/1.png": png()})
    source = open_source(section(tmp_path), "train")
    order = TrainOrder(num_examples=2, batch_size=2, repeats=1, seed=0, group_size=2, groups_per_block=1)
    with pytest.raises(DataError, match=r"a/1.png in .*train.tar: an image of 8 bytes cannot be decoded"):
        list(train_batches(source, order, RandomResizedCrop(8), start_step=0, stop_step=1, num_threads=0))


def test_a_shard_that_disappears_or_shrinks(tmp_path):
    path = pack(tmp_path / "train.tar", {"a/1.png": png(), "b/1.png": png()})
    source = open_source(section(tmp_path), "train")
    path.unlink()
    with pytest.raises(DataError, match=r"a/1.png in .*train.tar: cannot be read \(No such file"):
        source[0]
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"a/1.png in .*train.tar: the file has become shorter"):
        source[0]


class TestIndex:
    @pytest.fixture
    def shards(self, root, tmp_path, monkeypatch):
        """Settled shards in DATA, indexed in `tmp_path/index`; `reads` has the shards that were read."""
        monkeypatch.setattr(tar_index, "SMALLEST_INDEXED", 4)
        write_shards(tmp_path / "data", photos(), "names")
        self.settle(tmp_path / "data")
        self.reads = []
        list_tar = tar_index.list_tar
        monkeypatch.setattr(tar_index, "list_tar", lambda path, file: self.reads.append(path) or list_tar(path, file))
        return tmp_path / "data"

    def settle(self, folder):
        for path in folder.iterdir():
            os.utime(path, (time.time() - 3600,) * 2)

    def open(self, shards):
        self.reads.clear()
        source = open_source(section(shards, index=str(shards.parent / "index")), "train")
        return source.class_names, source.notes, [(source.describe(i), *source[i]) for i in range(len(source))]

    def test_is_read_at_the_second_start(self, shards):
        first = self.open(shards)
        assert len(self.reads) == 3
        assert self.open(shards) == first and not self.reads
        assert len(list((shards.parent / "index").glob("deit_jax_index_*.npz"))) == 1

    def test_changed_added_and_recent_shards(self, shards):
        self.open(shards)
        pack(shards / "it-train-03.tar", {"1/new.png": png(), "1/new.json": b'{"label": "elm"}'})
        assert len(self.open(shards)[2]) == 38 and len(self.reads) == 4
        self.open(shards)
        assert len(self.reads) == 4  # changed just now: it may change again
        self.settle(shards)
        self.open(shards)
        self.open(shards)
        assert not self.reads
        pack(shards / "it-train-03.tar", {"1/new.png": png(), "1/new.json": b'{"label": "oak tree"}'})
        assert len(self.open(shards)[2]) == 38 and len(self.reads) == 4

    @pytest.mark.parametrize("damage", ["empty", "half", "version", "lengths"])
    def test_damaged_index_is_replaced(self, shards, damage):
        expected = self.open(shards)
        (path,) = (shards.parent / "index").iterdir()
        whole = path.read_bytes()
        if damage in ("empty", "half"):
            path.write_bytes(whole[: len(whole) // 2 if damage == "half" else 0])
        else:
            with np.load(path) as file:
                arrays = dict(file)
            np.savez(path, **arrays | ({"version": 99} if damage == "version" else {"sizes": arrays["sizes"][1:]}))
        assert self.open(shards) == expected and len(self.reads) == 3
        assert self.open(shards) == expected and not self.reads


def test_progress_is_reported(root, monkeypatch, capsys):
    monkeypatch.setattr(tar_index, "_REPORT_SECONDS", 0.0)
    open_source(section(root / "tar-folder"), "train")
    assert f"indexing the tar shards of {root}/tar-folder, once: 1 of 3" in capsys.readouterr().out
