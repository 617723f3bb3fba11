import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deit_jax.augment.pipeline import prepare_for_evaluation
from tests.augment.table_9 import table_9

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OFF = dict(
    flip_probability=0.0,
    rand_augment="",
    auto_augment="",
    color_jitter=0.0,
    erase_probability=0.0,
    mixup_alpha=0.0,
    cutmix_alpha=0.0,
    label_smoothing=0.0,
)


def batch(rows, size=(16, 20)):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (rows, *size, 3), dtype=np.uint8)
    return jnp.asarray(images), jnp.arange(rows, dtype=jnp.int32) * 7 % 10


@functools.cache
def jitted(recipe):
    return jax.jit(recipe)


def run(rows=8, key=0, **fields):
    return jitted(table_9(10, **fields))(jax.random.key(key), *batch(rows))


def test_disabled_augmentation_equals_evaluation_and_one_hot():
    images, labels = batch(7)
    augmented, targets = run(7, **OFF)
    np.testing.assert_allclose(augmented, prepare_for_evaluation(images, MEAN, STD), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(targets, np.eye(10)[labels])


@pytest.mark.compiler
def test_disabled_stages_compile_to_nothing():
    images, labels = batch(8)
    recipe = jax.jit(table_9(10, **OFF))
    program = recipe.lower(jax.random.key(0), images, labels).compile().as_text()
    for instruction in ("while(", "conditional(", "reverse(", "xor(", "rng"):  # xor: the random generator
        assert instruction not in program


def test_whole_recipe():
    augmented, targets = run(8, group_size=4, erase_probability=0.6)
    assert augmented.shape == (8, 16, 20, 3) and augmented.dtype == jnp.float32
    assert targets.shape == (8, 10) and targets.dtype == jnp.float32
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-5)
    assert np.isfinite(augmented).all()
    again, _ = run(8, group_size=4, erase_probability=0.6)
    np.testing.assert_array_equal(augmented, again)
    other, _ = run(8, key=1, group_size=4, erase_probability=0.6)
    assert np.mean(np.asarray(other) != augmented) > 0.5


def test_flip_share():
    images, _ = batch(400)
    flipped, _ = run(400, **OFF | {"flip_probability": 0.3})
    plain = prepare_for_evaluation(images, MEAN, STD)
    is_flipped = np.isclose(flipped, plain[:, :, ::-1], atol=1e-5).all((1, 2, 3))
    is_plain = np.isclose(flipped, plain, atol=1e-5).all((1, 2, 3))
    assert np.all(is_flipped ^ is_plain)
    assert abs(is_flipped.mean() - 0.3) < 0.08


def test_stages_draw_independently():
    """Rows are both flipped and erased only as often as expected by chance."""
    images, _ = batch(600)
    options = OFF | {"flip_probability": 0.5, "erase_probability": 0.5, "erase_mode": "const"}
    augmented, _ = run(600, **options)
    plain = np.asarray(prepare_for_evaluation(images, MEAN, STD))
    kept = np.asarray(augmented) != 0
    same = np.where(kept, np.isclose(augmented, plain, atol=1e-5), True).all((1, 2, 3))
    erased = ~kept.all((1, 2, 3))
    assert abs(same.mean() - 0.5) < 0.07 and abs(erased.mean() - 0.5) < 0.07
    assert abs((same & erased).mean() - 0.25) < 0.07


def test_row_depends_only_on_its_position():
    """Rows of a batch of 8 are the first rows of a batch of 16, when they form the same groups."""
    few, few_targets = run(8, group_size=4, erase_probability=0.6)
    many, many_targets = run(16, group_size=4, erase_probability=0.6)
    np.testing.assert_allclose(few, many[:8], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(few_targets, many_targets[:8])


def test_images_and_targets_are_mixed_equally():
    """Uniform images whose gray level is their class: the mixed level is the target's expectation (mixup)."""
    labels = jnp.arange(8, dtype=jnp.int32)
    images = jnp.broadcast_to((labels * 10).astype(jnp.uint8)[:, None, None, None], (8, 4, 4, 3))
    recipe = table_9(10, mean=(0, 0, 0), std=(1, 1, 1), **OFF | {"mixup_alpha": 0.8}, group_size=4)
    mixed, targets = jax.jit(recipe)(jax.random.key(0), images, labels)
    assert np.any(targets[:, :].max(1) < 0.99)
    np.testing.assert_allclose(mixed[:, 0, 0, 0] * 25.5, targets @ jnp.arange(10.0), rtol=1e-4)
    assert not np.any(targets[:4, 4:]) and not np.any(targets[4:, :4])


def test_hashable_and_equal():
    one, other = table_9(10, mean=[0.5] * 3), table_9(10, mean=(0.5, 0.5, 0.5))
    assert one == other and hash(one) == hash(other)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.group_size = 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mean", (0.5,)),
        ("mean", (124, 116, 104)),
        ("std", (0.0, 1.0, 1.0)),
        ("flip_probability", 1.5),
        ("rand_augment", "rand-m9-x1"),
        ("erase_probability", -0.1),
        ("erase_mode", "gauss"),
        ("erase_count", 0),
        ("auto_augment", "rand-m9"),
        ("color_jitter", -0.1),
        ("mix_mode", "half"),
        ("plan", "fast"),
        ("mixup_alpha", -1.0),
        ("cutmix_alpha", float("nan")),
        ("mix_probability", 2.0),
        ("switch_probability", -1.0),
        ("label_smoothing", 1.0),
        ("group_size", 3),
    ],
)
def test_invalid_field_is_named(field, value):
    with pytest.raises(ValueError, match=rf"^augment\.{field}: ") as error:
        table_9(10, **{"rand_augment": ""} | {field: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fields", [{"auto_augment": "original"}, {"color_jitter": 0.4}])
def test_two_policies_raise(fields):
    with pytest.raises(ValueError, match=r"^augment\.\w+: excludes augment\.rand_augment"):
        table_9(10, **fields)


@pytest.mark.parametrize("fields", [{"auto_augment": "original-mstd0.5"}, {"color_jitter": 0.4}])
def test_other_policies(fields):
    images, _ = batch(32)
    augmented, _ = run(32, **OFF | fields)
    plain = np.asarray(prepare_for_evaluation(images, MEAN, STD))
    assert np.mean(np.abs(np.asarray(augmented) - plain).max((1, 2, 3)) > 1e-3) > 0.8
    # Every value is a normalised gray level.
    levels = (np.asarray(augmented) * STD + MEAN) * 255
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-2)


def test_modes_of_mixing():
    """Uniform images whose gray level is their class, mixed row by row: level and target still belong together."""
    labels = jnp.arange(8, dtype=jnp.int32)
    images = jnp.broadcast_to((labels * 10).astype(jnp.uint8)[:, None, None, None], (8, 4, 4, 3))
    targets = {}
    for mode in ("pair", "elem"):
        options = OFF | {"mixup_alpha": 0.8, "mix_mode": mode, "group_size": 4}
        recipe = table_9(10, mean=(0, 0, 0), std=(1, 1, 1), **options)
        mixed, targets[mode] = jax.jit(recipe)(jax.random.key(0), images, labels)
        np.testing.assert_allclose(mixed[:, 0, 0, 0] * 25.5, targets[mode] @ jnp.arange(10.0), rtol=1e-4)
        assert not np.any(targets[mode][:4, 4:]) and not np.any(targets[mode][4:, :4])
    shares = {mode: np.max(rows, axis=1) for mode, rows in targets.items()}
    np.testing.assert_allclose(shares["pair"], shares["pair"].reshape(2, 4)[:, ::-1].reshape(-1), rtol=1e-6)
    assert len(set(shares["elem"].round(5).tolist())) == 8


def test_batch_of_incomplete_groups_raises():
    with pytest.raises(ValueError, match=r"^augment\.group_size: 4 does not divide the batch of 6"):
        run(6, group_size=4)
    run(6, **OFF | {"group_size": 4})  # groups do not matter without mixing


@pytest.fixture(scope="module")
def on_eight_devices():
    """(images and targets of one device, the program for eight devices, its images and targets)"""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 256, (32, 16, 20, 3), dtype=np.uint8), rng.integers(0, 10, 32).astype(np.int32)
    recipe = table_9(10, group_size=4, erase_probability=0.6, erase_count=2)
    key = jax.random.key(7)
    split = NamedSharding(mesh, PartitionSpec("data"))
    spread = jax.device_put(batch, split)
    program = jax.jit(lambda *args: recipe(*args, mesh=mesh), out_shardings=split).lower(key, *spread).compile()
    return jax.jit(recipe)(key, *batch), program, program(key, *spread)


def test_one_and_eight_devices_agree(on_eight_devices):
    """The chunked plan: test_plans."""
    alone, _, sharded = on_eight_devices
    for one, other in zip(alone, sharded, strict=True):
        # Different fusion may round the last bit differently; draws are the same.
        np.testing.assert_allclose(one, other, atol=1e-6, rtol=0)


@pytest.mark.compiler
def test_eight_devices_exchange_nothing(on_eight_devices):
    names = r"all-gather|all-reduce|all-to-all|collective-permute"
    assert not re.search(rf"= \S+ (?:{names})(?:-start)?\(", on_eight_devices[1].as_text())
