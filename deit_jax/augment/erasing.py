"""Random erasing (Zhong et al., arXiv 1708.04896) as in timm: after normalisation, one or more boxes per image.

Boxes are drawn and filled by separate functions. A box is int32 (top, bottom, left, right), bottom and right exclusive; the
empty box (0, 0, 0, 0) erases nothing.
"""

import math

import jax
import jax.numpy as jnp

MODES = ("pixel", "rand", "const")
AREA_RANGE = (0.02, 1 / 3)  # share of the image
LOG_ASPECT_RANGE = (math.log(0.3), -math.log(0.3))  # log(height / width)
TRIES = 10
STRIP = 8  # rows whose noise shares one key


def first_fitting_box(
    area: jax.Array, log_aspect: jax.Array, corner: jax.Array, image_size: tuple[int, int]
) -> jax.Array:
    """Returns the first of T candidate boxes that is strictly smaller than the image, int32[4]; the empty box if there is none.

    area, log_aspect: float32[T], each candidate's area as a share of the image and its log(height / width). corner: float32[2]
    in [0, 1), the position of the top left corner within its range of whole pixels. image_size: (height, width) in pixels.
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


def draw_boxes(keys: jax.Array, probability: float, image_size: tuple[int, int], max_count: int = 1) -> jax.Array:
    """Draws each image's boxes, int32[B, max_count, 4]; all are empty with probability 1 - `probability`.

    keys: keys[B], one per image. If none of an image's 10 candidates fits, which is very rare, its box is empty too. image_size:
    (height, width) in pixels. max_count: timm's recount; the number of boxes is uniform in 1..max_count and divides their area.
    """

    def draw(key: jax.Array) -> jax.Array:
        # One call for all numbers: every call compiles another generator. The first box's first number decides whether the
        # image is erased, the last box's first number sets the count; those of the other boxes are unused.
        numbers = jax.random.uniform(key, (max_count, 3 + 2 * TRIES))
        first, corner, area, log_aspect = jnp.split(numbers, (1, 3, 3 + TRIES), axis=1)
        count = 1 + jnp.floor(first[-1] * max_count) if max_count > 1 else 1
        area, log_aspect = _between(AREA_RANGE, area) / count, _between(LOG_ASPECT_RANGE, log_aspect)
        boxes = jax.vmap(first_fitting_box, in_axes=(0, 0, 0, None))(area, log_aspect, corner, image_size)
        wanted = (first[0] < probability) & (jnp.arange(max_count) < count)
        return jnp.where(wanted[:, None], boxes, 0)

    return jax.vmap(draw)(keys)


def inside(box: jax.Array, height: int, width: int, top: jax.Array | int = 0) -> jax.Array:
    """Masks the pixels of rows top to top + height that lie in the box int32[4]: bool[height, width, 1]."""
    first, last, left, right = box
    y, x = top + jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    return (y >= first) & (y < last) & (x >= left) & (x < right)


def erase(keys: jax.Array, images: jax.Array, boxes: jax.Array, mode: str = "pixel") -> jax.Array:
    """Fills each image's boxes.

    Args:
        keys: keys[B], one per image, for the noise.
        images: float32[B, H, W, C], normalised.
        boxes: int32[B, N, 4], (top, bottom, left, right); empty boxes have no effect.
        mode: "pixel": N(0, 1) noise for each pixel and channel; "rand": one color of N(0, 1) draws per box; "const": zero.

    Returns float32[B, H, W, C]. Raises ValueError for an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"erase mode {mode!r} is not one of {', '.join(MODES)}")
    if mode == "pixel":
        # On a CPU the noise of a whole image dominates the cost, so only the erased rows get noise.
        return jax.lax.platform_dependent(keys, images, boxes, cpu=_erase_rows, default=_erase_images)
    height, width, channels = images.shape[1:]

    def fill(key: jax.Array, image: jax.Array, boxes: jax.Array) -> jax.Array:
        colors = jax.random.normal(key, (len(boxes), channels), image.dtype) if mode == "rand" else None
        for k in range(len(boxes)):  # a later box covers an earlier one
            image = jnp.where(inside(boxes[k], height, width), 0 if colors is None else colors[k], image)
        return image

    return jax.vmap(fill)(keys, images, boxes)


def _noise(key: jax.Array, strip: jax.Array | int, width: int, channels: int) -> jax.Array:
    """Noise of the image's rows STRIP * strip to STRIP * (strip + 1): float32[STRIP, width, channels]."""
    return jax.random.normal(jax.random.fold_in(key, strip), (STRIP, width, channels))


def _in_any(boxes: jax.Array, height: int, width: int, top: jax.Array | int = 0) -> jax.Array:
    return jnp.any(jax.vmap(lambda box: inside(box, height, width, top))(boxes), 0)


def _erase_images(keys: jax.Array, images: jax.Array, boxes: jax.Array) -> jax.Array:
    """Fills the boxes with noise, generated for all pixels of all images."""
    height, width, channels = images.shape[1:]
    strips = jnp.arange(-(-height // STRIP))

    def fill(key: jax.Array, image: jax.Array, boxes: jax.Array) -> jax.Array:
        noise = jax.vmap(lambda strip: _noise(key, strip, width, channels))(strips)
        return jnp.where(_in_any(boxes, height, width), noise.reshape(-1, width, channels)[:height], image)

    return jax.vmap(fill)(keys, images, boxes)


def _erase_rows(keys: jax.Array, images: jax.Array, boxes: jax.Array) -> jax.Array:
    """Fills the boxes in place, with noise generated only for the strips that they touch."""
    height, width, channels = images.shape[1:]
    missing = -height % STRIP
    images = jnp.pad(images, ((0, 0), (0, missing), (0, 0), (0, 0)))
    empty = boxes[..., 1] <= boxes[..., 0]
    first = jnp.min(jnp.where(empty, height, boxes[..., 0]), 1) // STRIP
    last = -(-jnp.max(jnp.where(empty, 0, boxes[..., 1]), 1) // STRIP)

    def erase_image(row: jax.Array, images: jax.Array) -> jax.Array:
        def strip(number: jax.Array, images: jax.Array) -> jax.Array:
            top = number * STRIP
            old = jax.lax.dynamic_slice(images, (row, top, 0, 0), (1, STRIP, width, channels))
            new = jnp.where(_in_any(boxes[row], STRIP, width, top), _noise(keys[row], number, width, channels), old[0])
            return jax.lax.dynamic_update_slice(images, new[None], (row, top, 0, 0))

        return jax.lax.fori_loop(first[row], last[row], strip, images)

    return jax.lax.fori_loop(0, len(images), erase_image, images)[:, :height]


def _between(bounds: tuple[float, float], share: jax.Array) -> jax.Array:
    return bounds[0] + (bounds[1] - bounds[0]) * share
