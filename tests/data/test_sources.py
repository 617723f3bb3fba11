import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_jax.data.decoding import CenterCrop, RandomResizedCrop, decode
from deit_jax.data.folder import ImageFolderSource
from deit_jax.data.loading import eval_batches, train_batches
from deit_jax.data.sampling import TrainOrder
from deit_jax.data.sources import ArraySource, DataError, ImageSource, TfdsSource


def encoded(value, kind="JPEG", size=(9, 8)):
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(file, kind)
    return file.getvalue()


def one_line(error):
    return "\n" not in str(error.value)


@pytest.fixture
def folder(tmp_path):
    files = {
        "train/dog/b.JPG": 10,
        "train/dog/deep/a.jpeg": 20,
        "train/dog/a.jpg": 30,
        "train/cat/z.png": 40,
        "train/Zebra/1.jpg": 50,
    }
    for name, value in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(value, "PNG" if name.endswith("png") else "JPEG"))
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    (tmp_path / "train/readme.md").write_text("not a class")
    return tmp_path


def test_folder_has_the_classes_and_order_of_torchvision(folder):
    source = ImageFolderSource(folder / "train")
    # Sorted by code point (capitals first), files before those of the folders below, as ImageFolder(...).samples.
    assert source.class_names == ("Zebra", "cat", "dog")
    names = [source.describe(i).removeprefix(f"{folder}/train/") for i in range(len(source))]
    assert names == ["Zebra/1.jpg", "cat/z.png", "dog/a.jpg", "dog/b.JPG", "dog/deep/a.jpeg"]
    assert [source[i].label for i in range(len(source))] == [0, 1, 2, 2, 2]
    assert [int(decode(source[i].image)[0, 0, 0]) for i in range(len(source))] == [50, 40, 30, 10, 20]
    assert source[2].image == (folder / "train/dog/a.jpg").read_bytes()


def test_folder_pickles_and_is_a_source(folder):
    source = ImageFolderSource(folder / "train")
    again = pickle.loads(pickle.dumps(source))
    assert isinstance(again, ImageSource)
    assert [again[i] for i in range(len(again))] == [source[i] for i in range(len(source))]


def test_invalid_folders_raise(folder):
    with pytest.raises(DataError, match=r"nowhere: no such folder; set data\.path") as error:
        ImageFolderSource(folder / "nowhere")
    assert one_line(error)
    (folder / "train/empty").mkdir()
    with pytest.raises(DataError, match=r"train/empty: a class folder without images.*remove the folder"):
        ImageFolderSource(folder / "train")
    with pytest.raises(DataError, match=r"dog/deep: no class folders"):
        ImageFolderSource(folder / "train/dog/deep")


def test_deleted_file_is_reported(folder):
    source = ImageFolderSource(folder / "train")
    (folder / "train/cat/z.png").unlink()
    with pytest.raises(DataError, match=r"cat/z\.png: no longer exists; restore the file"):
        source[1]


def test_arrays():
    images = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5)
    source = pickle.loads(pickle.dumps(ArraySource(images, np.asarray([1, 0]), ("a", "b"))))
    assert isinstance(source, ImageSource)
    assert len(source) == 2 and source.class_names == ("a", "b")
    np.testing.assert_array_equal(source[1].image, images[1])
    assert source[0].label == 1 and isinstance(source[0].label, int)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4), np.float32), [0, 1], r"images are float32\[2, 4, 4\]; give uint8"),
        (np.zeros((2, 3, 4, 4), np.uint8), [0, 1], r"images are uint8\[2, 3, 4, 4\]"),
        (np.zeros((2, 4, 4), np.uint8), [0], r"labels are int64\[1\] for 2 images"),
        (np.zeros((2, 4, 4), np.uint8), [0.0, 1.0], r"labels are float64\[2\]"),
        (np.zeros((2, 4, 4), np.uint8), [0, 2], r"label 2 of image 1 is outside the 2 class names"),
        (np.zeros((2, 4, 4), np.uint8), [-1, 0], r"label -1 of image 0"),
        (np.zeros((0, 4, 4), np.uint8), np.zeros(0, int), r"give at least one image"),
    ],
)
def test_inconsistent_arrays_raise(images, labels, message):
    with pytest.raises(DataError, match=message) as error:
        ArraySource(images, np.asarray(labels), ("a", "b"))
    assert one_line(error)


def test_npz_splits(tmp_path):
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 256, (2, 3, 6, 5, 3), np.uint8)
    names = np.asarray(["left", "right"])
    np.savez(
        tmp_path / "set.npz",
        train_images=train,
        train_labels=[0, 1, 1],
        test_images=test[:2],
        test_labels=[1, 0],
        class_names=names,
    )
    source = ArraySource.from_npz(tmp_path / "set.npz", "train")
    assert (len(source), source.class_names) == (3, ("left", "right"))
    np.testing.assert_array_equal(source[2].image, train[2])
    held_out = ArraySource.from_npz(tmp_path / "set.npz", "eval")
    assert [held_out[i].label for i in range(len(held_out))] == [1, 0]
    np.testing.assert_array_equal(held_out[0].image, test[0])


def test_unreadable_npz_raises(tmp_path):
    path = tmp_path / "set.npz"
    with pytest.raises(DataError, match=r"set\.npz: no such file"):
        ArraySource.from_npz(path, "train")
    path.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match=r"set\.npz: not a readable \.npz") as error:
        ArraySource.from_npz(path, "train")
    assert one_line(error)
    np.savez(path, train_images=np.zeros((1, 2, 2), np.uint8), class_names=["a"])
    with pytest.raises(DataError, match=r"key 'train_labels' is missing \(found: class_names, train_images\)"):
        ArraySource.from_npz(path, "train")
    np.savez(path, train_images=np.zeros((1, 2, 2), np.uint8), train_labels=[0], class_names=np.asarray([{}], object))
    with pytest.raises(DataError, match="not a readable"):  # pickled objects are never loaded
        ArraySource.from_npz(path, "train")


PREPARE = """
import io, sys
from pathlib import Path
import tensorflow_datasets as tfds
from PIL import Image

class ToyPhotos(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["even", "odd"])}))
    def _split_generators(self, _):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for i in range(7):
            file = io.BytesIO()
            Image.new("RGB", (9, 8), (30 * i,) * 3).save(file, "JPEG")
            yield i, {"image": io.BytesIO(file.getvalue()), "label": i % 2}

class FolderPhotos(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["cat", "dog"])}))
    def _split_generators(self, _):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for i, file in enumerate(sorted(Path(sys.argv[2]).glob("*/*.jpg"))):
            yield i, {"image": io.BytesIO(file.read_bytes()), "label": file.parent.name}

for builder in (ToyPhotos, FolderPhotos):
    builder(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory):
    """Twenty windows of a photograph as JPEG files of two classes."""
    root = tmp_path_factory.mktemp("photos")
    photo = Image.open(Path(__file__).parent.parent / "golden" / "crops_china.jpg")
    for i in range(20):
        path = root / ("cat", "dog")[i // 10] / f"{i:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        photo.crop((5 * i, 3 * i, 5 * i + 90, 3 * i + 80)).save(path, quality=90)
    return root


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory, photo_folder):
    # In another process, so that the reader has only the files, not the builder class.
    folder = tmp_path_factory.mktemp("tfds")
    script = folder / "prepare.py"
    script.write_text(PREPARE)
    done = subprocess.run([sys.executable, script, folder, photo_folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return str(folder)


def test_tfds_round_trip_without_tensorflow(tfds_folder):
    source = TfdsSource("toy_photos", "train", tfds_folder)
    assert isinstance(source, ImageSource)
    assert (len(source), source.class_names) == (7, ("even", "odd"))
    examples = [source[i] for i in range(7)]
    assert all(isinstance(example.image, bytes) for example in examples)
    shades = {round(int(decode(example.image)[4, 4, 0]) / 30): example.label for example in examples}
    assert shades == {i: i % 2 for i in range(7)}
    again = pickle.loads(pickle.dumps(source))
    assert [again[i] for i in range(7)] == examples
    assert len(TfdsSource("toy_photos", "train[:3]", tfds_folder)) == 3
    assert "tensorflow" not in sys.modules


def test_tfds_and_folder_give_the_same_batches(tfds_folder, photo_folder):
    sources = [TfdsSource("folder_photos", "train", tfds_folder), ImageFolderSource(photo_folder)]
    assert sources[0].class_names == sources[1].class_names == ("cat", "dog")
    order = TrainOrder(num_examples=20, batch_size=12, repeats=3, group_size=4, groups_per_block=3, seed=1)
    train = [
        train_batches(source, order, RandomResizedCrop(32), start_step=0, stop_step=3, num_threads=2)
        for source in sources
    ]
    held_out = [eval_batches(source, CenterCrop(32), 8, num_threads=2) for source in sources]
    for pairs in (zip(*train, strict=True), zip(*held_out, strict=True)):
        for one, other in pairs:
            assert one.keys() == other.keys()
            for key in one:
                np.testing.assert_array_equal(one[key], other[key])


def test_tfds_open_files_and_withheld_labels(tfds_folder):
    source = TfdsSource("toy_photos", "train", tfds_folder)
    image = encoded(3)
    source._records = [{"image": io.BytesIO(image), "label": np.int64(1)}]
    assert source[0] == (image, 1)
    assert source[0] == (image, 1)  # the file is rewound
    source._records = [{"image": image, "label": np.int64(-1)}]
    with pytest.raises(DataError, match=r"image 0 of TFDS toy_photos \(train\): has no label"):
        source[0]


def test_tfds_errors_say_how_to_get_the_data(tmp_path, tfds_folder):
    with pytest.raises(
        DataError, match=r"'cifar10' is not prepared in .*tfds build cifar10 .*data\.source=folder"
    ) as error:
        TfdsSource("cifar10", "train", str(tmp_path))
    assert one_line(error)
    with pytest.raises(DataError, match=r"'no_such_set'.*not found.*correct data\.name") as error:
        TfdsSource("no_such_set", "train", str(tmp_path))
    assert one_line(error)
    with pytest.raises(DataError, match=r"has no split 'validation' \(it has train\)") as error:
        TfdsSource("toy_photos", "validation", tfds_folder)
    assert one_line(error)
