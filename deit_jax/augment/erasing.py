"""Random erasing (Zhong et al., arXiv 1708.04896) as timm 0.3.2 does it: after normalisation, one box an image.

Drawing the boxes and filling them are separate functions. A box is int32 (top, bottom, left, right), bottom and right
exclusive; the empty box (0, 0, 0, 0) erases nothing.
"""

import math

import jax
import jax.numpy as jnp

MODES = ("pixel", "rand", "const")
AREA_RANGE = (0.02, 1 / 3)  # share of the image
LOG_ASPECT_RANGE = (math.log(0.3), -math.log(0.3))  # log(height / width)
TRIES = 10


def first_fitting_box(
    area: jax.Array, log_aspect: jax.Array, corner: jax.Array, image_size: tuple[int, int]
) -> jax.Array:
    """The first of several tried boxes that is strictly smaller than the image; the empty box if none is.

    Args:
        area: float32[T], each try's area as a share of the image.
        log_aspect: float32[T], each try's log(height / width).
        corner: float32[2] in [0, 1), where the top left corner lies in the range of whole pixels that it may take.
        image_size: (height, width) in pixels.

    Returns:
        int32[4]: (top, bottom, left, right).
    """
    height, width = image_size
    pixels = area * (height * width)
    aspect = jnp.exp(log_aspect)
    heights = jnp.round(jnp.sqrt(pixels * aspect)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(pixels / aspect)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    chosen = jnp.argmax(fits)  # the first True
    h, w = heights[chosen], widths[chosen]
    top = jnp.floor(corner[0] * (height - h + 1)).astype(jnp.int32)
    left = jnp.floor(corner[1] * (width - w + 1)).astype(jnp.int32)
    return jnp.where(jnp.any(fits), jnp.stack([top, top + h, left, left + w]), 0)


def draw_boxes(keys: jax.Array, probability: float, image_size: tuple[int, int]) -> jax.Array:
    """One box an image, empty with probability 1 - `probability`.

    Args:
        keys: keys[B], one an image.
        probability: that an image is erased at all (a box that fits was not found in 10 tries: very rare).
        image_size: (height, width) in pixels.

    Returns:
        int32[B, 4]: (top, bottom, left, right).
    """

    def draw(key):
        # One call for all the numbers: every call compiles a generator of its own.
        numbers = jax.random.uniform(key, (3 + 2 * TRIES,))
        chance, corner, area, log_aspect = jnp.split(numbers, (1, 3, 3 + TRIES))
        box = first_fitting_box(_between(AREA_RANGE, area), _between(LOG_ASPECT_RANGE, log_aspect), corner, image_size)
        return jnp.where(chance[0] < probability, box, 0)

    return jax.vmap(draw)(keys)


def fill_box(image: jax.Array, box: jax.Array, values: jax.Array) -> jax.Array:
    """Replaces the pixels inside the box.

    Args:
        image: float32[H, W, C].
        box: int32[4], (top, bottom, left, right).
        values: what the box is filled with, broadcastable to [H, W, C].

    Returns:
        float32[H, W, C].
    """
    height, width, _ = image.shape
    top, bottom, left, right = box
    y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    return jnp.where(inside, values, image)


def erase(keys: jax.Array, images: jax.Array, boxes: jax.Array, mode: str = "pixel") -> jax.Array:
    """Fills each image's box.

    Args:
        keys: keys[B], one an image, for the noise.
        images: float32[B, H, W, C], normalised.
        boxes: int32[B, 4], (top, bottom, left, right); empty boxes leave the image as it is.
        mode: "pixel": a draw of N(0, 1) for each pixel and channel; "rand": one colour of N(0, 1) draws for the box;
            "const": zero.

    Returns:
        float32[B, H, W, C].

    Raises:
        ValueError: unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"erase mode {mode!r} is none of {', '.join(MODES)}")
    shape = images.shape[1:]

    def fill(key, image, box):
        if mode == "const":
            return fill_box(image, box, jnp.zeros((), image.dtype))
        return fill_box(image, box, jax.random.normal(key, shape if mode == "pixel" else shape[-1:], image.dtype))

    if mode != "pixel":
        return jax.vmap(fill)(keys, images, boxes)

    # A CPU pays more for an image's noise than for all else, so there only the erased images get any.
    def one_by_one(keys, images, boxes):
        def erase_one(row):
            key, image, box = row
            return jax.lax.cond(box[1] > box[0], fill, lambda key, image, box: image, key, image, box)

        return jax.lax.map(erase_one, (keys, images, boxes))

    return jax.lax.platform_dependent(keys, images, boxes, cpu=one_by_one, default=jax.vmap(fill))


def _between(bounds: tuple[float, float], share: jax.Array) -> jax.Array:
    return bounds[0] + (bounds[1] - bounds[0]) * share
