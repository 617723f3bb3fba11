import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from deit_jax.data import resizing
from deit_jax.data.decoding import decode
from deit_jax.data.resizing import Box, resize, resize_window, vertical_first

PHOTO = decode((Path(__file__).parent.parent / "golden" / "crops_china.jpg").read_bytes())
NEW_RULE = int(PIL.__version__.split(".")[0]) >= 13  # Pillow resizes tall boxes vertically first


def pillows(image, height, width, box):
    window = Image.fromarray(image).crop((box.left, box.top, box.left + box.width, box.top + box.height))
    return np.asarray(window.resize((width, height), Image.Resampling.BICUBIC))


def cases(count):
    """Noise and photographs of all shapes, boxes in them, and larger and smaller target sizes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        height, width = (int(side) for side in rng.integers(1, 300, 2))
        if number % 2:
            image = rng.integers(0, 256, (height, width, 3), np.uint8)
        else:
            image = np.asarray(Image.fromarray(PHOTO).resize((width, height)))
        box_height, box_width = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        top, left = (int(rng.integers(0, free, endpoint=True)) for free in (height - box_height, width - box_width))
        new = [int(side) for side in rng.integers(1, 250, 2)]
        if number % 3 == 0:  # one pass, or none
            new[number % 2] = (box_height, box_width)[number % 2]
        yield image, *new, Box(top, left, box_height, box_width)


def test_pixels_equal_pillow():
    kinds = set()
    for image, height, width, box in cases(300):
        first = vertical_first(box.height, box.width, height, width)
        kinds.add(first)
        if NEW_RULE or not first:
            np.testing.assert_array_equal(resize(image, height, width, box), pillows(image, height, width, box))
    assert kinds == {True, False}


@pytest.mark.parametrize(("height", "width"), [(250, 230), (265, 215), (340, 300), (383, 333), (226, 225), (227, 225)])
def test_order_of_the_passes(height, width):
    # Each pass rounds, so the order is visible in noise.
    noise = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    whole = Image.fromarray(noise)
    sizes = [(width, 224), (224, 224)] if vertical_first(height, width, 224, 224) else [(224, height), (224, 224)]
    for size in sizes:
        whole = whole.resize(size, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize(noise, 224, 224), np.asarray(whole))


def windows(count):
    """Photographs and elongated images, target sizes, and a window of the result."""
    rng = np.random.default_rng(2)
    for number in range(count):
        sides = [int(rng.integers(1, 260)), int(rng.integers(1, 260))]
        if number % 2:  # an elongated image
            sides[number // 2 % 2] = int(rng.integers(1, 5))
        new = [int(side) for side in rng.integers(1, 300, 2)]
        if number % 5 == 0:  # one pass, or none
            new[number % 2] = sides[number % 2]
        top, left = (int(rng.integers(0, side)) for side in new)
        rows, columns = int(rng.integers(1, new[0] - top + 1)), int(rng.integers(1, new[1] - left + 1))
        yield rng.integers(0, 256, (*sides, 3), np.uint8), *new, Box(top, left, rows, columns)


def test_window_equals_part_of_the_whole_result():
    orders = set()
    for image, height, width, window in windows(300):
        expected = resize(image, height, width)[window.top :, window.left :][: window.height, : window.width]
        np.testing.assert_array_equal(resize(image, height, width, window=window), expected)
        first = vertical_first(*image.shape[:2], height, width)
        in_numpy = resize_window(image, height, width, *window, vertical_first=first)
        np.testing.assert_array_equal(in_numpy, expected)
        orders.add(first)
    assert orders == {True, False}


def test_window_of_a_box():
    box, window = Box(7, 11, 90, 200), Box(13, 5, 21, 34)
    for height, width in ((60, 70), (90, 70), (60, 200), (90, 200), (300, 80)):
        expected = resize(PHOTO, height, width, box)[13:34, 5:39]
        np.testing.assert_array_equal(resize(PHOTO, height, width, box, window), expected)


@pytest.mark.parametrize("kernel", [True, False], ids=["numba", "no numba"])
def test_window_needs_no_memory_for_the_whole_result(monkeypatch, kernel):
    # The whole result would be 256 x 76,800,000 pixels.
    image = np.random.default_rng(3).integers(0, 256, (1, 300_000, 3), np.uint8)
    if not kernel:
        monkeypatch.setattr(resizing, "_kernel", lambda: None)
    for picture, turn in ((image, False), (image.transpose(1, 0, 2), True)):
        height, width = (256 * 300_000, 256) if turn else (256, 256 * 300_000)
        middle = Box(height // 2, 16, 512, 224) if turn else Box(16, width // 2, 224, 512)
        found = resize(picture, height, width, window=middle)
        # At 256-fold enlargement, pixel 150,000 reaches halfway to its neighbors.
        part = picture[149_900:150_100] if turn else picture[:, 149_900:150_100]
        shorter = (256 * 200, 256) if turn else (256, 256 * 200)
        same = Box(256 * 100, 16, 512, 224) if turn else Box(16, 256 * 100, 224, 512)
        expected = resize(part, *shorter, window=same)
        assert np.abs(found.astype(int) - expected).max() <= 1 and found.std() > 10


def test_very_wide_images_are_resized_in_parts(monkeypatch):
    image = np.random.default_rng(4).integers(0, 256, (5, 3000, 3), np.uint8)
    expected = resize(image, 40, 37)
    monkeypatch.setattr(resizing, "_MAX_WIDTH", 200)
    np.testing.assert_array_equal(resize(image, 40, 37), expected)
    np.testing.assert_array_equal(resize(image, 40, 37, window=Box(3, 4, 9, 30)), expected[3:12, 4:34])


def test_memory_layouts():
    turned = np.rot90(PHOTO)
    assert not turned.flags.c_contiguous
    frozen = PHOTO.copy()
    frozen.flags.writeable = False
    expected = pillows(np.ascontiguousarray(turned), 50, 40, Box(0, 0, 240, 160))
    np.testing.assert_array_equal(resize(turned, 50, 40), expected)
    np.testing.assert_array_equal(resize(frozen, 50, 40), resize(PHOTO, 50, 40))
    assert resize(PHOTO, 100, 90, Box(3, 5, 100, 90)).base is not None  # nothing to compute: a view


def test_pillow_resizes_without_numba(monkeypatch):
    assert resizing._kernel() is not None
    expected = resize(PHOTO, 60, 70, Box(10, 20, 90, 110))
    monkeypatch.setitem(sys.modules, "deit_jax.data.resizing_kernel", None)  # importing it is now an ImportError
    monkeypatch.setattr(resizing, "_kernel", resizing._kernel.__wrapped__)
    with pytest.warns(UserWarning, match="numba cannot be imported"):
        assert resizing._kernel() is None
    monkeypatch.setattr(resizing, "_kernel", lambda: None)
    np.testing.assert_array_equal(resize(PHOTO, 60, 70, Box(10, 20, 90, 110)), expected)


@pytest.mark.parametrize("kernel", [True, False])
def test_the_result_is_written_to_a_given_array(monkeypatch, kernel):
    if not kernel:
        monkeypatch.setattr(resizing, "_kernel", lambda: None)
    monkeypatch.setattr(resizing, "_MAX_WIDTH", 40)  # several parts
    for image, height, width, box in cases(25):
        out = np.full((2, height, width, 3), 7, np.uint8)
        result = resize(image, height, width, box, out=out[1])
        assert result.base is out or result is out[1] or np.shares_memory(result, out)
        np.testing.assert_array_equal(out[1], resize(image, height, width, box))
        assert (out[0] == 7).all()
