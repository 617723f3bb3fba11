"""Every mode of Pillow, from files and from programs, gives the right values or an error, never a warning."""

import io
import logging
import os
import pickle
import struct
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageMode

from deit_jax.data import pillow_images
from deit_jax.data.decoding import CenterCrop, decode
from deit_jax.data.folder import ImageFolderSource
from deit_jax.data.given_images import read_image
from deit_jax.data.loading import eval_batches
from deit_jax.data.sources import ArraySource, DataError

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3, (0,) * 3


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(pixels, *, bits=None, sample_format=1, photometric=1, samples=1, data=None, order="<", compression=1):
    """An uncompressed TIFF of one strip; Pillow does not write most of these."""
    height, width = pixels.shape[:2]
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes() if data is None else data
    bits = bits or 8 * pixels.dtype.itemsize
    entries = [
        (256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, compression), (262, 3, photometric), (273, 4, 8),
        (277, 3, samples), (278, 3, height), (279, 4, len(data)), (339, 3, sample_format),
    ]  # fmt: skip
    data += b"\0" * (len(data) % 2)
    directory = struct.pack(order + "H", len(entries))
    for tag, kind, value in entries:
        packed = struct.pack(order + ("HH" if kind == 3 else "I"), *((value, 0) if kind == 3 else (value,)))
        directory += struct.pack(order + "HHI", tag, kind, 1) + packed
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    return head + data + directory + struct.pack(order + "I", 0)


def one_pixel(mode, value):
    return Image.new(mode, (1, 1), value)


# --- every mode, as an image made by a program -----------------------------------------------------------------------

COLORS = [
    ("1", 1, WHITE),
    ("1", 0, BLACK),
    ("L", 77, (77,) * 3),
    ("LA", (77, 5), (77,) * 3),
    ("La", (50, 100), (127,) * 3),  # premultiplied: 50 * 255 / 100
    ("RGB", (1, 2, 3), (1, 2, 3)),
    ("RGBA", (1, 2, 3, 0), (1, 2, 3)),
    ("RGBX", (1, 2, 3, 9), (1, 2, 3)),
    ("RGBa", (50, 100, 0, 100), (127, 255, 0)),
    ("CMYK", (0, 255, 255, 0), RED),
    ("CMYK", (0, 0, 0, 255), BLACK),
    ("YCbCr", (255, 128, 128), WHITE),
    ("HSV", (0, 255, 255), RED),
    ("LAB", (255, 128, 128), WHITE),
    ("LAB", (0, 128, 128), BLACK),
    ("I;16", 65535, WHITE),
    ("I;16", 32896, (128,) * 3),
    ("I;16L", 257 * 200, (200,) * 3),
    ("I;16B", 257 * 200, (200,) * 3),
    ("I;16N", 257 * 200, (200,) * 3),
]


@pytest.mark.parametrize(("mode", "value", "expected"), COLORS)
def test_modes_have_the_right_color(mode, value, expected):
    found = read_image(one_pixel(mode, value))
    assert found.shape == (1, 1, 3) and found.dtype == np.uint8
    assert np.abs(found[0, 0].astype(int) - expected).max() <= (1 if mode == "LAB" else 0)


@pytest.mark.parametrize("mode", ["P", "PA"])
def test_palettes_are_applied(mode):
    image = Image.new("P", (2, 1))
    image.putpalette([9, 8, 7, 0, 255, 0])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(read_image(image.convert(mode)), [[(9, 8, 7), GREEN]])


@pytest.mark.parametrize("mode", ["I", "F"])
@pytest.mark.parametrize("value", [0, 1, 200, 65535])
def test_pixels_without_a_white_level_raise(mode, value):
    with pytest.raises(DataError, match=r"image 3: its pixels are .*white level is undefined: convert") as error:
        read_image(one_pixel(mode, value), "image 3")
    assert "\n" not in str(error.value)


def test_all_modes_are_covered():
    """Fails for a new mode of Pillow, which needs a decision and a test."""
    tested = {mode for mode, *_ in COLORS} | {"P", "PA", "I", "F"}
    assert set(getattr(Image, "MODES", tested)) | set(tested) == tested
    assert all(ImageMode.getmode(mode) for mode in tested)


def test_16_bit_pixels_with_8_bit_values_raise():
    values = np.arange(200, dtype=np.uint16).reshape(10, 20)
    for image in (Image.fromarray(values), encode(Image.fromarray(values), "PNG"), tiff(values)):
        with pytest.raises(DataError, match=r"have 16 bits and none exceeds 199.*save them as such"):
            decode(image) if isinstance(image, bytes) else read_image(image)
    assert not read_image(Image.fromarray(np.zeros((4, 4), np.uint16))).any()  # black is black
    assert read_image(Image.fromarray(np.full((4, 4), 256, np.uint16))).max() == 1


# --- from files -----------------------------------------------------------------------------------------------------

LEVELS = np.array([[0, 257, 32896, 65278, 65535]], np.uint16)
SHOWN = [0, 1, 128, 254, 255]


@pytest.mark.parametrize(
    "file",
    [
        encode(Image.fromarray(LEVELS), "PNG"),
        encode(Image.fromarray(LEVELS), "TIFF"),
        encode(Image.fromarray(LEVELS), "TIFF", compression="tiff_lzw"),
        encode(Image.fromarray(LEVELS), "PPM"),
        tiff(LEVELS),
        tiff(LEVELS, order=">"),
        tiff(65535 - LEVELS, photometric=0),
        b"P2 5 1 65535 0 257 32896 65278 65535",
        b"P5 5 1 65535\n" + LEVELS.astype(">u2").tobytes(),
        b"P2 5 1 1023 0 4 514 1019 1023",  # the header's maximum is white
    ],
    ids=["PNG", "TIFF", "LZW", "Pillow's PGM", "II", "MM", "white is zero", "plain PGM", "PGM", "10 bits"],
)
def test_16_bit_grays_are_scaled(file):
    np.testing.assert_array_equal(decode(file)[0, :, 0], SHOWN)


def test_12_bit_tiff_is_scaled_by_its_white_level():
    packed = bytes([0x00, 0x08, 0x08, 0xFF, 0xF0, 0x10])  # 0, 2056, 4095, 16: two values in three bytes
    found = decode(tiff(np.zeros((1, 4), np.uint16), bits=12, data=packed))
    np.testing.assert_array_equal(found[0, :, 0], [0, 128, 255, 1])


@pytest.mark.parametrize(
    "file",
    [
        encode(one_pixel("F", 0.5), "TIFF"),
        encode(one_pixel("I", 70000), "TIFF"),
        tiff(np.ones((1, 2), np.float32)),
        tiff(np.full((1, 2), 0.5, np.float32), sample_format=3),
        tiff(np.full((1, 2), 200, np.float32), sample_format=3, order=">"),
        tiff(np.full((1, 2), np.nan, np.float32), sample_format=3),
        tiff(np.full((1, 2), 0.5, np.float64), sample_format=3),
        tiff(np.full((1, 2), 200, np.uint32)),
        tiff(np.full((1, 2), -3, np.int32), sample_format=2),
        tiff(np.full((1, 2), -300, np.int16), sample_format=2),
        tiff(np.full((1, 2), -300, np.int16), sample_format=2, order=">"),
        b"Pf 2 1 -1.0\n" + np.array([0.2, 0.9], "<f4").tobytes(),
        encode(Image.new("F", (8, 8), 0.5), "SPIDER"),
        b"SIMPLE  =                    T".ljust(80)
        + b"BITPIX  =                   16".ljust(80)
        + b"NAXIS   =                    2".ljust(80)
        + b"NAXIS1  =                    2".ljust(80)
        + b"NAXIS2  =                    1".ljust(80)
        + b"END".ljust(2480)
        + struct.pack(">hh", -5, 300),
    ],
)
def test_files_without_a_white_level_raise_one_line(file):
    with pytest.raises(DataError, match=r"white level is undefined|does not read: save it with 8 bits") as error:
        decode(file)
    assert "\n" not in str(error.value)


def test_16_bit_colors_keep_their_high_byte():
    color = np.array([[(0, 0x1234, 0xFFFF)]], np.uint16)
    np.testing.assert_array_equal(
        decode(b"P6 1 1 65535\n" + color.astype(">u2").tobytes()), [[(0, round(0x1234 / 257), 255)]]
    )


def test_rejected_file_is_named(tmp_path):
    (tmp_path / "only").mkdir()
    Image.new("F", (8, 8), 0.5).save(tmp_path / "only" / "heat.tif")
    with pytest.raises(DataError, match=r"only/heat\.tif: its pixels are floating-point numbers"):
        list(eval_batches(ImageFolderSource(tmp_path), CenterCrop(8), 2))
    with pytest.raises(DataError, match=r"only/heat\.tif: its pixels are floating-point numbers"):
        read_image(tmp_path / "only" / "heat.tif")


# --- arrays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.int64, np.float16, np.float32, np.float64])
def test_other_dtypes_raise_with_a_conversion(dtype):
    pixels = np.ones((4, 5, 3), dtype)
    for read in (read_image, decode, lambda it: ArraySource(it[None], np.zeros(1, int), ("a",), "x.npz")):
        with pytest.raises(DataError, match=rf"{np.dtype(dtype)}.*give uint8 .*WHITE is the value of white"):
            read(pixels)


def test_suggested_conversion_is_correct():
    advice = pillow_images.TO_UINT8.partition("with ")[2].partition(", where")[0]
    for white, dtype in ((1, bool), (1.0, np.float32), (65535, np.uint16), (4095, np.int64)):
        pixels = np.array([0, white], dtype)
        converted = eval(advice, {"np": np, "WHITE": white, "pixels": pixels})
        np.testing.assert_array_equal(converted, np.array([0, 255], np.uint8), strict=True)


# --- nothing on the console -----------------------------------------------------------------------------------------


def palette_with_bytes_for_transparency():
    image = Image.new("P", (4, 4))
    image.putpalette([0, 0, 255] * 256)
    return encode(image, "PNG", transparency=bytes([0, 128, 255]))


def corrupt_exif():
    # A CMYK JPEG goes through Pillow, which reads the resolution from EXIF when JFIF has none.
    whole = encode(Image.new("CMYK", (8, 8)), "JPEG")
    entry = struct.pack("<HHII", 0x011A, 5, 1, 4000)  # XResolution, far beyond the end
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry + struct.pack("<I", 0)
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + whole[2:]


def odd_tiff():
    whole = bytearray(tiff(np.full((2, 3), 7, np.uint8)))
    start = struct.unpack("<I", whole[4:8])[0] + 2 + 12 * 9  # the last entry
    whole[start : start + 12] = struct.pack("<HHII", 339, 3, 50_000, 8)  # more values than the file has
    return bytes(whole)


def many_samples():
    return tiff(np.zeros((1, 1), np.uint8), samples=9)


WARNS = {
    "palette.png": palette_with_bytes_for_transparency(),
    "exif.jpg": corrupt_exif(),
    "tags.tif": odd_tiff(),
    "samples.tif": many_samples(),
}


def complaints(read):
    """Returns Pillow's warnings and log records during `read()`."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("PIL").addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read()
    finally:
        logging.getLogger("PIL").removeHandler(handler)
    return records + [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", WARNS)
def test_pillow_warnings_are_suppressed(name):
    def by_pillow():
        try:
            with Image.open(io.BytesIO(WARNS[name])) as image:
                image.convert("RGB")
        except Image.UnidentifiedImageError:
            pass

    def by_us():
        try:
            decode(WARNS[name])
        except DataError:
            assert name == "samples.tif"

    assert complaints(by_pillow)  # the file does cause warnings
    assert complaints(by_us) == []
    assert complaints(by_pillow)  # and other users of Pillow still see them


def test_large_photographs_do_not_warn(monkeypatch):
    large = encode(Image.new("L", (100, 60)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    assert complaints(lambda: decode(large)) == []
    assert complaints(lambda: Image.open(io.BytesIO(large)))


def test_opened_pil_images_are_read_silently():
    opened = Image.open(io.BytesIO(WARNS["palette.png"]))
    assert complaints(lambda: read_image(opened)) == []


def test_other_threads_and_other_warnings_are_not_muted():
    inside, done = threading.Event(), threading.Event()

    def read():
        with pillow_images.muted():
            inside.set()
            done.wait()

    def warn_elsewhere():
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read)
            inside.wait()
            Image.open(io.BytesIO(WARNS["palette.png"])).convert("RGB")
            done.set()
            reading.result()
        with pillow_images.muted():
            warnings.warn("not Pillow's", stacklevel=1)

    assert len(complaints(warn_elsewhere)) == 2


def test_concurrent_threads():
    with ThreadPoolExecutor(8) as pool:
        assert complaints(lambda: list(pool.map(lambda _: decode(WARNS["palette.png"]), range(200)))) == []


def test_import_adds_no_filter():
    code = (
        "import PIL.Image, numba, grain, warnings; before = list(warnings.filters)\n"
        "import deit_jax.data.loading, deit_jax.data.given_images\n"
        "ours = [it for it in warnings.filters if it not in before and 'deit' in repr(it).lower()]\n"
        "assert not ours and not any(it[2].__module__.startswith('PIL') for it in warnings.filters), warnings.filters"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.getcwd()})


@pytest.mark.long
def test_workers_are_silent(tmp_path, capfd):
    (tmp_path / "only").mkdir()
    for name in ("palette.png", "exif.jpg", "tags.tif"):
        (tmp_path / "only" / name).write_bytes(WARNS[name])
    source = pickle.loads(pickle.dumps(ImageFolderSource(tmp_path)))
    (batch,) = eval_batches(source, CenterCrop(4), 3, num_threads=1, num_workers=1)
    assert batch["mask"].all()
    assert "Warning" not in "".join(capfd.readouterr())
