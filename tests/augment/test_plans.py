"""Both plans against Pillow, and against each other."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deit_jax.augment import chunked, plans
from deit_jax.augment.operations import NUMBER, OPERATIONS, SKIP
from tests.augment.photographs import CASES, FILL, GOLDEN, assert_equals_pillow, difference, recorded_case
from tests.augment.table_9 import table_9

ROWS = 256  # one shape for all, so that each plan is compiled once


@functools.cache
def compiled(plan):
    return jax.jit(functools.partial(plans.apply_operations, fill=FILL, plan=plan))


def apply(plan, images, operations, arguments):
    """operations and arguments: [n, 1 or 2]."""
    count = len(images)
    images = np.concatenate([np.stack(images), np.zeros((ROWS - count, 36, 44, 3), np.uint8)])
    drawn = np.full((ROWS, 2), SKIP, np.int32), np.zeros((ROWS, 2), np.float32)
    for full, given in zip(drawn, (operations, arguments), strict=True):
        full[:count, : np.shape(given)[1]] = given
    return np.asarray(compiled(plan)(images, *drawn))[:count]


@pytest.fixture(scope="module", params=plans.PLANS)
def plan(request):
    return request.param


def test_every_recorded_case_equals_pillow(plan):
    photos, arguments, expected = zip(*(recorded_case(*case) for case in CASES), strict=True)
    ours = apply(plan, photos, [[NUMBER[name]] for name, _ in CASES], np.array(arguments)[:, None])
    for (name, _), image, pillow in zip(CASES, ours, expected, strict=True):
        assert_equals_pillow(name, image, pillow)


def test_layers_are_applied_in_order(plan):
    photo = GOLDEN["china"]
    posterize, invert = NUMBER["Posterize"], NUMBER["Invert"]
    ours = apply(
        plan, [photo] * 3, [[posterize, invert], [invert, posterize], [SKIP, SKIP]], [[2.0, 0.0], [0.0, 2.0], [1, 1]]
    )
    np.testing.assert_array_equal(ours[0], 255 - (photo & 0b11000000))
    np.testing.assert_array_equal(ours[1], (255 - photo) & 0b11000000)
    np.testing.assert_array_equal(ours[2], photo)


def every_pair():
    """Photos, all pairs of operations, and the arguments of one recorded case."""
    numbers = np.array(list(itertools.product(range(len(OPERATIONS)), repeat=2)), np.int32)
    photos = [GOLDEN[("china", "flower", "roof", "petals")[k % 4]] for k in range(len(numbers))]
    arguments = np.array([GOLDEN[f"{name}_1_argument"] for name in OPERATIONS], np.float32)
    return np.stack(photos), numbers, np.take(arguments, numbers)


@pytest.fixture(scope="module")
def pairs():
    return {plan: apply(plan, *every_pair()) for plan in plans.PLANS}


def test_plans_agree_on_chains(pairs):
    """The second operation can amplify a difference of one level after the first, in very few pixels."""
    off = difference(pairs["sequential"], pairs["chunked"])
    assert np.mean(off > 1) < 1e-5
    assert np.mean(off > 0) < 5e-4


@pytest.fixture(scope="module")
def on_eight_devices():
    """(the chunked plan's program for eight devices, its result for 224 pairs)"""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("data")
    apply_in_chunks = functools.partial(chunked.apply_in_chunks, fill=FILL)
    sharded = jax.jit(jax.shard_map(apply_in_chunks, mesh=mesh, in_specs=(rows, rows, rows), out_specs=rows))
    batch = [jax.device_put(values[:224], NamedSharding(mesh, rows)) for values in every_pair()]
    program = sharded.lower(*batch).compile()
    return program, program(*batch)


def test_chunks_on_eight_devices_equal_one_device(pairs, on_eight_devices):
    """Each device loops over its own rows: the same pixels."""
    np.testing.assert_array_equal(on_eight_devices[1], pairs["chunked"][:224])


@pytest.mark.compiler
def test_eight_devices_exchange_nothing(on_eight_devices):
    program = on_eight_devices[0].as_text()
    assert not re.search(r"(all-gather|all-reduce|all-to-all|collective-permute)(-start)?\(", program)


def test_any_number_of_chosen_rows():
    """None, fewer than a chunk, not a multiple of it, all; the others are unchanged."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (7, 3, 4, 5), dtype=np.uint8))
    add = jnp.arange(7)

    @functools.partial(jax.jit, static_argnums=0)
    def run(chunk, chosen):
        return chunked.apply_to_chosen(lambda image, k: image + k.astype(jnp.uint8), chunk, chosen, images, add)

    for chunk in (1, 3, 16):
        for chosen in ([], [4], [0, 6], [1, 2, 3, 5], range(7)):
            mask = np.isin(np.arange(7), list(chosen))
            expected = images + np.where(mask, np.arange(7), 0).astype(np.uint8)[:, None, None, None]
            np.testing.assert_array_equal(run(chunk, jnp.asarray(mask)), expected)


def test_mean_turns_of_the_loops():
    auto, sharpness, rotate = NUMBER["AutoContrast"], NUMBER["Sharpness"], NUMBER["Rotate"]
    shear, shift = NUMBER["ShearX"], NUMBER["TranslateX"]
    one = [(auto, SKIP)] * 5 + [
        (sharpness, rotate)
    ]  # of AutoContrast 2 chunks of 4 in the first layer, none in the second
    other = [(shear, auto), (shift, SKIP), (shear, SKIP), (shift, SKIP), (shear, rotate), (SKIP, SKIP)]
    assert chunked.mean_turns(np.array([one, other])) == {
        "stretch_in_chunks_of_4": (2 + 0 + 0 + 1) / 4,
        "sharpen_in_chunks_of_4": 1 / 4,
        "equalize_in_chunks_of_4": 0,
        "rows_in_chunks_of_4": 2 / 4,
        "columns_in_chunks_of_4": 0,
        "rotate_in_chunks_of_2": 2 / 4,
    }


def test_choice_by_backend():
    assert plans.choose_plan("auto") == "sequential"  # tests run on a CPU
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    assert plans.choose_plan("auto", mesh) == "sequential"
    assert plans.choose_plan("chunked", mesh) == "chunked"
    with pytest.raises(ValueError, match="plan 'fast' is not one of auto, sequential, chunked"):
        plans.apply_operations(jnp.zeros((1, 4, 4, 3), jnp.uint8), jnp.zeros((1, 2)), jnp.zeros((1, 2)), plan="fast")


def gathered_slices(program):
    """Number of slices of each gather in a StableHLO program."""
    indices = re.findall(r'stablehlo\.gather".*?: \(tensor<\S+>, tensor<((?:\d+x)*)[a-z]\w*>\) ->', program)
    assert len(indices) == len(re.findall(r"stablehlo\.(?:dynamic_)?gather\"", program))
    return [math.prod(map(int, re.findall(r"\d+", shape)[:-1])) for shape in indices]


@pytest.mark.compiler
def test_chunked_recipe_gathers_no_pixels():
    batch, labels = jax.ShapeDtypeStruct((64, 224, 224, 3), jnp.uint8), jax.ShapeDtypeStruct((64,), jnp.int32)
    lowered = {}
    for plan in plans.PLANS:
        recipe = table_9(1000, group_size=64, plan=plan)
        lowered[plan] = jax.jit(recipe).lower(jax.random.key(0), batch, labels).as_text()
    assert max(gathered_slices(lowered["sequential"])) > 5_000  # the check detects gathers of pixels
    assert max(gathered_slices(lowered["chunked"])) <= 64
    assert not re.search(r"stablehlo\.scatter", lowered["chunked"])
