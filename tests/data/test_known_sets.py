import subprocess
import sys

import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import deit
from deit_jax.config import default_config
from deit_jax.config_check import validate
from deit_jax.data.decoding import CenterCrop, decode
from deit_jax.data.known_sets import KNOWN_SETS, how_to_get, imagenet_extra_sets, known_set
from deit_jax.data.loading import eval_batches
from deit_jax.data.registry import open_extra_set, open_source, open_unlabelled
from deit_jax.data.sources import DataError, MissingDataError, TfdsSource

# TFDS's builders of these names, with their features and labels, for a handful of gray images.
PREPARE = """
import io, sys
import tensorflow_datasets as tfds
from PIL import Image

def gray(value, kind):
    file = io.BytesIO()
    Image.new("RGB", (9, 8), (value,) * 3).save(file, kind)
    return io.BytesIO(file.getvalue())

def examples(name, split):
    for i in range(5):
        kind = "JPEG" if name.startswith("imagenet") else "PNG"
        example = {"image": gray(10 * i, kind), "label": i + 1}
        file = f"ILSVRC2012_val_{i + 1:08d}.JPEG"
        if name == "imagenet2012_real":
            del example["label"]
            example |= {"original_label": i + 1, "real_label": [[7], [], [1, 999], [4], [0]][i]}
        if name in ("imagenet2012", "imagenet2012_real", "oxford_flowers102", "imagenet_v2"):
            example["file_name"] = file
        if name in ("cifar10", "cifar100", "i_naturalist2018", "cars196"):
            example["id"] = f"{split}_{i}"
        if name == "cifar100":
            example["coarse_label"] = 19
        if name == "i_naturalist2018":
            example |= {"supercategory": 13} | ({"label": -1, "supercategory": -1} if split == "test" else {})
        if name == "cars196":
            example["bbox"] = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
        yield f"{split}{i}", example

def prepare(name, splits, **config):
    builder = tfds.builder_cls(name)
    builder._split_generators = lambda self, _: {split: examples(name, split) for split in splits}
    builder.MANUAL_DOWNLOAD_INSTRUCTIONS = None
    builder(data_dir=sys.argv[1], file_format="array_record", **config).download_and_prepare()

prepare("imagenet2012", ("train", "validation"))
prepare("imagenet2012_real", ("validation",))
prepare("imagenet_v2", ("test",), config="matched-frequency")
prepare("i_naturalist2018", ("train", "validation", "test"))
prepare("oxford_flowers102", ("train", "validation", "test"))
prepare("cars196", ("train", "test"))
prepare("cifar100", ("train", "test"))
prepare("cifar10", ("train", "test"))
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    script = folder / "prepare.py"
    script.write_text(PREPARE)
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return str(folder)


READ = [name for name in KNOWN_SETS if name not in ("imagenet2012_real", "i_naturalist2019")]


@pytest.mark.parametrize("name", READ)
def test_known_sets_have_the_papers_classes_and_splits(tfds_folder, name):
    known = KNOWN_SETS[name]
    name += "/matched-frequency" if name == "imagenet_v2" else ""
    for split, count in ((known.train_split, 5 + 5 * ("+" in known.train_split)), (known.eval_split, 5)):
        if not split:
            continue
        source = TfdsSource(name, split, tfds_folder)
        assert len(source) == count and len(source.class_names) == known.num_classes
        # The label is the right one, e.g. not cifar100's coarse label.
        for example in (source[i] for i in range(count)):
            assert example.label == round(decode(example.image)[4, 4, 0] / 10) + 1


def test_withheld_test_labels_raise(tfds_folder):
    with pytest.raises(DataError, match="has no label"):
        TfdsSource("i_naturalist2018", "test", tfds_folder)[0]
    section = {"source": "tfds", "name": "i_naturalist2018", "path": tfds_folder, "split": "test"}
    source = open_unlabelled(ConfigDict(section))  # labels are not read
    assert source[0].label == 0 and isinstance(source[0].image, bytes) and source.class_names == ("unlabelled",)


def extra(**fields):
    return ConfigDict({"name": "", "path": "", "split": "validation", "labels": ""} | fields)


def labels_of(source):
    """The correct labels by the number that the gray value encodes."""
    examples = [source[i] for i in range(len(source))]
    return {round(decode(example.image)[4, 4, 0] / 10): example.label for example in examples}


def test_real_labels_of_tfds_are_multi_label(tfds_folder):
    source = open_extra_set(extra(source="tfds", name="imagenet2012_real", path=tfds_folder))
    assert labels_of(source) == {0: (7,), 1: (), 2: (1, 999), 3: (4,), 4: (0,)}
    (batch,) = eval_batches(source, CenterCrop(4), 8, num_threads=0)
    assert batch["label"].shape == (8, 1000) and batch["label"].dtype == bool
    assert batch["mask"].sum() == 5 and sorted(batch["label"].sum(axis=1)) == [0, 0, 0, 0, 1, 1, 1, 2]
    data = default_config().data
    data.update(name="imagenet2012_real", path=tfds_folder, train_split="validation")
    with pytest.raises(DataError, match=r"evaluated in config\.evaluation\.extra"):
        open_source(data, "train")


def write_real(path, lists):
    path.write_text(str(lists))
    return str(path)


def test_real_labels_file_is_matched_by_file_name(tfds_folder, tmp_path):
    labels = write_real(tmp_path / "real.json", [[], [2, 3], [5], [], [999]])
    expected = {0: (), 1: (2, 3), 2: (5,), 3: (), 4: (999,)}
    over_tfds = open_extra_set(extra(source="tfds", name="imagenet2012", path=tfds_folder, labels=labels))
    assert labels_of(over_tfds) == expected
    # The folder's order, by class, is the reverse of the numbers here.
    for i in range(5):
        folder = tmp_path / "val" / f"n{9 - i:08d}"
        folder.mkdir(parents=True)
        Image.new("RGB", (9, 8), (10 * i,) * 3).save(
            folder / f"ILSVRC2012_val_{i + 1:08d}{'_n00000001' * (i % 2)}.JPEG"
        )
    labels = write_real(tmp_path / "real.json", [[], [2, 3], [0], [], [4]])
    entry = extra(source="folder", path=str(tmp_path), labels=labels)
    assert labels_of(open_extra_set(entry)) == {0: (), 1: (2, 3), 2: (0,), 3: (), 4: (4,)}
    entry.split = "validation[:3]"
    part = open_extra_set(entry)
    (batch,) = eval_batches(part, CenterCrop(4), 4, num_threads=0)
    assert len(part) == 3 and batch["label"].shape == (4, 5)


def test_invalid_real_labels_raise(tmp_path):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    Image.new("RGB", (9, 8)).save(tmp_path / "val" / "cat" / "tom.png")
    entry = extra(source="folder", path=str(tmp_path), labels=str(tmp_path / "real.json"))
    with pytest.raises(MissingDataError, match=r"real\.json: no such file; ReaL's labels are at https"):
        open_extra_set(entry)
    for content, message in (
        ("[[0", "is damaged"),
        ("{}", "is not a list of lists"),
        ("[[0], [1]]", r"entry 2 is \[1\]"),
        ("[0]", "entry 1 is 0"),
    ):
        (tmp_path / "real.json").write_text(content)
        with pytest.raises(DataError, match=message) as error:
            open_extra_set(entry)
        assert "\n" not in str(error.value)
    write_real(tmp_path / "real.json", [[0]])
    with pytest.raises(DataError, match=r"its name 'tom\.png' is not one of the 1 images"):
        open_extra_set(entry)[0]
    with pytest.raises(DataError, match="matched by file name, which image 0 of"):
        open_extra_set(extra(source="fashion_mnist_10k", split="test", labels=entry.labels))


def test_imagenet_v2_folders_are_class_numbers(tmp_path):
    root = tmp_path / "imagenetv2-matched-frequency-format-val"
    for number in range(12):
        (root / str(number)).mkdir(parents=True)
        Image.new("RGB", (9, 8), (10 * number,) * 3).save(root / str(number) / "a.png")
    entries = (
        extra(source="folder", path=str(tmp_path), split=root.name),
        extra(source="folder", path=str(root), split=""),
    )
    for source in map(open_extra_set, (*entries, entries[0])):
        assert labels_of(source) == {number: number for number in range(12)}
        assert source.class_names == tuple(map(str, range(12)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("imagenet2012", "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (image-net.org"),
        ("imagenet2012_real", "get ILSVRC2012_img_val.tar"),
        ("imagenet_v2/topimages", "`tfds build imagenet_v2/topimages --file_format=array_record --data_dir={}`"),
        ("i_naturalist2018", "`tfds build i_naturalist2018 --file_format=array_record --data_dir={}`"),
        ("i_naturalist2019", "TFDS does not have it: sort its images into one folder per class"),
        ("cars196", "is gone (tensorflow/datasets issue 5656): sort its images into one folder per class"),
        ("cifar100", "`tfds build cifar100 --file_format=array_record --data_dir={}`"),
    ],
)
def test_missing_set_error_says_how_to_get_it(tmp_path, name, words):
    with pytest.raises(MissingDataError) as error:
        TfdsSource(name, "validation", str(tmp_path))
    message = str(error.value)
    assert "\n" not in message and words.format(tmp_path) in message and "data.source=folder" in message
    assert ("--manual_dir=DIR" in message) == name.startswith("imagenet2012")


def test_names_may_have_configuration_and_version():
    assert known_set("imagenet_v2/matched-frequency:3.0.0") is known_set("imagenet_v2") is KNOWN_SETS["imagenet_v2"]
    assert known_set("imagenet2012:5.*.*") is KNOWN_SETS["imagenet2012"]
    assert known_set("mnist") is None
    assert "tfds build mnist --file_format=array_record`" in how_to_get("mnist")


def test_imagenet_extra_sets_are_valid_configuration():
    config = deit.get_config("small")
    config.evaluation.extra = imagenet_extra_sets()
    validate(config)
    assert config.evaluation.extra.real.name == "imagenet2012_real"
    assert config.evaluation.extra.v2.split == "test"
