"""Single operations against timm and Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.augment import color, operations, shifts, warping
from tests.augment.photographs import FILL, GOLDEN, assert_equals_pillow, difference, recorded_case


def rotate(image, argument):
    return warping.warp(image, warping.rotation(argument, *image.shape[1:]), FILL)


def shift(name):
    """A shear or a translation of one image by its argument."""
    move, axis = (shifts.shift_rows, 2) if name.endswith("X") else (shifts.shift_columns, 1)
    number = operations.NUMBER[name]

    def function(image, argument):
        return move(image, *operations.slope_and_offset(jnp.int32(number), argument, image.shape[axis]), FILL)

    return function


FUNCTIONS = {
    "AutoContrast": lambda image, argument: color.auto_contrast(image),
    "Equalize": lambda image, argument: color.equalize(image),
    "Invert": lambda image, argument: color.invert(image),
    "Posterize": color.posterize,
    "Solarize": color.solarize,
    "SolarizeAdd": color.solarize_add,
    "Color": color.color,
    "Contrast": color.contrast,
    "Brightness": color.brightness,
    "Sharpness": color.sharpness,
    "Rotate": rotate,
    **{name: shift(name) for name in ("ShearX", "ShearY", "TranslateX", "TranslateY")},
}
GEOMETRIC = ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"]
WHOLE_NUMBERS = ("Posterize", "Solarize", "SolarizeAdd")


def planar(photo):
    return jnp.moveaxis(jnp.asarray(photo), -1, 0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operation_alone_equals_pillow(name):
    photo, argument, pillow = recorded_case(name, 1)
    assert np.mean(pillow != photo) > 0.1  # the recorded case changes something
    argument = argument.astype(np.int32) if name in WHOLE_NUMBERS else argument
    ours = jax.jit(FUNCTIONS[name])(planar(photo), argument)
    assert ours.dtype == jnp.uint8
    assert_equals_pillow(name, np.moveaxis(ours, 0, -1), pillow)


def test_levels_equal_timm():
    levels = jnp.asarray(GOLDEN["levels"], jnp.float32)
    level, operation = levels[None, :, None], jnp.arange(15)[:, None, None]
    negative = jnp.asarray([False, True])[None, None]
    convert = jax.jit(operations.level_to_argument, static_argnums=(3, 4))
    for number, increasing in enumerate((True, False)):
        ours = convert(operation, level, negative, increasing)
        np.testing.assert_allclose(ours, GOLDEN["arguments"][:, number], rtol=1e-6, atol=1e-6)
    bits = convert(jnp.int32(operations.NUMBER["Posterize"]), levels, jnp.bool_(False), False, "PosterizeOriginal")
    np.testing.assert_array_equal(bits, GOLDEN["original_bits"])


def test_levels_beyond_ten_stay_valid():
    level, negative = jnp.float32(30), jnp.bool_(False)
    at = lambda name, **options: float(  # noqa: E731
        operations.level_to_argument(jnp.int32(operations.NUMBER[name]), level, negative, **options)
    )
    assert at("Posterize") == 0 and at("Posterize", posterize="PosterizeOriginal") == 8
    assert at("Solarize") == 0 and at("SolarizeAdd") == 128
    assert at("Rotate") == 90


def test_zero_bits_are_black():
    assert not np.any(color.posterize(planar(GOLDEN["china"]), 0))
    np.testing.assert_array_equal(color.posterize(planar(GOLDEN["china"]), 8), planar(GOLDEN["china"]))


def test_solarize_threshold_256_changes_nothing():
    white = jnp.full((3, 4, 4), 255, jnp.uint8)
    np.testing.assert_array_equal(color.solarize(white, 256), white)
    np.testing.assert_array_equal(color.solarize(white, 255), 0 * white)


@pytest.mark.parametrize("function", [color.auto_contrast, color.equalize, color.equalize_by_nibbles])
def test_constant_channels_are_unchanged(function):
    image = jnp.broadcast_to(jnp.asarray([0, 77, 255], jnp.uint8)[:, None, None], (3, 8, 8))
    np.testing.assert_array_equal(function(image), image)


def test_equalize_by_nibbles_is_equalize():
    rng = np.random.default_rng(0)
    few = rng.choice(np.array([3, 4, 200, 255], np.uint8), (3, 36, 44))
    for image in (planar(GOLDEN["roof"]), jnp.asarray(few)):
        np.testing.assert_array_equal(color.equalize_by_nibbles(image), color.equalize(image))


@pytest.mark.parametrize("name", GEOMETRIC)
def test_identity_warp_is_exact(name):
    photo = planar(GOLDEN["flower"])
    np.testing.assert_array_equal(FUNCTIONS[name](photo, jnp.float32(0)), photo)


def test_whole_pixel_shift_moves_pixels_and_fills():
    photo = GOLDEN["china"]  # 36 x 44
    for roll in (False, True):
        ours = np.moveaxis(shifts.shift_rows(planar(photo), jnp.float32(0), jnp.float32(11), FILL, roll), 0, -1)
        np.testing.assert_array_equal(ours[:, :33], photo[:, 11:])
        np.testing.assert_array_equal(ours[:, 33:], np.broadcast_to(np.uint8(FILL), (36, 11, 3)))
    assert np.all(shift("TranslateY")(planar(photo), jnp.float32(3)) == np.array(FILL)[:, None, None])


@pytest.mark.parametrize("size", [(28, 28), (33, 97), pytest.param((384, 384), marks=pytest.mark.long)])
def test_warp_implementations_agree_at_any_size(size):
    """Gather, sliced and rolled lines, and tiles; rotations by small and large angles."""
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.integers(-3, 4, (3, *size)), axis=2) + np.cumsum(rng.integers(-3, 4, (3, *size)), axis=1)
    image = jnp.asarray(np.clip(128 + smooth, 0, 255).astype(np.uint8))
    gather = jax.jit(lambda image, matrix: warping.warp(image, matrix, FILL))
    tiles = jax.jit(lambda image, matrix: warping.warp_by_tiles(image, matrix, FILL))
    for degrees in (2.0, -27.0, 45.0, 170.0):
        matrix = warping.rotation(degrees, *size)
        assert difference(gather(image, matrix), tiles(image, matrix)).max() <= 1

    @jax.jit
    def lines(image, slope, offset):
        return [
            f(image, slope, offset, FILL, roll) for f in (shifts.shift_rows, shifts.shift_columns) for roll in (0, 1)
        ]

    for slope, offset in ((0.27, 0.0), (-0.3, 0.0), (0.0, 0.405 * size[1]), (0.0, -11.3), (0.0, 1e5), (0.0, 0.25)):
        rows, rolled_rows, columns, rolled_columns = lines(image, jnp.float32(slope), jnp.float32(offset))
        np.testing.assert_array_equal(rows, rolled_rows)
        np.testing.assert_array_equal(columns, rolled_columns)
        off = difference(rows, gather(image, jnp.asarray([1, slope, offset, 0, 1, 0], jnp.float32)))
        assert off.max() <= 1 and np.mean(off > 0) < 2e-3
        off = difference(columns, gather(image, jnp.asarray([1, 0, 0, slope, 1, offset], jnp.float32)))
        assert off.max() <= 1 and np.mean(off > 0) < 2e-3


def test_normalize():
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (image / 255.0 - np.array(mean)) / np.array(std)
    ours = color.normalize(jnp.asarray(image), mean, std)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
