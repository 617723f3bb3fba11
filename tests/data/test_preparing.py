import json
import os
import shutil
import subprocess
import sys
import time
from io import BytesIO

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from deit_jax.config import default_config
from deit_jax.data.decoding import decode
from deit_jax.data.output_folder import OutputFolder
from deit_jax.data.own_source import OwnSource
from deit_jax.data.preparing import Settings, prepare
from deit_jax.data.registry import open_source, open_unlabelled
from deit_jax.data.resizing import resize
from deit_jax.data.sources import ArraySource, DataError
from tests.data.imagenet_files import write_files
from tests.data.test_imagenet_tars import contents
from tests.data.test_tar_shards import CLASSES, assert_reads_as, batches, photos, write_folder, write_shards


def opened(source, path, split="train", **fields):
    data = default_config().data
    data.update({"source": source, "path": str(path), "index": ""} | fields)
    return open_source(data, split)


def write(root, sources, **settings):
    return prepare(
        sources, OutputFolder(str(root)), Settings(**{"shard_images": 10} | settings), origin={}, num_threads=2
    )


def refusal(call, *arguments, **fields):
    with pytest.raises(DataError) as error:
        call(*arguments, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_folder(root / "train", photos())
    write_folder(root / "val", photos(9, seed=1))
    return root


@pytest.fixture(scope="module")
def written(folder):
    """The folder's images, prepared; not to be changed."""
    sources = {split: opened("folder", folder, kind) for split, kind in (("train", "train"), ("validation", "eval"))}
    write(folder / "prepared", sources)
    return folder / "prepared"


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copy")


def test_three_epochs_equal_the_folders(folder, written):
    train, source = opened("folder", folder), opened("array_record", written)
    assert source.class_names == train.class_names == CLASSES
    assert source.fingerprint() == train.fingerprint()
    assert [source.relative_path(i) for i in range(37)] == [train.relative_path(i) for i in range(37)]
    assert_reads_as(source, batches(train))
    assert len(opened("array_record", written, "eval")) == 9
    assert [each for each in os.listdir(written) if each.startswith((".", "parts", "preparation"))] == []


@pytest.mark.long
def test_worker_processes(folder, written, tmp_path):
    train = opened("folder", folder)
    prepare({"train": train}, OutputFolder(str(tmp_path)), Settings(shard_images=10), origin={}, num_workers=2)
    for name in sorted(os.listdir(tmp_path)):
        if name.endswith(".array_record"):
            assert (tmp_path / name).read_bytes() == (written / name).read_bytes()
    source = opened("array_record", tmp_path)
    assert source[1].image  # files are open here
    assert_reads = batches(source, stop=4, num_workers=1)
    assert np.array_equal(assert_reads[3]["image"], batches(train, stop=4)[3]["image"])


def test_tfds_reads_it(folder, written):
    train, data = opened("folder", folder), tfds.builder_from_directory(written).as_data_source("train")
    assert len(data) == len(train)
    record = data[20]
    assert np.array_equal(record["image"], decode(train[20].image))
    assert (record["label"], record["file_name"].decode()) == (train[20].label, train.relative_path(20))


def test_resizing(folder, tmp_path):
    train = opened("folder", folder)
    card = write(tmp_path / "a", {"train": train}, shortest_side=12, quality=90)
    source = opened("array_record", tmp_path / "a")
    resized = 0
    for index in range(len(train)):
        before, after = decode(train[index].image), Image.open(BytesIO(source[index].image))
        if min(before.shape[:2]) <= 12:
            assert source[index] == train[index]
            continue
        resized += 1
        side, longer = min(before.shape[:2]), max(before.shape[:2])
        assert (min(after.size), max(after.size), after.format) == (12, int(12 * longer / side), "JPEG")
        assert after.layer[1][1:3] == (1, 1)  # colors are not subsampled
        expected = resize(before, after.height, after.width).astype(int)
        assert np.abs(np.asarray(after).astype(int) - expected).mean() < 12  # noise, compressed
    assert 0 < resized == card["splits"]["train"]["resized"] < len(train)
    assert source.notes[-1] == (
        f"{resized} of 37 images in {tmp_path / 'a'} were resized to a shortest side of 12 pixels (JPEG, quality 90)"
    )
    assert source.fingerprint() != train.fingerprint()
    write(tmp_path / "b", {"train": train}, shortest_side=12, quality=91)
    assert opened("array_record", tmp_path / "b").fingerprint() != source.fingerprint()


def test_arrays_are_written_as_png(tmp_path):
    random = np.random.default_rng(0)
    for channels in ((), (1,), (3,)):
        arrays = ArraySource(random.integers(0, 255, (4, 6, 7, *channels), np.uint8), np.arange(4) % 2, ("a", "b"))
        write(tmp_path / f"{channels}", {"train": arrays})
        source = opened("array_record", tmp_path / f"{channels}")
        assert all(np.array_equal(decode(source[i].image), decode(arrays[i].image)) for i in range(4))
        assert Image.open(BytesIO(source[0].image)).mode == ("RGB" if channels == (3,) else "L")
        assert source.fingerprint() == arrays.fingerprint() and source.labels.tolist() == [0, 1, 0, 1]


class Own:
    class_names = ("a", "b")

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index % 2


def test_images_that_cannot_be_read(tmp_path):
    good = next(iter(photos(1).values()))
    source = OwnSource("own", Own([good, b"not an image", good]))
    write(tmp_path / "as they are", {"train": source})  # nothing is decoded
    assert "image 1 of own" in refusal(write, tmp_path / "a", {"train": source}, shortest_side=4)
    folder = OutputFolder(str(tmp_path / "a"))
    prepare({"train": source}, folder, Settings(4, shard_images=10), origin={}, on_bad_image="replace")
    prepared = opened("array_record", tmp_path / "a")
    assert len(prepared) == 2 and prepared.labels.tolist() == [0, 0]
    assert prepared.notes[-1].startswith("1 images could not be read when")


def test_imagenet(tmp_path):
    write_files(tmp_path, *contents())
    sources = {
        split: opened("imagenet_tars", tmp_path, kind) for split, kind in (("train", "train"), ("validation", "eval"))
    }
    write(tmp_path / "out", sources)
    for kind, expected in zip(("train", "eval"), sources.values(), strict=True):
        prepared = opened("array_record", tmp_path / "out", kind)
        assert prepared.class_names == expected.class_names == ("n01440764", "n02100735", "n02119789")
        assert [prepared[i] for i in range(len(prepared))] == [expected[i] for i in range(len(expected))]


def test_tar_shards_and_a_part_of_a_split(folder, tmp_path):
    write_shards(tmp_path / "tar", photos(), "cls")
    part = opened("tar", tmp_path / "tar", train_split="train[:50%]")
    write(tmp_path / "out", {"train": part})
    prepared = opened("array_record", tmp_path / "out")
    assert [prepared[i] for i in range(len(prepared))] == [part[i] for i in range(len(part))]
    assert prepared.file_name(0) == part.relative_path(0).rpartition("/")[2]


KILLED = """
import sys
from deit_jax.data.output_folder import OutputFolder
from deit_jax.data.preparing import Settings, prepare
from tests.data.test_preparing import opened

class Slow:
    def __init__(self, source): self.source, self.class_names = source, source.class_names
    def __len__(self): return len(self.source)
    def fingerprint(self): return self.source.fingerprint()
    def relative_path(self, index): return self.source.relative_path(index)
    def __getitem__(self, index):
        if index >= 25: print("there", flush=True); sys.stdin.read()
        return self.source[index]

prepare({"train": Slow(opened("folder", sys.argv[1]))}, OutputFolder(sys.argv[2]), Settings(shard_images=10), origin={})
"""


def test_a_killed_command_continues(folder, written, tmp_path, capsys):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, folder, tmp_path / "out"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        while process.stdout.readline() != b"there\n":
            assert process.poll() is None
        process.kill()
    train, out = opened("folder", folder), tmp_path / "out"
    assert refusal(opened, "array_record", out).endswith(
        "restore them, or list those to use in data.path, as in 'DIR/a-{00..07}.tar'"
    )
    (out / "train-00001-of-00004.array_record").write_bytes(b"damaged")
    times = {name: (out / name).stat().st_mtime_ns for name in os.listdir(out) if name.endswith("d")}
    assert "other settings; give a new folder" in refusal(write, out, {"train": train}, shortest_side=20)
    assert "other images or splits" in refusal(write, out, {"train": opened("folder", folder, "eval")})
    time.sleep(0.01)
    write(out, {"train": train})
    assert f"1 of 4 shards in {out} are finished and undamaged" in capsys.readouterr().out
    for name in (each for each in os.listdir(out) if each.endswith(".array_record")):
        assert (out / name).read_bytes() == (written / name).read_bytes()
        assert ((out / name).stat().st_mtime_ns == times.get(name)) == (name == "train-00000-of-00004.array_record")
    assert (out / "train.index.npz").read_bytes() == (written / "train.index.npz").read_bytes()


def test_a_complete_folder_is_verified_and_repaired(folder, copy, capsys):
    sources = {split: opened("folder", folder, kind) for split, kind in (("train", "train"), ("validation", "eval"))}
    path = copy / "train-00002-of-00004.array_record"
    content = path.read_bytes()
    path.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    (copy / "validation-00000-of-00001.array_record").unlink()
    write(copy, sources)
    assert path.read_bytes() == content
    out = capsys.readouterr().out
    assert "train-00002-of-00004.array_record was damaged or missing, and is written again" in out
    assert len(opened("array_record", copy, "eval")) == 9
    with pytest.raises(DataError, match=r"other images or splits; give a new folder, or remove this one$"):
        write(copy, {"train": sources["train"]})


def test_other_folders_are_not_touched(folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("text")
    assert refusal(write, tmp_path, {"train": opened("folder", folder)}) == (
        f"{tmp_path}: is not empty (it has thesis.tex); give a new folder"
    )
    assert os.listdir(tmp_path) == ["thesis.tex"]
    (tmp_path / "file").write_text("text")
    assert "cannot be written (Not a directory" in refusal(
        write, tmp_path / "file/out", {"train": opened("folder", folder)}
    )
    held = OutputFolder(str(tmp_path / "held"))
    with held.held():
        assert "another command writes it (process" in refusal(
            write, tmp_path / "held", {"train": opened("folder", folder)}
        )


def test_classes_that_differ(folder, tmp_path):
    write_folder(tmp_path / "val", {"birch/0.png": next(iter(photos(1).values())), "ash/1.png": b"x"})
    sources = {"train": opened("folder", folder), "validation": opened("folder", tmp_path, "eval")}
    assert "the classes of the validation images differ from the training images'" in refusal(
        write, tmp_path / "out", sources
    )
    assert not (tmp_path / "out").exists()


class TestFaultyFolders:
    def test_shards(self, copy, written):
        path = copy / "train-00001-of-00004.array_record"
        content = path.read_bytes()
        source = opened("array_record", copy)
        start = content.index(source[12].image[-40:])
        path.write_bytes(content[: start + 9] + bytes([content[start + 9] ^ 1]) + content[start + 10 :])
        message = refusal(opened("array_record", copy).__getitem__, 12)
        assert (
            message
            == f"{source.relative_path(12)} in {path}: is damaged; the command that wrote the shards repairs them"
        )
        path.write_bytes(content[:-10])
        assert "train-00001-of-00004.array_record has 131,062 bytes, 131,072 were written" in refusal(
            opened, "array_record", copy
        )
        path.unlink()
        assert "1 of 4 shards are missing, the first is train-00001-of-00004.array_record" in refusal(
            opened, "array_record", copy
        )
        pattern = f"{written}/train-0000[01]*.array_record"
        assert "4 shards were written for train, 2 are given; set data.path to the folder" in refusal(
            opened, "array_record", pattern
        )

    def test_cards(self, copy):
        (copy / "train.index.npz").write_bytes(b"PK")
        assert refusal(opened, "array_record", copy) == f"{copy}/train.index.npz: is damaged; copy the folder again"
        (copy / "train.index.npz").unlink()
        assert refusal(opened, "array_record", copy) == f"{copy}/train.index.npz: is missing; copy the folder again"
        card = json.loads((copy / "dataset.json").read_text())
        for content, message in (
            (json.dumps(card | {"format": 99}), "later version of deit_jax"),
            ("[]", "is not a card of prepared images"),
            ("{}", "is not a card of prepared images"),
            ("{", "is not a card of prepared images"),
        ):
            (copy / "dataset.json").write_text(content)
            assert message in refusal(opened, "array_record", copy)
        (copy / "dataset.json").unlink()
        assert "has no dataset.json, which is written last; repeat the command" in refusal(opened, "array_record", copy)

    def test_a_data_set_of_tfds(self, tmp_path):
        (tmp_path / "cifar10-train.array_record-00000-of-00001").write_bytes(b"")
        assert "holds a data set of TFDS: use data.source=tfds" in refusal(opened, "array_record", tmp_path)


def test_held_out_as_from_the_folder(written, tmp_path):
    """Tar shards and prepared shards have the folder's paths, so they hold out the same images."""
    write_folder(tmp_path / "folder/train", photos())
    train = opened("folder", tmp_path / "folder")
    write(tmp_path / "array_record", {"train": train})
    write_shards(tmp_path / "tar", photos(), "folder")
    found = {
        kind: [
            [source[i] for i in range(len(source))]
            for source in (opened(kind, tmp_path / kind, split, held_out=0.3) for split in ("train", "eval"))
        ]
        for kind in ("folder", "tar", "array_record")
    }
    assert found["folder"] == found["tar"] == found["array_record"]
    assert [len(part) for part in found["tar"]] == [25, 12]
    assert len(opened("array_record", written, "eval", held_out=0.3)) == 9  # there are shards of validation


def test_as_unlabelled_images(written):
    section = default_config().unlabelled
    section.update({"source": "array_record", "path": str(written)})
    assert len(open_unlabelled(section)) == 37
