import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from deit_jax.data.array_records import encode_example, locate_images, open_writer, read_span
from deit_jax.data.stored_files import LocalFile

# Around the block of 64 KiB, its header of 24 bytes, and several blocks.
SIZES = (1, 0, 65_300, 200, 65_512, 65_511, 65_536, 3 * 65_512 + 5, 70, 131_024, 17)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    random, path = np.random.default_rng(0), str(tmp_path_factory.mktemp("records") / "a.array_record")
    images = [random.bytes(size) for size in SIZES]
    writer = open_writer(path)
    for number, image in enumerate(images):
        writer.write(encode_example(image, 300 * number, f"oak/{number}.jpg".encode()))
    writer.close()
    return path, images


def test_images_are_found_by_offset(file):
    path, images = file
    stored = LocalFile(path)
    offsets = locate_images(stored, SIZES)
    assert [read_span(stored, int(offset), size) for offset, size in zip(offsets, SIZES, strict=True)] == images


def test_other_readers_read_the_same(file):
    path, images = file
    reader = ArrayRecordReader(path)
    assert reader.num_records() == len(images)
    for number, record in enumerate(reader.read_all()):
        features = tf_example_pb2.Example.FromString(record).features.feature
        assert [*features["image"].bytes_list.value] == [images[number]]
        assert [*features["label"].int64_list.value] == [300 * number]
        assert [*features["file_name"].bytes_list.value] == [f"oak/{number}.jpg".encode()]


def test_files_that_were_written_otherwise(file, tmp_path):
    stored = LocalFile(file[0])
    with pytest.raises(ValueError, match="record 0 is not as it was written"):
        locate_images(stored, (10_000,))
    with pytest.raises(ValueError, match="record 11 is not"):
        locate_images(stored, (*SIZES, 5))
    writer = ArrayRecordWriter(str(tmp_path / "b"), "group_size:2,uncompressed")
    for _ in range(2):
        writer.write(encode_example(b"image", 0, b"a"))
    writer.close()
    with pytest.raises(ValueError, match="record 0 is not"):
        locate_images(LocalFile(str(tmp_path / "b")), (5, 5))
    (tmp_path / "c").write_bytes((tmp_path / "b").read_bytes()[:64])
    with pytest.raises(ValueError, match="ends after 0 records"):
        locate_images(LocalFile(str(tmp_path / "c")), (5,))
