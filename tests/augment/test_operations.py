"""RandAugment's operations against timm and Pillow (tests/golden/record_augment.py)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.augment import color, geometry, randaugment

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "augment_operations.npz")  # images are [H, W, 3]
FILL = (124, 116, 104)
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
    "Rotate": lambda image, argument: geometry.rotate(image, argument, FILL),
    "ShearX": lambda image, argument: geometry.shear_x(image, argument, FILL),
    "ShearY": lambda image, argument: geometry.shear_y(image, argument, FILL),
    "TranslateX": lambda image, argument: geometry.translate_x(image, argument, FILL),
    "TranslateY": lambda image, argument: geometry.translate_y(image, argument, FILL),
}
WHOLE_NUMBERS = ("Posterize", "Solarize", "SolarizeAdd")
WITHIN_ONE_LEVEL = ("AutoContrast", "Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
CASES = [
    pytest.param(name, case, id=f"{name}-{case}")
    for name in FUNCTIONS
    for case in range(len(GOLDEN["cases"]))
    if f"{name}_{case}" in GOLDEN
]


def planar(photo):
    return jnp.moveaxis(jnp.asarray(photo), -1, 0)


def recorded_case(name, case):
    """(photo, argument, timm's result)."""
    photo = GOLDEN["cases"][case][2]
    return GOLDEN[str(photo)], GOLDEN[f"{name}_{case}_argument"].astype(np.float32), GOLDEN[f"{name}_{case}"]


def assert_equals_pillow(name, ours, pillow):
    difference = np.abs(np.asarray(ours).astype(int) - pillow)
    if name in WITHIN_ONE_LEVEL:
        assert difference.max() <= 1
        assert np.mean(difference > 0) < 2e-3
    else:
        assert difference.max() == 0


@pytest.mark.parametrize(("name", "case"), CASES)
def test_operation_equals_pillow(name, case):
    photo, argument, pillow = recorded_case(name, case)
    assert np.mean(pillow != photo) > 0.1  # the recorded case changes something
    argument = argument.astype(np.int32) if name in WHOLE_NUMBERS else argument
    ours = jax.jit(FUNCTIONS[name])(planar(photo), argument)
    assert ours.dtype == jnp.uint8
    assert_equals_pillow(name, np.moveaxis(ours, 0, -1), pillow)


def test_number_of_an_operation_selects_it():
    apply = jax.jit(randaugment.apply_operations)
    for name in randaugment.OPERATIONS:
        photo, argument, pillow = recorded_case(name, 1)
        operations = jnp.asarray([randaugment.OPERATIONS.index(name), randaugment.SKIP])
        assert_equals_pillow(name, apply(photo, operations, np.stack([argument, argument])), pillow)


def test_layers_follow_each_other():
    photo = GOLDEN["china"]
    bits = np.float32(2)
    order = [randaugment.OPERATIONS.index("Posterize"), randaugment.OPERATIONS.index("Invert")]
    apply = jax.jit(randaugment.apply_operations)
    np.testing.assert_array_equal(apply(photo, jnp.asarray(order), jnp.asarray([bits, 0])), 255 - (photo & 0b11000000))
    np.testing.assert_array_equal(
        apply(photo, jnp.asarray(order[::-1]), jnp.asarray([0, bits])), (255 - photo) & 0b11000000
    )
    skipped = jnp.full(2, randaugment.SKIP)
    np.testing.assert_array_equal(apply(photo, skipped, jnp.ones(2)), photo)


def test_levels_equal_timm():
    levels = jnp.asarray(GOLDEN["levels"], jnp.float32)
    level, operation = levels[None, :, None], jnp.arange(15)[:, None, None]
    negative = jnp.asarray([False, True])[None, None]
    for number, increasing in enumerate((True, False)):
        ours = jax.jit(randaugment.level_to_argument, static_argnums=3)(operation, level, negative, increasing)
        np.testing.assert_allclose(ours, GOLDEN["arguments"][:, number], rtol=1e-6, atol=1e-6)


def test_zero_bits_are_black():
    assert not np.any(color.posterize(planar(GOLDEN["china"]), 0))
    np.testing.assert_array_equal(color.posterize(planar(GOLDEN["china"]), 8), planar(GOLDEN["china"]))


def test_solarize_threshold_256_changes_nothing():
    white = jnp.full((3, 4, 4), 255, jnp.uint8)
    np.testing.assert_array_equal(color.solarize(white, 256), white)
    np.testing.assert_array_equal(color.solarize(white, 255), 0 * white)


@pytest.mark.parametrize("function", [color.auto_contrast, color.equalize])
def test_uniform_channels_stay(function):
    image = jnp.broadcast_to(jnp.asarray([0, 77, 255], jnp.uint8)[:, None, None], (3, 8, 8))
    np.testing.assert_array_equal(function(image), image)


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"])
def test_warp_of_nothing_is_exact(name):
    photo = planar(GOLDEN["flower"])
    np.testing.assert_array_equal(FUNCTIONS[name](photo, jnp.float32(0)), photo)


def test_whole_pixel_shift_moves_pixels_and_fills():
    photo = GOLDEN["china"]  # 48 x 64
    ours = np.moveaxis(geometry.translate_x(planar(photo), jnp.float32(0.25), FILL), 0, -1)
    np.testing.assert_array_equal(ours[:, :48], photo[:, 16:])
    np.testing.assert_array_equal(ours[:, 48:], np.broadcast_to(np.uint8(FILL), (48, 16, 3)))


def test_normalize():
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (image / 255.0 - np.array(mean)) / np.array(std)
    ours = color.normalize(jnp.asarray(image), mean, std)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
