"""The plan for a CPU: images one after another, each through a switch that runs the drawn operation alone."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange

from deit_jax.augment import color
from deit_jax.augment.operations import OPERATIONS, slope_and_offset
from deit_jax.augment.shifts import shift_columns, shift_rows
from deit_jax.augment.warping import rotation, warp

_COLOR = {
    "AutoContrast": lambda image, argument: color.auto_contrast(image),
    "Equalize": lambda image, argument: color.equalize(image),
    "Invert": lambda image, argument: color.invert(image),
    "Posterize": lambda image, argument: color.posterize(image, argument.astype(jnp.int32)),
    "Solarize": lambda image, argument: color.solarize(image, argument.astype(jnp.int32)),
    "SolarizeAdd": lambda image, argument: color.solarize_add(image, argument.astype(jnp.int32)),
    "Color": color.color,
    "Contrast": color.contrast,
    "Brightness": color.brightness,
    "Sharpness": color.sharpness,
}
_GEOMETRIC = {"Rotate": "rotate", "ShearX": "rows", "ShearY": "columns", "TranslateX": "rows", "TranslateY": "columns"}
_BRANCHES = (*_COLOR, "rotate", "rows", "columns", "nothing")
# Of each operation by its number, and of SKIP.
_BRANCH_OF = [_BRANCHES.index(_GEOMETRIC.get(name, name)) for name in OPERATIONS] + [_BRANCHES.index("nothing")]


def _without_operation(
    function: Callable[[jax.Array, jax.Array], jax.Array],
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    return lambda image, operation, argument: function(image, argument)


def apply_sequentially(
    images: jax.Array, operations: jax.Array, arguments: jax.Array, fill: Sequence[int]
) -> jax.Array:
    """Applies each image's operations; the arguments are those of `plans.apply_operations`."""
    height, width = images.shape[1:3]
    branches = [_without_operation(function) for function in _COLOR.values()]
    branches += [
        lambda image, operation, argument: warp(image, rotation(argument, height, width), fill),
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
