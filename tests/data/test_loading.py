import io
import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_jax.data.bad_images import BadImages
from deit_jax.data.decoding import CenterCrop, PaddedCrop, RandomResizedCrop, decode
from deit_jax.data.folder import ImageFolderSource
from deit_jax.data.loading import crop_rng, eval_batches, train_batches
from deit_jax.data.sampling import TrainOrder
from deit_jax.data.sources import ArraySource, DataError

PHOTO = decode((Path(__file__).parent.parent / "golden" / "crops_flower.jpg").read_bytes())


def photographs(count=320):
    """`count` windows of a photograph; the label is the index, so that a row identifies its image."""
    rng = np.random.default_rng(0)
    corners = zip(rng.integers(0, 132, count), rng.integers(0, 212, count), strict=True)
    images = np.stack([PHOTO[i : i + 28, j : j + 28] for i, j in corners])
    return ArraySource(images, np.arange(count), tuple(map(str, range(count))))


SOURCE = photographs()
ORDER = TrainOrder(num_examples=320, batch_size=64, repeats=3, group_size=4, groups_per_block=4, seed=3)
CROP = RandomResizedCrop(16)


def run(start=0, stop=6, source=SOURCE, order=ORDER, crop=CROP, num_threads=0, **options):
    return list(
        train_batches(source, order, crop, start_step=start, stop_step=stop, num_threads=num_threads, **options)
    )


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


@pytest.fixture(scope="module")
def reference():
    return run()


def test_batches_follow_the_order(reference):
    for step, batch in enumerate(reference):
        assert batch["image"].shape == (64, 16, 16, 3) and batch["image"].dtype == np.uint8
        assert batch["label"].shape == (64,) and batch["label"].dtype == np.int32
        image, _, row = ORDER.positions(step)
        np.testing.assert_array_equal(batch["label"][row], image)
        for i, r in zip(image[::7], row[::7], strict=True):
            expected = CROP(SOURCE[int(i)].image, crop_rng(ORDER.seed, step, int(r)))
            np.testing.assert_array_equal(batch["image"][r], expected)


def test_copies_have_different_crops(reference):
    image, _, row = ORDER.positions(0)
    first = row[image == image[0]]
    assert len(first) == 3
    copies = {reference[0]["image"][r].tobytes() for r in first}
    assert len(copies) == 3


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_parts_of_the_global_batch(reference, hosts):
    parts = [run(stretches=((64 // hosts * i, 64 // hosts * (i + 1)),), num_threads=2) for i in range(hosts)]
    assert_same(
        [{key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in zip(*parts, strict=True)],
        reference,
    )


@pytest.mark.parametrize("stretches", [((0, 10), (30, 47)), ((5, 6), (6, 64))])
def test_stretch_of_positions_may_start_anywhere(reference, stretches):
    positions = np.concatenate([np.arange(*stretch) for stretch in stretches])
    for step, batch in enumerate(run(stretches=stretches, dealt=False)):
        row = ORDER.positions(step).row[positions]
        np.testing.assert_array_equal(batch["image"], reference[step]["image"][row])
        np.testing.assert_array_equal(batch["label"], reference[step]["label"][row])


@pytest.mark.parametrize("threads", [1, 5])
def test_batches_do_not_depend_on_threads(reference, threads):
    assert_same(run(num_threads=threads, prefetch_batches=1), reference)


def test_batches_do_not_depend_on_workers(reference):
    assert_same(run(num_threads=1, num_workers=2), reference)


def test_restart_continues_the_stream(reference):
    assert_same(run(start=4), reference[4:])
    hosts = [run(start=5, stretches=(rows,)) for rows in ((0, 32), (32, 64))]
    np.testing.assert_array_equal(np.concatenate([host[0]["image"] for host in hosts]), reference[5]["image"])
    assert run(start=3, stop=3) == []


def test_blocks_larger_than_a_chunk():
    # 2 blocks of 2 * 83 = 166 rows, split into chunks of 55 and 56; no divisor is needed.
    order = TrainOrder(num_examples=700, batch_size=332, repeats=2, group_size=2, groups_per_block=83, seed=0)
    source = photographs(700)
    batches = run(source=source, order=order, stop=2, num_threads=2)
    for step, batch in enumerate(batches):
        image, _, row = order.positions(step)
        np.testing.assert_array_equal(batch["label"][row], image)
    halves = [run(source=source, order=order, stop=2, stretches=(rows,)) for rows in ((0, 166), (166, 332))]
    np.testing.assert_array_equal(batches[1]["image"], np.concatenate([half[1]["image"] for half in halves]))


class CountingSource:
    """Counts reads from all threads."""

    def __init__(self, source):
        self.source, self.reads, self.lock = source, 0, threading.Lock()
        self.class_names = source.class_names

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        with self.lock:
            self.reads += 1
        return self.source[index]

    def describe(self, index):
        return self.source.describe(index)


def test_image_is_decoded_once_for_its_copies():
    order = TrainOrder(num_examples=512, batch_size=256, repeats=3, group_size=64, groups_per_block=4, seed=0)
    source = CountingSource(photographs(512))
    assert len(run(source=source, order=order, stop=1)) == 1
    assert source.reads == 86  # 256 / 3 images: no chunk boundary separates the copies of an image


def test_chunks_end_at_the_end_of_an_images_copies():
    order = TrainOrder(num_examples=2048, batch_size=256, repeats=3, group_size=64, groups_per_block=4, seed=0)
    source = CountingSource(photographs(2048))
    batches = run(source=source, order=order, stop=order.steps_per_epoch)
    for step, batch in enumerate(batches):
        image, _, row = order.positions(step)
        np.testing.assert_array_equal(batch["label"][row], image)
    distinct = [len(np.unique(order.positions(step).image_index)) for step in range(order.steps_per_epoch)]
    assert source.reads == sum(distinct)


def test_late_start_does_not_read_earlier_images():
    source = CountingSource(SOURCE)
    batches = train_batches(source, ORDER, CROP, start_step=10**6, stop_step=10**6 + 1, num_threads=0)
    next(batches)
    assert source.reads <= 32
    batches.close()


def test_crop_random_numbers_differ_by_step_row_and_seed():
    draws = {crop_rng(*where).random() for where in itertools.product((0, 1, 2**62), (0, 1, 2), (0, 1, 2))}
    assert len(draws) == 27
    a, b = crop_rng(1, 2, 3), crop_rng(1, 2, 3)
    np.testing.assert_array_equal(a.random(100), b.random(100))


def test_crop_random_numbers_of_neighbors_are_independent():
    draws = np.asarray([[crop_rng(0, step, row).random() for row in range(64)] for step in range(64)])
    assert abs(draws.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]) < 0.06
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < 0.06


@pytest.mark.parametrize("hosts", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 12, 50])
def test_evaluation_counts_every_image_once(hosts, count):
    source = photographs(count)
    crop = CenterCrop(14, 0.5)
    share = 12 // hosts
    parts = [list(eval_batches(source, crop, 12, stretches=((share * i, share * (i + 1)),))) for i in range(hosts)]
    assert {len(part) for part in parts} == {-(-count // 12)}
    seen = []
    for batch in itertools.chain(*parts):
        assert batch["image"].shape == (12 // hosts, 14, 14, 3) and batch["image"].dtype == np.uint8
        assert batch["mask"].dtype == bool and batch["label"].dtype == np.int32
        assert not batch["image"][~batch["mask"]].any() and not batch["label"][~batch["mask"]].any()
        for image, label in zip(batch["image"][batch["mask"]], batch["label"][batch["mask"]], strict=True):
            np.testing.assert_array_equal(image, crop(source[int(label)].image))
            seen.append(int(label))
    assert sorted(seen) == list(range(count))


def test_evaluation_with_workers_and_large_batches():
    source = photographs(150)
    (batch,) = eval_batches(source, CenterCrop(28, 1.0), 200, num_threads=0, num_workers=2)
    np.testing.assert_array_equal(batch["label"][:150], np.arange(150))
    assert batch["mask"].sum() == 150


@pytest.fixture
def broken_folder(tmp_path):
    for i in range(40):
        path = tmp_path / f"class{i % 2}" / f"{i:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(PHOTO[:32, :32]).save(path)
    (tmp_path / "class1" / "33.jpg").write_bytes(b"\xff\xd8 broken")
    return ImageFolderSource(tmp_path)


@pytest.mark.parametrize(("threads", "workers"), [(0, 0), (3, 0), (1, 1)])
def test_damaged_image_is_reported(broken_folder, threads, workers):
    with pytest.raises(DataError, match=r"class1/33\.jpg: an image of 9 bytes cannot be decoded") as error:
        list(eval_batches(broken_folder, CenterCrop(16), 8, num_threads=threads, num_workers=workers))
    assert "\n" not in str(error.value)
    order = TrainOrder(num_examples=40, batch_size=8, repeats=1, group_size=4, groups_per_block=2, seed=0)
    with pytest.raises(DataError, match=r"class1/33\.jpg"):
        run(source=broken_folder, order=order, stop=5, num_threads=threads, num_workers=workers)


def test_replaced_file_with_any_name_counts_once(tmp_path):
    for name in ("a", "b\nc\x85d", "e", "f"):
        path = tmp_path / "class" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(PHOTO[:32, :32]).save(path)
    (tmp_path / "class" / "b\nc\x85d.png").write_bytes(b"broken")
    warned = []
    bad_images = BadImages(warned.append)
    order = TrainOrder(num_examples=4, batch_size=4, repeats=1, group_size=2, groups_per_block=1, seed=0)
    list(train_batches(
        ImageFolderSource(tmp_path), order, PaddedCrop(28, 4), start_step=0, stop_step=1, num_threads=0,
        on_bad_image="replace", bad_images=bad_images,
    ))  # fmt: skip
    assert bad_images.count(1) == 1 and len(warned) == 1 and r"b\nc" in warned[0]


def reader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")]


def test_closing_stops_the_readers():
    batches = train_batches(SOURCE, ORDER, PaddedCrop(28, 4), start_step=0, stop_step=10**6, num_threads=3)
    next(batches)
    assert reader_threads()
    batches.close()
    for thread in reader_threads():
        thread.join(timeout=10)
    assert not reader_threads()


def test_jpeg_bytes_and_encoded_folder(tmp_path):
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, "JPEG", quality=90)
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.jpg").write_bytes(file.getvalue())
    (batch,) = eval_batches(ImageFolderSource(tmp_path), CenterCrop(64), 1)
    np.testing.assert_array_equal(batch["image"][0], CenterCrop(64)(decode(file.getvalue())))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(stretches=((0, 24),)), r"rows \(\(0, 24\),\) are not whole blocks of 16 rows"),
        (dict(stretches=((32, 80),)), r"no rows \(\(32, 80\),\) in batches of 64"),
        (dict(stretches=((32, 48), (16, 32))), "no rows"),
        (dict(start=5, stop=4), "no steps from 5 to 4"),
        (dict(source=photographs(100)), "order is for 320 images and the source has 100"),
        (dict(num_threads=-1), r"data\.num_threads=-1"),
    ],
)
def test_invalid_arguments_raise_immediately(options, message):
    start, stop = options.pop("start", 0), options.pop("stop", 1)
    source = options.pop("source", SOURCE)
    with pytest.raises(ValueError, match=message) as error:
        train_batches(source, ORDER, CROP, start_step=start, stop_step=stop, **options)
    assert "\n" not in str(error.value)


def test_invalid_evaluation_stretches_raise():
    with pytest.raises(ValueError, match=r"no rows \(\(8, 12\),\) in batches of 10"):
        eval_batches(SOURCE, CenterCrop(28), 10, stretches=((8, 12),))
