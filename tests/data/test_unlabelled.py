"""Unlabelled images: what is opened as such, and what the loader makes of both kinds."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
from ml_collections import ConfigDict

from deit_jax.config import default_config
from deit_jax.data.bad_images import BadImages
from deit_jax.data.decoding import CenterCrop, RandomResizedCrop
from deit_jax.data.identity import Identity
from deit_jax.data.joint_order import JointOrder
from deit_jax.data.loading import train_batches
from deit_jax.data.registry import open_unlabelled
from deit_jax.data.sampling import TrainOrder
from deit_jax.data.sources import ArraySource, DataError, notes_of, searched_folders
from deit_jax.data.unlabelled import JointSource, open_training_images
from tests.data.tars import pack
from tests.data.test_parquet import write
from tests.data.test_tar_shards import photos, write_folder
from tests.data.trees import files_of, grow


def section(**fields):
    return ConfigDict({"source": "folder", "name": "", "path": "", "split": "", "share": 0.5} | fields)


def test_a_folder_of_images_is_read_at_any_depth(tmp_path):
    root = grow(tmp_path / "more", "b.jpg", "a/x/1.png", "a/2.JPEG", ".hidden/3.png", "notes.txt", "10.webp")
    source = open_unlabelled(section(path=str(root)))
    assert files_of(source, root) == ["10.webp", "b.jpg", "a/2.JPEG", "a/x/1.png"]
    assert source[1].image == (root / "b.jpg").read_bytes() and source.describe(3) == f"{root}/a/x/1.png"
    assert source.folders == (str(root),)
    assert notes_of(source) == [f"skipped in {root}: 1 file: 1 .txt; 1 hidden folder"]
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    assert open_unlabelled(section(path=str(moved))).fingerprint() == source.fingerprint()
    grow(moved, "a/new.png")
    assert open_unlabelled(section(path=str(moved))).fingerprint() != source.fingerprint()


def test_a_split_or_a_part_of_a_folder(tmp_path):
    grow(tmp_path, *(f"Extra/{i}.png" for i in range(10)), "train/a/1.png")
    assert len(open_unlabelled(section(path=str(tmp_path)))) == 11
    assert len(open_unlabelled(section(path=str(tmp_path), split="Extra"))) == 10
    parts = [open_unlabelled(section(path=str(tmp_path), split=f"Extra{part}")) for part in ("[:30%]", "[30%:]")]
    assert [len(part) for part in parts] == [3, 7]
    assert len({part.describe(i) for part in parts for i in range(len(part))}) == 10


def test_shards_need_no_labels(tmp_path):
    files = photos(12)
    root = write_folder(tmp_path / "folder", files)
    folder = open_unlabelled(section(path=str(root)))
    images = [folder[i].image for i in range(len(folder))]
    pack(tmp_path / "tar/more-000.tar", dict(list(files.items())[:5]))
    pack(tmp_path / "tar/more-001.tar", dict(list(files.items())[5:]) | {"elm/0.cls": b"\xff", "elm/1.cls": b"-1"})
    write(
        tmp_path / "parquet/train-00000-of-00001.parquet",
        {"jpg": pa.array(list(files.values()), pa.binary()), "id": [0.5] * 12},
    )
    for kind in ("tar", "parquet"):
        source = open_unlabelled(section(source=kind, path=str(tmp_path / kind)))
        assert source.class_names == ("unlabelled",) and source.labels.tolist() == [0] * 12
        found = [source[i].image for i in range(12)]
        assert found == (images if kind == "tar" else list(files.values()))  # a tar's in the folder's order
        assert len(open_unlabelled(section(source=kind, path=str(tmp_path / kind), split="train[:25%]"))) == 3
        with pytest.raises(DataError, match=r"no shards of the split 'pool'.*correct the split.*unlabelled.split"):
            open_unlabelled(section(source=kind, path=str(tmp_path / kind), split="pool"))


def test_arrays_need_no_labels(tmp_path):
    images = np.arange(5 * 16, dtype=np.uint8).reshape(5, 4, 4)
    np.savez(tmp_path / "more.npz", train_images=images, pool_images=images[:2])
    source = open_unlabelled(section(source="npz", path=str(tmp_path / "more.npz")))
    assert len(source) == 5 and np.array_equal(source[3].image, images[3])
    assert len(open_unlabelled(section(source="npz", path=str(tmp_path / "more.npz"), split="pool"))) == 2
    with pytest.raises(DataError, match="key 'test_images' is missing"):
        open_unlabelled(section(source="npz", path=str(tmp_path / "more.npz"), split="test"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "needs unlabelled.path, which is empty; set --config.unlabelled.path"),
        ({"path": "{}/none"}, "/none: no such folder; set unlabelled.path to a folder of images"),
        ({"path": "{}/none", "source": "npz"}, "no such file; set unlabelled.path to a .npz file"),
        (
            {"path": "{}/a", "source": "npz"},
            "is a folder: set unlabelled.path to the .npz file, or unlabelled.source=folder",
        ),
        ({"path": "{}/a/1.png"}, "is a file: set unlabelled.path to a folder of images"),
        ({"path": "{}/empty"}, "empty: no images .*, it has 1 .txt; set unlabelled.path to a folder of images"),
        ({"path": "{}", "split": "pool"}, "/pool: no such folder; set unlabelled.path"),
        ({"path": "{}/a", "split": "a["}, "split 'a.' is invalid"),
    ],
)
def test_errors_name_the_field(tmp_path, fields, message):
    grow(tmp_path, "a/1.png", "empty/")
    (tmp_path / "empty" / "notes.txt").write_text("")
    given = {name: value.format(tmp_path) for name, value in fields.items()}
    with pytest.raises(DataError, match=message) as error:
        open_unlabelled(section(**given))
    assert "\n" not in str(error.value)


# --- Batches of both kinds -----------------------------------------------------------------------------------------------------


def colored(count, channel):
    """Images whose `channel` is 100 and another is their number."""
    images = np.zeros((count, 8, 8, 3), np.uint8)
    images[..., channel], images[..., 2] = 100, np.arange(count)[:, None, None]
    return ArraySource(images, np.arange(count), tuple(map(str, range(count))))


SOURCE = JointSource(colored(100, 0), colored(70, 1))
ORDER = JointOrder.of(TrainOrder(100, 48, repeats=3, group_size=2, groups_per_block=4, seed=5), 70, 16)
CROP = CenterCrop(8, 1.0)


def read(start=0, stop=5, source=SOURCE, order=ORDER, crop=CROP, num_threads=0, **options):
    return list(
        train_batches(source, order, crop, start_step=start, stop_step=stop, num_threads=num_threads, **options)
    )


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_rows_have_the_images_of_their_kind():
    for step, batch in enumerate(read()):
        image, _, row = ORDER.positions(step)
        without = image >= 100
        np.testing.assert_array_equal(batch["label"][row], np.where(without, -1, image))
        np.testing.assert_array_equal(batch["image"][row, 0, 0, 2], np.where(without, image - 100, image))
        np.testing.assert_array_equal(batch["image"][row, 0, 0, 1], np.where(without, 100, 0))


@pytest.mark.parametrize("options", [{"num_threads": 3}, {"num_threads": 1, "num_workers": 1}])
def test_threads_and_workers_change_nothing(options, monkeypatch):
    crop = RandomResizedCrop(6)
    monkeypatch.setattr("deit_jax.data.loading._CHUNK", 7)
    expected = read(crop=crop)
    assert_same(read(2, 5, crop=crop, **options), expected[2:])  # resumed


@pytest.mark.parametrize("edge", [32, 20, 17])
def test_hosts_together_read_the_batch_of_one(edge, monkeypatch):
    monkeypatch.setattr("deit_jax.data.loading._CHUNK", 9)
    expected = read(crop=RandomResizedCrop(6), checksums=True)
    hosts = [read(crop=RandomResizedCrop(6), stretches=part, checksums=True) for part in (((0, edge),), ((edge, 64),))]
    joined = [
        {name: np.concatenate([one[name], other[name]]) for name in one} for one, other in zip(*hosts, strict=True)
    ]
    assert_same(joined, expected)
    apart = read(crop=RandomResizedCrop(6), stretches=((0, edge), (edge + 1, 64)), checksums=True)
    assert_same(apart, [{name: np.delete(rows, edge, axis=0) for name, rows in batch.items()} for batch in expected])


class Damaged:
    """Images of `colored`, of which some cannot be decoded; counts the reads."""

    def __init__(self, source, damaged):
        self._source, self._damaged, self.reads = source, damaged, 0
        self.class_names = source.class_names

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        self.reads += 1
        example = self._source[index]
        return example._replace(image=b"nothing") if index in self._damaged else example

    def describe(self, index):
        return f"image {index}"


def test_an_unusable_image_is_replaced_by_one_of_its_kind():
    source = JointSource(Damaged(SOURCE.labelled, {99}), Damaged(SOURCE.unlabelled, {68, 69}))
    counter = BadImages(lambda line: None)
    found = read(source=source, on_bad_image="replace", bad_images=counter, stop=8)
    expected, count = read(stop=8), 0
    for step, batch in enumerate(found):
        image, copy, row = ORDER.positions(step)
        number = np.where(image >= 168, 0, np.where(image == 99, 0, np.where(image >= 100, image - 100, image)))
        np.testing.assert_array_equal(batch["image"][row, 0, 0, 2], number)
        np.testing.assert_array_equal(batch["label"] < 0, expected[step]["label"] < 0)
        count += sum(int(each == 99 or each == 169) + 2 * int(each == 168) for each in image[copy == 0])
    assert counter.count(8) == count > 0
    with pytest.raises(DataError, match=r"image (99|68|69): "):
        read(source=source, stop=8)


def test_a_repeated_image_is_decoded_once_per_batch():
    source = JointSource(Damaged(SOURCE.labelled, ()), Damaged(SOURCE.unlabelled, ()))
    order = JointOrder.of(TrainOrder(100, 24, 3, group_size=2, groups_per_block=4, seed=5), 70, 8)
    read(source=source, order=order, stop=1)
    assert (source.labelled.reads, source.unlabelled.reads) == (8, 3)


def test_a_label_of_minus_one_is_an_error_in_labelled_images():
    class Unlabelled(Damaged):
        def __getitem__(self, index):
            return super().__getitem__(index)._replace(label=-1)

    assert len(read(source=JointSource(SOURCE.labelled, Unlabelled(SOURCE.unlabelled, ())), stop=1)) == 1
    with pytest.raises(DataError, match="label -1 is outside"):
        read(source=JointSource(Unlabelled(SOURCE.labelled, ()), SOURCE.unlabelled))


def test_both_sources_as_one(tmp_path):
    assert len(SOURCE) == 170 and SOURCE.class_names == SOURCE.labelled.class_names
    assert SOURCE[99].label == 99 and SOURCE[100].label == -1
    assert pickle.loads(pickle.dumps(SOURCE))[169].label == -1
    config = default_config()
    config.data.source, config.data.path = "folder", str(grow(tmp_path / "data", "train/a/1.png", "train/b/1.png"))
    assert not isinstance(open_training_images(config), JointSource)
    config.unlabelled = section(path=str(grow(tmp_path / "more", "1.png", "2.txt")))
    source = open_training_images(config)
    assert len(source) == 3 and searched_folders(source) == (f"{tmp_path}/data/train", f"{tmp_path}/more")
    assert source.notes == (f"skipped in {tmp_path}/more: 1 file: 1 .txt",)


def test_the_identity_has_both_kinds():
    identity = Identity.of(SOURCE, SOURCE.labelled)
    record = identity.record()
    assert record["data"]["train"] == record["data"]["evaluation"]
    assert record["data"]["unlabelled"]["images"] == 70
    assert identity.other_images(record, evaluation=True) == []
    other = Identity.of(JointSource(SOURCE.labelled, colored(71, 1)), SOURCE.labelled)
    assert other.other_images(record, evaluation=True) == ["70 unlabelled images then, 71 now"]
    same_number = Identity.of(JointSource(SOURCE.labelled, colored(70, 2)), SOURCE.labelled)
    assert same_number.other_images(record, evaluation=True) == [
        "70 unlabelled images as before, but not the same ones"
    ]
    assert "unlabelled" not in Identity.of(SOURCE.labelled, SOURCE.labelled).record()["data"]
