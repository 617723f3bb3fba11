"""The plan for accelerators: cheap operations on the whole batch, the others on chunks of the images that drew them.

Half of the operations are special cases of one formula per pixel, so a single pass over the batch applies them all. The others
loop over chunks of the images that drew them, until all are done: no cap, and no wasted work. Nothing gathers single pixels,
which is very slow on a TPU. Run it under shard_map when the batch is sharded: each device then loops over its own rows.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from deit_jax.augment import color
from deit_jax.augment.operations import NUMBER, is_any, slope_and_offset
from deit_jax.augment.shifts import shift_columns, shift_rows
from deit_jax.augment.warping import rotation, warp_by_tiles


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop over the images that drew one of its operations."""

    name: str
    chunk: int  # images at a time: small chunks stay in fast memory and leave few slots of the last chunk empty
    operations: tuple[str, ...]

    @property
    def scope(self) -> str:
        """Its name in the compiled program's metadata."""
        return f"{self.name}_in_chunks_of_{self.chunk}"


LOOPS = (
    Loop("stretch", 4, ("AutoContrast",)),
    Loop("sharpen", 4, ("Sharpness",)),
    Loop("equalize", 4, ("Equalize",)),
    Loop("rows", 4, ("ShearX", "TranslateX")),
    Loop("columns", 4, ("ShearY", "TranslateY")),
    Loop("rotate", 2, ("Rotate",)),
)


def mean_turns(operations: np.ndarray) -> dict[str, float]:
    """Returns the mean number of turns of each loop, by its scope, over batches and layers.

    operations: int[batches, B, L], what the images of a device's batches drew.
    """
    turns = {}
    for loop in LOOPS:
        chosen = np.isin(operations, [NUMBER[name] for name in loop.operations]).sum(axis=1)
        turns[loop.scope] = float(np.ceil(chosen / min(loop.chunk, operations.shape[1])).mean())
    return turns


def apply_in_chunks(images: jax.Array, operations: jax.Array, arguments: jax.Array, fill: Sequence[int]) -> jax.Array:
    """Applies each image's operations; see `plans.apply_operations` for the arguments."""

    def layer(images: jax.Array, drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        operations, arguments = drawn
        with jax.named_scope("pointwise"):
            images = apply_pointwise(images, operations, arguments)
        return _apply_in_loops(images, operations, arguments, fill), None

    planar, _ = jax.lax.scan(layer, rearrange(images, "b h w c -> b c h w"), (operations.T, arguments.T))
    return rearrange(planar, "b c h w -> b h w c")


def apply_pointwise(images: jax.Array, operations: jax.Array, arguments: jax.Array) -> jax.Array:
    """Applies one pointwise operation per image, on uint8[B, 3, H, W]; images with other operations stay unchanged.

        b = clip(base + factor (x - base)), y = (b < threshold ? min(255, b + add) : b ^ flip) & mask

    Parameters that an operation does not use have neutral values. operations: int32[B], indices into OPERATIONS, or SKIP;
    arguments: float32[B], see `level_to_argument`.
    """

    def an_image(values: jax.Array) -> jax.Array:  # [B] to [B, 1, 1, 1]
        return values[:, None, None, None]

    def choose(otherwise: jax.Array | int, **values: jax.Array | int) -> jax.Array:
        """Selects the value for each image's operation: int32[B, 1, 1, 1], or with more pixels."""
        chosen = jnp.asarray(otherwise)
        for name, value in values.items():
            chosen = jnp.where(an_image(is_any(operations, name)), value, chosen)
        return chosen

    whole = an_image(arguments.astype(jnp.int32))
    grey = color.luminance(images)[:, None]
    base = choose(0, Color=grey, Contrast=color.mean_luminance(grey)[:, :, None, None])
    enhances = an_image(is_any(operations, "Color", "Contrast", "Brightness"))
    values = color.blend(base, images, jnp.where(enhances, an_image(arguments), 1.0)).astype(jnp.int32)
    threshold = choose(256, Invert=0, Solarize=whole, SolarizeAdd=128)
    above = values ^ choose(0, Invert=255, Solarize=255)
    below = jnp.minimum(values + choose(0, SolarizeAdd=whole), 255)
    values = jnp.where(values < threshold, below, above) & choose(255, Posterize=(0xFF00 >> whole) & 0xFF)
    return values.astype(jnp.uint8)


def _apply_in_loops(images: jax.Array, operations: jax.Array, arguments: jax.Array, fill: Sequence[int]) -> jax.Array:
    height, width = images.shape[2:]

    def equalize(image: jax.Array, operation: jax.Array, argument: jax.Array) -> jax.Array:
        return color.equalize_by_nibbles(image)

    def rows(image: jax.Array, operation: jax.Array, argument: jax.Array) -> jax.Array:
        return shift_rows(image, *slope_and_offset(operation, argument, width), fill, roll=True)

    def columns(image: jax.Array, operation: jax.Array, argument: jax.Array) -> jax.Array:
        return shift_columns(image, *slope_and_offset(operation, argument, height), fill, roll=True)

    def rotate(image: jax.Array, operation: jax.Array, argument: jax.Array) -> jax.Array:
        return warp_by_tiles(image, rotation(argument, height, width), fill)

    def stretch(image: jax.Array, operation: jax.Array, argument: jax.Array) -> jax.Array:
        return color.auto_contrast(image)

    def sharpen(image: jax.Array, operation: jax.Array, argument: jax.Array) -> jax.Array:
        return color.sharpness(image, argument)

    functions = {
        "stretch": stretch, "sharpen": sharpen, "equalize": equalize, "rows": rows, "columns": columns, "rotate": rotate,
    }  # fmt: skip
    for loop in LOOPS:
        with jax.named_scope(loop.scope):
            chosen = is_any(operations, *loop.operations)
            images = apply_to_chosen(functions[loop.name], loop.chunk, chosen, images, operations, arguments)
    return images


def apply_to_chosen(
    function: Callable[..., jax.Array], chunk: int, chosen: jax.Array, images: jax.Array, *others: jax.Array
) -> jax.Array:
    """Replaces each image[...] of [B, ...] with chosen[B] by function(image, *others of its row), one chunk of rows at a time.

    The other images stay unchanged. others: arrays [B, ...].
    """
    chunk = min(chunk, len(images))
    order = jnp.argsort(~chosen, stable=True)  # the chosen rows first
    count = jnp.sum(chosen)

    def turn(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        done, images = state
        # The last chunk may extend past the chosen rows; it is moved back if it would extend past the batch.
        start = jnp.minimum(done, len(images) - chunk)
        place = start + jnp.arange(chunk)
        rows = jax.lax.dynamic_slice(order, (start,), (chunk,))

        def pick(values: jax.Array) -> jax.Array:  # gathers whole rows, unlike the slow gather of single pixels
            return jnp.take(values, rows, axis=0, mode="clip")

        old = pick(images)
        new = jax.vmap(function)(old, *map(pick, others))
        todo = ((place >= done) & (place < count)).reshape(chunk, *[1] * (images.ndim - 1))
        new = jnp.where(todo, new, old)
        for k in range(chunk):  # all rows differ, so none is written twice
            images = jax.lax.dynamic_update_index_in_dim(images, new[k], rows[k], 0)
        return done + chunk, images

    _, images = jax.lax.while_loop(lambda state: state[0] < count, turn, (0 * count, images))
    return images
