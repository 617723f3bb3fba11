"""The 15 operations that RandAugment, AutoAugment and colour jitter draw from, by number, and what they do at a level.

An image's operations are two arrays: numbers int32[L] and arguments float32[L]; the plans (`sequential`, `chunked`) apply
such arrays to a batch.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

# Operations are numbered by their place here; SKIP, one past the last, leaves the image alone.
OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "Rotate",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)
SKIP = len(OPERATIONS)
NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
MAX_LEVEL = 10.0  # that levels are clipped to, unless a policy says otherwise

POSTERIZE_BITS = {  # timm's three readings of Posterize: (sign, bits kept at level 0)
    "Posterize": (1, 0),
    "PosterizeIncreasing": (-1, 4),
    "PosterizeOriginal": (1, 4),
}


def level_to_argument(
    operation: jax.Array,
    level: jax.Array,
    negative: jax.Array,
    increasing: bool = True,
    posterize: str | None = None,
) -> jax.Array:
    """What an operation does at a level, after timm's LEVEL_TO_ARG. The three arrays broadcast.

    Args:
        operation: int32, a number of OPERATIONS.
        level: float32, usually in [0, 10].
        negative: bool, the sign's coin: rotation, shear, translation and increasing enhancements go either way.
        increasing: whether every operation gets stronger with the level (timm's inc1).
        posterize: a key of POSTERIZE_BITS; None: as `increasing` says.

    Returns:
        float32: degrees (Rotate), shear factor, fraction of the size (TranslateX, TranslateY), bits kept (Posterize),
        threshold (Solarize), grey levels (SolarizeAdd), enhancement factor (Color to Sharpness); 0 without argument.
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
    """A level around `magnitude`, as timm's AugmentOp draws it.

    Args:
        magnitude: mean level, broadcastable to share.
        std: standard deviation of the level; infinity: uniform in [0, magnitude].
        share: float32 in [0, 1), the draw.
        max_level: levels are clipped to [0, max_level].

    Returns:
        float32 of share's shape.
    """
    level = magnitude * share if std == math.inf else magnitude + std * ndtri(share)
    return jnp.clip(level, 0, max_level)


def is_any(operations: jax.Array, *names: str) -> jax.Array:
    """Where an operation is one of the named ones."""
    return jnp.any(jnp.stack([operations == NUMBER[name] for name in names]), 0)


def slope_and_offset(operation: jax.Array, argument: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """What `shifts` needs of a shear or a translation along an axis of `size` pixels."""
    shears = is_any(operation, "ShearX", "ShearY")
    return jnp.where(shears, argument, 0), jnp.where(shears, 0, argument * size)
