"""Two plans that apply drawn operations to a batch: `sequential` for a CPU, `chunked` for a TPU or a GPU.

For each operation they agree with each other and with Pillow to within one gray level.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import Mesh

from deit_jax.augment import color
from deit_jax.augment.chunked import apply_in_chunks
from deit_jax.augment.operations import OPERATIONS, slope_and_offset
from deit_jax.augment.shifts import shift_columns, shift_rows
from deit_jax.augment.warping import rotation, warp

PLANS = ("sequential", "chunked")
CHOICES = ("auto", *PLANS)  # config choices: auto depends on the devices

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
# The branch of each operation by its number, and of SKIP.
_BRANCH_OF = [_BRANCHES.index(_GEOMETRIC.get(name, name)) for name in OPERATIONS] + [_BRANCHES.index("nothing")]


def choose_plan(plan: str, mesh: Mesh | None = None) -> str:
    """Returns `plan`, or for "auto" the plan for the platform of the mesh (default: of the default device)."""
    if plan != "auto":
        return plan
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return "sequential" if platform == "cpu" else "chunked"


def apply_operations(
    images: jax.Array,
    operations: jax.Array,
    arguments: jax.Array,
    fill: Sequence[int] = (124, 116, 104),
    plan: str = "auto",
) -> jax.Array:
    """Applies each image's operations to uint8[B, H, W, 3] in order; raises ValueError for an unknown plan.

    Args:
        images: uint8[B, H, W, 3].
        operations: int32[B, L], indices into OPERATIONS, or SKIP.
        arguments: float32[B, L], see `operations.level_to_argument`.
        fill: RGB gray levels of the pixels that geometric operations uncover.
        plan: "sequential", "chunked", or "auto": chosen by the default device.
    """
    plan = choose_plan(plan)
    if plan not in PLANS:
        raise ValueError(f"plan {plan!r} is not one of auto, {', '.join(PLANS)}")
    apply = _apply_sequentially if plan == "sequential" else apply_in_chunks
    return apply(images, operations, arguments, fill)


def _without_operation(
    function: Callable[[jax.Array, jax.Array], jax.Array],
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    return lambda image, operation, argument: function(image, argument)


def _apply_sequentially(
    images: jax.Array, operations: jax.Array, arguments: jax.Array, fill: Sequence[int]
) -> jax.Array:
    """Loops over the images, each through a switch that runs only the drawn operation."""
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
