"""The plan for a CPU: images one after another, each through a switch that runs the drawn operation alone."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange

from deit_jax.augment import color, geometry
from deit_jax.augment.operations import NUMBER, OPERATIONS, SKIP, slope_and_offset
from deit_jax.augment.shifts import shift_columns, shift_rows

_COLOR = (
    lambda image, argument: color.auto_contrast(image),
    lambda image, argument: color.equalize(image),
    lambda image, argument: color.invert(image),
    lambda image, argument: color.posterize(image, argument.astype(jnp.int32)),
    lambda image, argument: color.solarize(image, argument.astype(jnp.int32)),
    lambda image, argument: color.solarize_add(image, argument.astype(jnp.int32)),
    color.color,
    color.contrast,
    color.brightness,
    color.sharpness,
)
_ROTATE, _ROWS, _COLUMNS, _NOTHING = range(len(_COLOR), len(_COLOR) + 4)
_BRANCH_OF = tuple(range(len(_COLOR))) + (_ROTATE, _ROWS, _COLUMNS, _ROWS, _COLUMNS, _NOTHING)
assert OPERATIONS[: len(_COLOR) + 1] == tuple(NUMBER)[: len(_COLOR) + 1] and len(_BRANCH_OF) == SKIP + 1


def _without_operation(
    function: Callable[[jax.Array, jax.Array], jax.Array],
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    return lambda image, operation, argument: function(image, argument)


def apply_sequentially(
    images: jax.Array, operations: jax.Array, arguments: jax.Array, fill: Sequence[int]
) -> jax.Array:
    """Applies each image's operations; the arguments are those of `plans.apply_operations`."""
    height, width = images.shape[1:3]
    branches = [_without_operation(function) for function in _COLOR]
    branches += [
        lambda image, operation, argument: geometry.rotate(image, argument, fill),
        lambda image, operation, argument: shift_rows(image, *slope_and_offset(operation, argument, width), fill),
        lambda image, operation, argument: shift_columns(image, *slope_and_offset(operation, argument, height), fill),
        lambda image, operation, argument: image,
    ]

    def layer(image: jax.Array, drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        operation, argument = drawn
        return jax.lax.switch(jnp.asarray(_BRANCH_OF)[operation], branches, image, operation, argument), None

    def augment(row: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        image, operations, arguments = row
        planar, _ = jax.lax.scan(layer, rearrange(image, "h w c -> c h w"), (operations, arguments))
        return rearrange(planar, "c h w -> h w c")

    return jax.lax.map(augment, (images, operations, arguments))
