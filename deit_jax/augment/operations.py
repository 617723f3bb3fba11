"""The 15 operations that RandAugment, AutoAugment and color jitter draw from, and what they do at a level.

An image's operations are two arrays: numbers int32[L] and arguments float32[L]. `plans.apply_operations` applies them to a batch.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

# An operation's number is its index here; SKIP, one past the last, leaves the image unchanged.
OPERATIONS = (
    "AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast", "Brightness", "Sharpness",
    "Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY",
)  # fmt: skip
SKIP = len(OPERATIONS)
NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
MAX_LEVEL = 10.0  # levels are clipped to this unless a policy sets another limit

POSTERIZE_BITS = {  # timm's three variants of Posterize: (sign, bits kept at level 0)
    "Posterize": (1, 0),
    "PosterizeIncreasing": (-1, 4),
    "PosterizeOriginal": (1, 4),
}


def level_to_argument(
    operation: jax.Array, level: jax.Array, negative: jax.Array, increasing: bool = True, posterize: str | None = None
) -> jax.Array:
    """Converts a level to an operation's argument, as timm's LEVEL_TO_ARG. The three arrays broadcast.

    Args:
        operation: int32, an index into OPERATIONS.
        level: float32, usually in [0, 10].
        negative: bool, the random sign of rotation, shear, translation and increasing enhancements.
        increasing: whether every operation gets stronger with the level (timm's inc1).
        posterize: a key of POSTERIZE_BITS; None: determined by `increasing`.

    Returns:
        float32: degrees (Rotate), shear factor, fraction of the size (TranslateX, TranslateY), bits kept (Posterize),
        threshold (Solarize), gray levels (SolarizeAdd), enhancement factor (Color to Sharpness); 0 if there is no argument.
    """
    sign = jnp.where(negative, -1.0, 1.0)
    none = jnp.zeros_like(level)
    bits_sign, first_bits = POSTERIZE_BITS[posterize or ("PosterizeIncreasing" if increasing else "Posterize")]
    bits = jnp.clip(first_bits + bits_sign * jnp.floor(level * 0.4), 0, 8)
    threshold = jnp.minimum(jnp.floor(level * 25.6), 256)
    if increasing:
        threshold = 256 - threshold
        factor = jnp.maximum(1 + sign * level * 0.09, 0.1)
    else:
        factor = level * 0.18 + 0.1
    added = jnp.minimum(jnp.floor(level * 11), 128)
    shear, shift = sign * level * 0.03, sign * level * 0.045
    by_name = {
        "AutoContrast": none, "Equalize": none, "Invert": none, "Posterize": bits, "Solarize": threshold, "SolarizeAdd": added,
        "Color": factor, "Contrast": factor, "Brightness": factor, "Sharpness": factor,
        "Rotate": sign * level * 3, "ShearX": shear, "ShearY": shear, "TranslateX": shift, "TranslateY": shift,
    }  # fmt: skip
    values = jnp.broadcast_arrays(*(by_name[name] for name in OPERATIONS))
    return jnp.select([operation == NUMBER[name] for name in OPERATIONS], values, 0.0)


def noisy_level(magnitude: jax.Array | float, std: float, share: jax.Array, max_level: float) -> jax.Array:
    """Draws a level around `magnitude` (broadcastable to share), as timm's AugmentOp: float32 of share's shape in [0, max_level].

    std: standard deviation; infinity: uniform in [0, magnitude]. share: float32, uniform in [0, 1).
    """
    level = magnitude * share if std == math.inf else magnitude + std * ndtri(share)
    return jnp.clip(level, 0, max_level)


def is_any(operations: jax.Array, *names: str) -> jax.Array:
    """Masks the operations that have one of the names."""
    return jnp.any(jnp.stack([operations == NUMBER[name] for name in names]), 0)


def slope_and_offset(operation: jax.Array, argument: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Converts a shear or a translation along an axis of `size` pixels to the slope and offset that `shifts` uses."""
    shears = is_any(operation, "ShearX", "ShearY")
    return jnp.where(shears, argument, 0), jnp.where(shears, 0, argument * size)


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Color jitter as torchvision's ColorJitter: brightness, contrast and saturation by random factors, in random order.

    Attributes:
        strength: factors are uniform in [max(0, 1 - strength), 1 + strength] (timm's color_jitter; hue is unchanged).
    """

    strength: float = 0.4

    def draw(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draws each image's factors and their order.

        keys: keys[B]. Returns (operations int32[B, 3], a permutation of Brightness, Contrast and Color; arguments float32[B, 3]).
        """
        adjustments = jnp.asarray([NUMBER[name] for name in ("Brightness", "Contrast", "Color")])
        low = max(0.0, 1 - self.strength)

        def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            # One call for all numbers: every call compiles another generator.
            order, share = jax.random.uniform(key, (2, 3))
            return adjustments[jnp.argsort(order)], low + (1 + self.strength - low) * share

        return jax.vmap(draw)(keys)
