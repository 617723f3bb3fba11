import json
import pickle
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deit_jax.config import default_config
from deit_jax.data import parquet
from deit_jax.data.bad_images import BadImages
from deit_jax.data.decoding import RandomResizedCrop
from deit_jax.data.loading import train_batches
from deit_jax.data.registry import open_source
from deit_jax.data.sampling import TrainOrder
from deit_jax.data.sources import DataError, MissingDataError, UnusableError
from tests.data.test_tar_shards import CLASSES, assert_equal_batches, assert_reads_as, batches, photos, write_folder
from tests.data.trees import png

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def section(path, **fields):
    data = default_config().data
    data.update({"source": "parquet", "path": str(path)} | fields)
    return data


def train(path, **fields):
    return open_source(section(path, **fields), "train")


def refusal(path, split="train", **fields):
    with pytest.raises(DataError) as error:
        open_source(section(path, **fields), split)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(path), "DATA")


def class_label(*columns, names=CLASSES):
    """The hub's metadata of label columns, and of an image column."""
    features = {name: {"names": list(names), "_type": "ClassLabel"} for name in columns} | {"image": {"_type": "Image"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def structs(files):
    return pa.array([{"bytes": content, "path": f"x/{name}"} for name, content in files.items()], STRUCT)


def write(path, columns, metadata=None, rows=5):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=rows)
    return path


def write_set(root, files, form, shards=2):
    """Writes images in their order."""
    names = list(files)
    for number, part in enumerate(np.array_split(np.arange(len(names)), shards)):
        some = {names[i]: files[names[i]] for i in part}
        folders = [name.partition("/")[0] for name in some]
        numbers = pa.array([CLASSES.index(folder) for folder in folders], pa.int64())
        binary = pa.array(list(some.values()), pa.binary())
        columns, metadata = {
            "hub": ({"image": structs(some), "label": numbers}, class_label("label")),
            "texts": ({"jpg": binary, "species": pa.array(folders)}, None),
            "numbers": ({"label": numbers.cast(pa.uint8()), "image": binary.cast(pa.large_binary())}, None),
            "dictionary": ({"image": binary, "label": pa.array(folders).dictionary_encode()}, None),
        }[form]
        write(root / f"train-{number:05}-of-{shards:05}.parquet", columns, metadata)
    if form == "numbers":
        (root / "classnames.txt").write_text("\n".join(CLASSES))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """DATA/folder, and DATA/<form> with the same images in its order."""
    root, files = tmp_path_factory.mktemp("data"), photos()
    write_folder(root / "folder/train", files)
    source = train(root / "folder", source="folder", index="")
    ordered = {source.relative_path(i): source[i].image for i in range(len(source))}
    for form in ("hub", "texts", "numbers", "dictionary"):
        write_set(root / form, ordered, form)
    return root


def folder_of(root):
    return train(root / "folder", source="folder", index="")


@pytest.mark.parametrize("form", ["hub", "texts", "numbers", "dictionary"])
def test_same_images_as_the_folder(root, form):
    source, folder = train(root / form), folder_of(root)
    assert source.class_names == folder.class_names == CLASSES
    assert source.labels.dtype == np.int32 and np.array_equal(source.labels, folder.labels)
    assert [source[i] for i in range(len(source))] == [folder[i] for i in range(len(folder))]
    assert source.file_name(30) == (folder.file_name(30) if form == "hub" else "")
    assert source.describe(20) == f"row 1 of {root}/{form}/train-00001-of-00002.parquet"


def test_three_epochs_equal_the_folders(root, monkeypatch):
    monkeypatch.setattr(parquet, "CACHE_BYTES", 4000)  # two row groups
    expected = batches(folder_of(root))
    source = train(root / "hub")
    assert_reads_as(source, expected)


@pytest.mark.long
def test_worker_processes(root):
    source = train(root / "hub")
    assert source[0].image  # a row group is in memory here
    assert_equal_batches(batches(source, stop=4, num_workers=1), batches(folder_of(root), stop=4))


def test_pickles_without_images(root):
    source = train(root / "hub")
    images = [source[i] for i in range(len(source))]
    copy = pickle.dumps(source)
    assert len(copy) < 4000 < sum(len(image) for image, _ in images)
    assert [pickle.loads(copy)[i] for i in range(len(images))] == images
    assert pickle.loads(copy).fingerprint() == source.fingerprint()


def test_fingerprint(root, tmp_path):
    files = photos(37, seed=1)
    others = [write_set(tmp_path / form, files, form) for form in ("hub", "texts")]
    of_hub, of_texts, of_other, of_others = (
        train(path).fingerprint() for path in (root / "hub", root / "texts", *others)
    )
    assert of_hub == of_texts and of_other == of_others and of_hub != of_other


def test_row_groups_are_kept_within_bounds_and_read_once(root, monkeypatch):
    reads, read_group = [], parquet._read_group
    monkeypatch.setattr(
        parquet, "_read_group", lambda *arguments: reads.append(arguments[1:3]) or read_group(*arguments)
    )
    source = train(root / "hub")
    threads = [threading.Thread(target=lambda: [source[i] for i in range(len(source))]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == len(set(reads)) == 8
    monkeypatch.setattr(parquet, "CACHE_BYTES", 1)
    source = train(root / "hub")
    del reads[:]
    expected = [folder_of(root)[i] for i in (0, 1, 36, 2)]
    assert [source[i] for i in (0, 1, 36, 2)] == expected and len(reads) == 3  # one group is always kept


def test_slow_row_groups_are_announced(root, monkeypatch):
    assert not train(root / "hub").notes
    monkeypatch.setattr(parquet, "CACHE_BYTES", 1000)
    monkeypatch.setattr(parquet, "_SLOW_BYTES", 1000)
    (note,) = train(root / "hub").notes
    assert note.startswith(
        "row groups of 5 images (0 MB): in random order each image reads a whole one, which is slow; "
    )


def test_columns_are_found_by_type(tmp_path):
    image = pa.array([png(), png(1), png(2)])
    numbers, texts = pa.array([0, 1, 1]), pa.array(["a", "b", "b"])
    for columns, metadata, label in (
        ({"id": numbers, "x": image, "label": numbers}, None, [0, 1, 1]),
        ({"file": texts, "x": image, "width": numbers, "cls_name": texts}, None, [0, 1, 1]),
        ({"fine": pa.array([1, 0, 0]), "image": image, "label": texts}, class_label("fine", names="ab"), [1, 0, 0]),
        ({"image": image, "mask": image, "label": numbers}, class_label("label", names="ab"), [0, 1, 1]),
    ):
        write(tmp_path / "train.parquet", columns, metadata)
        source = train(tmp_path)
        assert source.labels.tolist() == label and source[2].image == png(2)


def test_two_label_columns(tmp_path):
    columns = {"img": pa.array([png(), png(1)]), "fine_label": pa.array([0, 1]), "coarse_label": pa.array([1, 0])}
    write(tmp_path / "train.parquet", columns, class_label("fine_label", "coarse_label", names="ab"))
    assert refusal(tmp_path) == (
        "DATA/train.parquet: has the label columns fine_label, coarse_label; choose one, e.g. --config.data.name=fine_label"
    )
    assert train(tmp_path, name="coarse_label").labels.tolist() == [1, 0]
    assert train(tmp_path, name="img, fine_label").labels.tolist() == [0, 1]
    assert "has no column fine (it has img, fine_label, coarse_label); set data.name" in refusal(tmp_path, name="fine")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0, 1]}, "has no image column (binary, or a struct with bytes) among label"),
        ({"image": [b"", b""]}, "has no label column (integers or texts) among image"),
        ({"image": [b"", b""], "other": [b"", b""], "label": [0, 1]}, None),
        (
            {"a": [b"", b""], "b": [b"", b""], "label": [0, 1]},
            "has the image columns a, b; choose one",
        ),
        ({"image": [b"", b""], "label": [0.5, 1]}, "has no label column"),
        (
            {"image": [b"", b""], "label": [0, -1]},
            "row 1 of DATA/train.parquet: has the label -1, which is none of",
        ),
        (
            {"image": [b"", b""], "label": [0, None]},
            "row 1 of DATA/train.parquet: has no label; use a split with labels",
        ),
        ({"image": [b"", b""], "label": [0, 2**40]}, "which is none of the 1,000,000 classes"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "no images for training"),
    ],
)
def test_faulty_tables(tmp_path, columns, message):
    write(tmp_path / "train.parquet", columns)
    if message is None:
        assert train(tmp_path).labels.tolist() == [0, 1]
    else:
        assert message in refusal(tmp_path)


def test_labels_outside_the_names(tmp_path):
    write(tmp_path / "train.parquet", {"image": [b"", b""], "label": [0, 4]}, class_label("label"))
    assert "row 1 of DATA/train.parquet: has the label 4, which is none of the 4 classes" in refusal(tmp_path)


def test_files_of_other_columns(tmp_path):
    write(tmp_path / "train-0.parquet", {"image": [b""], "label": [0]})
    write(tmp_path / "train-1.parquet", {"image": [b""], "label": ["a"]})
    assert "train-1.parquet: its column label is missing or of another type than in" in refusal(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "pointer", "text"])
def test_unreadable_files(tmp_path, damage):
    path = write(tmp_path / "train.parquet", {"image": [png()], "label": [0]})
    whole = path.read_bytes()
    path.write_bytes(
        {"truncated": whole[:-20], "empty": b"", "pointer": b"version https://git-lfs", "text": b"x" * 99}[damage]
    )
    assert refusal(tmp_path).startswith(
        "DATA/train.parquet: not a readable Parquet file, it may be truncated or a pointer"
    )


def test_damaged_after_the_start_or_missing(tmp_path):
    path = write(tmp_path / "train.parquet", {"image": [png(), png(1)], "label": [0, 1]})
    source = train(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(len(content) - 4))
    with pytest.raises(DataError, match=r"train.parquet: not a readable|train.parquet: row group 0 cannot be read"):
        source[0]
    path.unlink()
    with pytest.raises(DataError, match=r"train.parquet: not a readable Parquet file"):
        source[0]
    with pytest.raises(MissingDataError, match=r"has no \.parquet files"):
        train(tmp_path)


def test_rows_without_an_image_are_unusable(tmp_path):
    files = structs({"a/1.png": png(), "b/2.png": png(1)})
    broken = pa.array([None, {"bytes": None, "path": "x"}, {"bytes": b"text", "path": None}], STRUCT)
    write(tmp_path / "train.parquet", {"image": pa.concat_arrays([files, broken]), "label": [0, 1, 0, 1, 0]})
    source = train(tmp_path)
    for index in (2, 3):
        with pytest.raises(UnusableError, match=rf"row {index} of .*train.parquet: the row has no image; remove it"):
            source[index]
    order = TrainOrder(num_examples=5, batch_size=4, repeats=1, seed=0, group_size=2, groups_per_block=2)
    bad = BadImages()
    settings = {"num_threads": 0, "on_bad_image": "replace", "bad_images": bad}
    with pytest.warns(UserWarning, match=r"the row has no image|cannot be decoded"):
        (batch,) = train_batches(source, order, RandomResizedCrop(4), start_step=0, stop_step=1, **settings)
    assert set(batch["label"].tolist()) <= {0, 1}


def test_the_hubs_folders(tmp_path):
    """A download: configurations in folders, and the older names with a digest."""
    for name in ("data/train-00000-of-00001-0123456789abcdef", "data/test-00000-of-00001-fedcba9876543210"):
        write(tmp_path / f"{name}.parquet", {"image": [png(), png(1)], "label": [0, 1]})
    assert len(train(tmp_path)) == len(train(tmp_path / "data")) == 2
    evaluation = open_source(section(tmp_path), "eval")
    assert evaluation.notes[0].endswith("since there are no shards of `validation`")
