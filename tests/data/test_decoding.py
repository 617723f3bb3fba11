import hashlib
import io
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from deit_jax.data.decoding import (
    CenterCrop,
    PaddedCrop,
    RandomResizedCrop,
    Squash,
    decode,
    evaluation_crop,
    random_resized_crop_box,
)
from deit_jax.data.resizing import Box, resize
from deit_jax.data.sources import DataError

FOLDER = Path(__file__).parent.parent / "golden"
GOLDEN = np.load(FOLDER / "crops.npz")
PHOTOS = ("china", "flower")


class PythonRandom:
    """Python's `random`, which timm uses, with two methods of a NumPy Generator."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def uniform(self, low, high):
        return self.random.uniform(low, high)

    def integers(self, low, high, endpoint):
        assert endpoint
        return self.random.randint(low, high)


def photo(name):
    return decode((FOLDER / f"crops_{name}.jpg").read_bytes())


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("name", PHOTOS)
def test_jpeg_pixels_equal_pillow(name):
    image = photo(name)
    assert image.shape == (160, 240, 3) and image.dtype == np.uint8
    assert hashlib.sha256(image.tobytes()).hexdigest() == str(GOLDEN[f"{name}_sha256"])


def test_every_mode_is_converted_to_rgb():
    rgb = photo("china")
    image = Image.fromarray(rgb)
    np.testing.assert_array_equal(decode(encode(image, "PNG")), rgb)
    np.testing.assert_array_equal(decode(encode(image, "BMP")), rgb)
    grey = np.asarray(image.convert("L"))
    three = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode(encode(image.convert("L"), "PNG")), three)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")), three)
    transparent = image.convert("RGBA")
    transparent.putalpha(0)
    np.testing.assert_array_equal(decode(encode(transparent, "PNG")), rgb)
    palette = image.quantize(32)
    np.testing.assert_array_equal(decode(encode(palette, "PNG")), np.asarray(palette.convert("RGB")))
    grey_jpeg = decode(encode(image.convert("L"), "JPEG", quality=95))
    assert grey_jpeg.shape == rgb.shape
    assert (grey_jpeg == grey_jpeg[:, :, :1]).all()
    cmyk = decode(encode(image.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.astype(int) - rgb).mean() < 4  # neither inverted nor black


def test_arrays_are_converted_to_rgb():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    expected = np.stack([grey] * 3, axis=2)
    np.testing.assert_array_equal(decode(grey), expected)
    np.testing.assert_array_equal(decode(grey[:, :, None]), expected)
    np.testing.assert_array_equal(decode(expected), expected)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"not an image",
        b"\xff\xd8\xff",
        (FOLDER / "crops_china.jpg").read_bytes()[:5000],
        encode(Image.new("RGB", (64, 64)), "PNG")[:60],
    ],
    ids=["empty", "text", "marker", "cut JPEG", "cut PNG"],
)
def test_damaged_files_raise(damaged):
    with pytest.raises(DataError, match=rf"an image of {len(damaged)} bytes cannot be decoded.*replace") as error:
        decode(damaged)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("array", [np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4)), np.zeros(4, np.uint8)])
def test_invalid_arrays_raise(array):
    with pytest.raises(DataError, match="give uint8"):
        decode(array)


@pytest.mark.parametrize("number", range(6))
def test_random_boxes_equal_timm(number):
    height, width, *rest = GOLDEN[f"boxes_{number}_arguments"].tolist()
    rng = PythonRandom(number)
    expected = GOLDEN[f"boxes_{number}"]
    boxes = [random_resized_crop_box(int(height), int(width), rng, tuple(rest[:2]), tuple(rest[2:])) for _ in expected]
    np.testing.assert_array_equal(boxes, expected)


@pytest.mark.parametrize("name", PHOTOS)
def test_crops_equal_torchvision(name):
    boxes = [Box(*box) for box in GOLDEN["crop_boxes"].tolist()]
    ours = np.stack([resize(photo(name), 40, 40, box) for box in boxes])
    np.testing.assert_array_equal(ours, GOLDEN[f"{name}_crops"])


@pytest.mark.parametrize("name", PHOTOS)
def test_random_resized_crops_equal_timm(name):
    crop, rng = RandomResizedCrop(40), PythonRandom(7)
    np.testing.assert_array_equal(np.stack([crop(photo(name), rng) for _ in range(3)]), GOLDEN[f"{name}_train"])


@pytest.mark.parametrize("key", [key for key in GOLDEN if "_center_" in key])
def test_center_crops_equal_torchvision(key):
    name, size, ratio = key.replace("_center", "").rsplit("_", 2)
    image = photo(name.removesuffix("_portrait"))
    if name.endswith("_portrait"):
        image = np.rot90(image)
    np.testing.assert_array_equal(CenterCrop(int(size), float(ratio))(image), GOLDEN[key])
    np.testing.assert_array_equal(CenterCrop(int(size), float(ratio))(image), GOLDEN[key])


@pytest.mark.parametrize("key", [key for key in GOLDEN if "_protocol_" in key])
def test_evaluation_protocols_equal_the_originals(key):
    name, protocol, size = key.replace("protocol_", "").rsplit("_", 2)
    image = photo(name.removesuffix("_large"))
    if name.endswith("_large"):
        image = np.asarray(Image.fromarray(image).resize((900, 620), Image.Resampling.NEAREST))
    crop = evaluation_crop(ConfigDict({"protocol": protocol, "crop_ratio": 0.875}), int(size))
    assert hashlib.sha256(np.ascontiguousarray(crop(image)).tobytes()).hexdigest() == str(GOLDEN[key])
    assert (protocol, size) != ("mmpretrain", "384") or crop == Squash(384)


def test_crop_ratio_1_keeps_an_image_of_the_models_size():
    """As in the released code up to 32 pixels; a ratio of 0.875 would enlarge and crop it."""
    image = photo("china")[:32, :32]
    np.testing.assert_array_equal(CenterCrop(32, 1.0)(image), image)
    assert (CenterCrop(32, 0.875)(image) != image).any()


def test_unknown_protocol_raises():
    with pytest.raises(ValueError, match=r"evaluation\.protocol='resnet' is not one of deit, timm, mmpretrain"):
        evaluation_crop(ConfigDict({"protocol": "resnet", "crop_ratio": 0.875}), 224)
    with pytest.raises(ValueError, match=r"evaluation\.crop_ratio=0"):
        evaluation_crop(ConfigDict({"protocol": "deit", "crop_ratio": 0}), 224)


def test_boxes_are_inside_the_image():
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (2, 1), (3, 1000), (28, 28), (375, 500)):
        for _ in range(200):
            top, left, h, w = random_resized_crop_box(height, width, rng, (0.08, 1.0), (3 / 4, 4 / 3))
            assert top >= 0 and left >= 0 and h > 0 and w > 0 and top + h <= height and left + w <= width


def test_padded_crop_is_a_window_of_the_framed_image():
    image = np.random.default_rng(0).integers(1, 256, (28, 28, 3), np.uint8)
    framed = np.zeros((36, 36, 3), np.uint8)
    framed[4:32, 4:32] = image
    windows = {framed[i : i + 28, j : j + 28].tobytes(): (i, j) for i in range(9) for j in range(9)}
    rng = np.random.default_rng(1)
    found = [windows[PaddedCrop(28, 4)(image, rng).tobytes()] for _ in range(2000)]
    assert len(set(found)) == 81  # every offset occurs
    np.testing.assert_array_equal(PaddedCrop(28, 0)(image, rng), image)


def test_padded_crop_draws_as_torchvision():
    # torchvision's RandomCrop.get_params draws the vertical offset first.
    image = np.random.default_rng(0).integers(1, 256, (10, 14, 3), np.uint8)
    framed = np.pad(image, ((3, 3), (3, 3), (0, 0)))
    for seed in range(50):
        rng = np.random.default_rng(seed)
        top, left = int(rng.integers(0, 6, endpoint=True)), int(rng.integers(0, 10, endpoint=True))
        window = PaddedCrop(10, 3)(image, np.random.default_rng(seed))
        np.testing.assert_array_equal(window, framed[top : top + 10, left : left + 10])


def test_padded_crop_wider_frame_than_image():
    image = np.full((4, 4, 3), 9, np.uint8)
    sums = {int(PaddedCrop(4, 10)(image, np.random.default_rng(seed)).sum()) for seed in range(200)}
    assert 0 in sums and max(sums) > 0


def test_padded_crop_resizes_first():
    image = photo("china")
    expected = np.asarray(Image.fromarray(image).resize((48, 32), Image.Resampling.BICUBIC))
    window = PaddedCrop(32, 0)(image, np.random.default_rng(0))
    assert any(np.array_equal(window, expected[:, left : left + 32]) for left in range(17))


@pytest.mark.parametrize("shape", [(3, 200), (200, 3), (1, 90), (90, 1), (64, 65), (17, 40)])
def test_crops_of_elongated_images_equal_windows_of_the_resized_image(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    height, width = (side * 32 // min(shape) for side in shape)
    whole = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - 28) / 2), round((width - 28) / 2)
    np.testing.assert_array_equal(CenterCrop(28, 0.875)(image), whole[top : top + 28, left : left + 28])
    framed = np.pad(whole, ((3, 3), (3, 3), (0, 0)))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        top, left = (int(rng.integers(0, side - 32 + 6, endpoint=True)) for side in (height, width))
        window = PaddedCrop(32, 3)(image, np.random.default_rng(seed))
        np.testing.assert_array_equal(window, framed[top : top + 32, left : left + 32])


@pytest.mark.parametrize("shape", [(1, 200_000), (200_000, 1), (2, 100_000)])
@pytest.mark.parametrize("crop", [RandomResizedCrop(224), PaddedCrop(32), CenterCrop(224), Squash(384)])
def test_elongated_images_need_little_memory(crop, shape):
    # Resizing the whole first image for the evaluation crop would make 256 x 51,200,000 pixels.
    image = np.full((*shape, 3), 77, np.uint8)
    result = crop(image, np.random.default_rng(0))
    assert result.shape == (crop.size, crop.size, 3) and set(np.unique(result)) <= {0, 77}


@pytest.mark.parametrize("crop", [RandomResizedCrop(20), PaddedCrop(20, 2), CenterCrop(20), Squash(20)])
def test_crops_pickle_and_have_their_size(crop):
    again = pickle.loads(pickle.dumps(crop))
    assert again == crop
    for shape in ((31, 55, 3), (20, 20, 3), (7, 9, 3)):
        result = again(np.zeros(shape, np.uint8), np.random.default_rng(0))
        assert result.shape == (20, 20, 3) and result.dtype == np.uint8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomResizedCrop(32, scale=(0.5, 0.1)), r"data\.crop_scale"),
        (lambda: RandomResizedCrop(32, scale=(0.0, 1.0)), r"data\.crop_scale"),
        (lambda: RandomResizedCrop(32, ratio=(2.0, 1.0)), r"data\.crop_ratio"),
        (lambda: PaddedCrop(32, -1), r"data\.crop_padding=-1"),
        (lambda: CenterCrop(32, 1.5), r"evaluation\.crop_ratio=1\.5"),
        (lambda: CenterCrop(0), "crop of 0 pixels"),
    ],
)
def test_invalid_crops_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("crop", [RandomResizedCrop(24), PaddedCrop(24, 30), CenterCrop(24), Squash(24)])
def test_a_crop_is_written_to_a_given_array(crop):
    rng = np.random.default_rng(1)
    for shape in ((40, 31, 3), (24, 24, 3), (5, 90, 3)):
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        out = np.full((24, 24, 3), 9, np.uint8)
        for seed in range(4):  # windows partly and completely in the frame
            expected = crop(image, np.random.default_rng(seed))
            assert np.shares_memory(crop(image, np.random.default_rng(seed), out=out), out)
            np.testing.assert_array_equal(out, expected)
