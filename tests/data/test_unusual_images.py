"""Tests the statements of docs/data.md about unusual and faulty files on a folder that holds them all."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_jax.data import decoding
from deit_jax.data.bad_images import BadImages
from deit_jax.data.decoding import CenterCrop, RandomResizedCrop, decode
from deit_jax.data.folder import ImageFolderSource
from deit_jax.data.given_images import read_image
from deit_jax.data.loading import eval_batches, train_batches
from deit_jax.data.sampling import TrainOrder
from deit_jax.data.sources import ArraySource, DataError

GOLDEN = Path(__file__).parent.parent / "golden"
PHOTO = decode((GOLDEN / "crops_china.jpg").read_bytes())
FAULTY = {"empty.jpg": "an empty file", "text.jpg": "not an image format that Pillow knows"}


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_16_bit_color(pixels):
    """A PNG of uint16[H, W, 3]; Pillow cannot write one."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def files():
    photo, grey = Image.fromarray(PHOTO), np.arange(65536, dtype=np.uint16).reshape(256, 256)
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: rotate by a quarter
    frames = [photo.quantize(64), Image.new("RGB", photo.size, (255, 0, 0))]
    transparent = photo.convert("RGBA")
    transparent.putalpha(7)
    return {
        "cmyk.jpg": encode(photo.convert("CMYK"), "JPEG", quality=95),
        "grey_16_bit.png": encode(Image.fromarray(grey), "PNG"),
        "color_16_bit.png": png_16_bit_color(PHOTO.astype(np.uint16) * 256 + 130),
        "palette.png": encode(photo.quantize(32), "PNG"),
        "transparent.png": encode(transparent, "PNG"),
        "animation.gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animation_as.jpg": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "turned.jpg": encode(photo, "JPEG", quality=90, exif=turned),
        "huge.jpg": encode(Image.new("RGB", (10_000, 10_000), (10, 200, 30)), "JPEG"),  # 100 megapixels
        "empty.jpg": b"",
        "text.jpg": b"These are not the pixels you are looking for.\n" * 20,
    }


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    root = tmp_path_factory.mktemp("unusual")
    (root / "only").mkdir()
    for name, data in files.items():
        (root / "only" / name).write_bytes(data)
    return root


def test_gif_is_read_but_not_listed(folder, files):
    # The same extensions, and so the same files, as in torchvision.
    source = ImageFolderSource(folder)
    names = {Path(source.describe(i)).name for i in range(len(source))}
    assert names == set(files) - {"animation.gif"}
    first = np.asarray(Image.open(io.BytesIO(files["animation.gif"])).convert("RGB"))
    np.testing.assert_array_equal(decode(files["animation.gif"]), first)
    np.testing.assert_array_equal(decode(files["animation_as.jpg"]), first)  # the content decides, not the extension


def test_16_bit_grays_are_scaled_not_clipped(files):
    values = decode(files["grey_16_bit.png"]).reshape(-1, 3)
    assert (values == values[:, :1]).all()
    np.testing.assert_array_equal(values[:, 0], np.round(np.arange(65536) / 257))


def test_16_bit_colors_keep_their_high_byte(files):
    np.testing.assert_array_equal(decode(files["color_16_bit.png"]), PHOTO)


@pytest.mark.parametrize("name", ["cmyk.jpg", "palette.png", "transparent.png", "turned.jpg", "color_16_bit.png"])
def test_other_images_are_converted_as_in_timm_and_torchvision(files, name):
    expected = np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB"))
    np.testing.assert_array_equal(decode(files[name]), expected)
    assert expected.shape == PHOTO.shape  # not rotated, despite the EXIF orientation


def test_100_megapixels_are_read_without_a_warning(files):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode(files["huge.jpg"])
    assert image.shape == (10_000, 10_000, 3)
    crop = RandomResizedCrop(32)(image, np.random.default_rng(0))
    assert (abs(crop.astype(int) - crop[0, 0]) <= 1).all() and crop.shape == (32, 32, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_images_above_the_limit_raise(monkeypatch, kind):
    # An image of that size would take half a gigabyte, so both limits are reduced.
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert decode(encode(Image.new("RGB", (100, 10)), kind)).shape == (10, 100, 3)
    with pytest.raises(DataError, match=r"cannot be decoded \(more than 1,000 pixels\); replace or remove the image"):
        decode(encode(Image.new("RGB", (100, 11)), kind))


def test_limit_equals_pillow():
    assert decoding.MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


def test_non_utf8_file_name_is_printed_escaped(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9\x1b.jpg")
    with pytest.raises(DataError, match=r"caf\\xe9\\x1b\.jpg: there is no such file"):
        read_image(path)
    path.write_bytes(encode(Image.fromarray(PHOTO), "PNG"))
    np.testing.assert_array_equal(read_image(path), PHOTO)


def box_of(brand):
    return b"\0\0\0\x18ftyp" + brand + b"\0" * 40


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_is_named_for_any_extension(brand, tmp_path):
    path = tmp_path / "IMG_0001.jpg"
    path.write_bytes(box_of(brand))
    with pytest.raises(DataError, match=r"IMG_0001\.jpg: .*\(HEIC, .* convert it to JPEG\)"):
        read_image(path)


@pytest.mark.skipif(".avif" not in Image.registered_extensions(), reason="Pillow was built without AVIF")
def test_avif_is_read():
    pixels = decode(encode(Image.fromarray(PHOTO), "AVIF", quality=95)).astype(int)
    assert pixels.shape == PHOTO.shape and abs(pixels - PHOTO).mean() < 4


def test_unsupported_avif_is_named(monkeypatch):
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    monkeypatch.setattr(Image, "ID", [kind for kind in Image.ID if kind != "AVIF"])
    with pytest.raises(DataError, match=r"\(AVIF, which this Pillow, .*, does not read; install 11\.3 or newer\)"):
        decode(box_of(b"avif"))


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_file_stops_the_run_and_is_named(folder, tmp_path, name, files):
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / name).write_bytes(files[name])
    with pytest.raises(
        DataError, match=rf"only/{name}: an image of {len(files[name])} bytes .*{FAULTY[name]}"
    ) as error:
        list(eval_batches(ImageFolderSource(tmp_path), CenterCrop(16), 4))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def small(files, tmp_path_factory):
    """Twelve images, two of them faulty and adjacent."""
    root = tmp_path_factory.mktemp("small")
    for number in range(10):
        path = root / "ab"[number // 5] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(PHOTO[number : number + 64, :64]).save(path)
    for name in FAULTY:
        (root / "a" / name).write_bytes(files[name])
    return ImageFolderSource(root)


def train(source, **options):
    order = TrainOrder(num_examples=12, batch_size=12, repeats=1, group_size=6, groups_per_block=2, seed=0)
    warned = []
    bad_images = BadImages(warned.append)
    options |= {"start_step": 0, "stop_step": 3, "bad_images": bad_images}
    batches = list(train_batches(source, order, RandomResizedCrop(16), **options))
    bad_images.warn_of_total()
    return batches, warned, order


@pytest.mark.parametrize("options", [dict(num_threads=0), dict(num_threads=2), dict(num_threads=1, num_workers=1)])
def test_faulty_files_are_replaced_by_the_next_image_and_counted(small, options):
    batches, warned, order = train(small, on_bad_image="replace", **options)
    assert [small.describe(i).rpartition("/")[2] for i in (4, 5, 6, 7)] == ["4.jpg", "empty.jpg", "text.jpg", "5.jpg"]
    for step, batch in enumerate(batches):
        image, _, row = order.positions(step)
        replaced = [int(i) if i not in (5, 6) else 7 for i in image]
        np.testing.assert_array_equal(batch["label"][row], [small[i].label for i in replaced])
    assert sum("replaced: " in line and "cannot be decoded" in line for line in warned) == 2
    # In each of three epochs: the first once, the second directly and as the replacement of the first.
    assert warned[-1] == "2 image(s) could not be used and were replaced 9 times"
    stopped, *_ = train(ImageFolderSource(Path(small.describe(0)).parents[1]), on_bad_image="replace", num_threads=0)
    for one, other in zip(batches, stopped, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])


def test_stop_is_the_default(small):
    with pytest.raises(DataError, match=r"a/(empty|text)\.jpg"):
        train(small)
    with pytest.raises(ValueError, match=r"data\.on_bad_image='skip'"):
        train(small, on_bad_image="skip")


def test_evaluation_stops_at_a_faulty_image_or_skips_it(small):
    with pytest.raises(DataError, match=r"a/empty\.jpg"):
        list(eval_batches(small, CenterCrop(16), 6))
    with pytest.raises(ValueError, match=r"data\.on_bad_image='skip'"):
        eval_batches(small, CenterCrop(16), 6, on_bad_image="skip")
    warned = []
    bad_images = BadImages(warned.append, "left out")
    batches = list(eval_batches(small, CenterCrop(16), 6, on_bad_image="replace", bad_images=bad_images))
    mask, labels = (np.concatenate([batch[name] for batch in batches]) for name in ("mask", "label"))
    assert np.flatnonzero(~mask).tolist() == [5, 6] and bad_images.count() == 2  # the others keep their positions
    assert labels[mask].tolist() == [small[i].label for i in range(12) if i not in (5, 6)]
    assert [line.rpartition("/")[2][:9] for line in warned] == ["empty.jpg", "text.jpg:"]


def test_only_faulty_files_stop_the_run(files, tmp_path):
    (tmp_path / "a").mkdir()
    for number in range(12):
        (tmp_path / "a" / f"{number:02d}.jpg").write_bytes(files["text.jpg"])
    with pytest.raises(DataError, match=r"100 images in a row cannot be used; the last: .*\.jpg"):
        train(ImageFolderSource(tmp_path), on_bad_image="replace")


@pytest.fixture
def twelve(tmp_path):
    (tmp_path / "a").mkdir()
    for number in range(12):
        Image.fromarray(PHOTO[:32, number : number + 32]).save(tmp_path / "a" / f"{number:02d}.jpg")
    return ImageFolderSource(tmp_path), tmp_path / "a"


def test_deleted_file_is_faulty(twelve):
    source, folder = twelve
    (folder / "03.jpg").unlink()
    with pytest.raises(DataError, match=r"03\.jpg: no longer exists"):
        train(source)
    _, warned, _ = train(source, on_bad_image="replace")
    assert warned[-1] == "1 image(s) could not be used and were replaced 3 times"


def test_unreadable_file_is_not_replaced(twelve):
    source, folder = twelve
    (folder / "03.jpg").unlink()
    (folder / "03.jpg").symlink_to("03.jpg")  # with a failing disk everything would be replaced
    with pytest.raises(DataError, match=r"03\.jpg: cannot be read"):
        train(source, on_bad_image="replace")


class WronglyLabelled(ArraySource):
    def __getitem__(self, index):
        example = super().__getitem__(index)
        return example._replace(label=[7, -1][index % 2]) if index in (4, 5) else example


def test_invalid_label_is_faulty():
    source = WronglyLabelled(np.zeros((12, 8, 8), np.uint8), np.arange(12) % 2, ("a", "b"))
    with pytest.raises(DataError, match=r"image [45] of the arrays: label (7|-1) is outside the 2 classes"):
        train(source)
    batches, warned, _ = train(source, on_bad_image="replace")
    assert "4 of the arrays" in "".join(warned) and set(np.concatenate([b["label"] for b in batches])) == {0, 1}
