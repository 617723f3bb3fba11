"""RandAugment (arXiv 1909.13719) as timm does it, on the device: `rand-m9-mstd0.5-inc1` and its relatives.

Each image gets `num_layers` operations, drawn uniformly with replacement from 15, each skipped with probability
1 - `probability`, at a magnitude of its own. Drawing (`draw_operations`) and applying (`apply_operations`) are separate.
Images go one after another through a `lax.switch`, so that only the chosen operation runs: about as fast as Pillow on a
CPU. A plan that treats an accelerator's images in chunks by operation is not there yet.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.scipy.special import ndtri

from deit_jax.augment import color, geometry

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
MAX_LEVEL = 10.0

_POINTWISE = (
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
_MATRICES = (
    geometry.rotation,
    geometry.shearing_x,
    geometry.shearing_y,
    geometry.translation_x,
    geometry.translation_y,
)


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """The policy's numbers.

    Attributes:
        magnitude: mean level, 0 to 10; higher levels are clipped to 10.
        num_layers: operations an image.
        magnitude_std: standard deviation of the level's noise; infinity: levels are uniform in [0, magnitude].
        increasing: whether every operation gets stronger with the level (timm's inc1).
        probability: that an operation is applied rather than skipped.
    """

    magnitude: float = 10.0
    num_layers: int = 2
    magnitude_std: float = 0.0
    increasing: bool = False
    probability: float = 0.5

    @classmethod
    def parse(cls, text: str) -> "RandAugment":
        """Reads timm's notation: "rand" and any of the sections mN, nN, mstdX, incN, pX, joined by "-".

        As in timm, mstd above 100 means uniform levels, and a section left out keeps the default above.

        Raises:
            ValueError: unknown or repeated section, or a number that cannot be read or is out of range; one line.
        """
        head, *sections = text.split("-")
        if head != "rand":
            raise ValueError(f"{text!r}: expected rand-mN-nN-mstdX-incN-pX")
        values: dict[str, float] = {}
        for section in sections:
            match = re.fullmatch(r"(mstd|inc|m|n|p)(\d+(?:\.\d+)?|\.\d+)", section)
            if not match:
                raise ValueError(f"{text!r}: cannot read section {section!r}; known: mN, nN, mstdX, incN, pX")
            name, number = match[1], float(match[2])
            if name in values:
                raise ValueError(f"{text!r}: section {name} appears twice")
            if name in ("m", "n", "inc") and number != int(number):
                raise ValueError(f"{text!r}: section {section!r} needs a whole number")
            values[name] = number
        if values.get("n", 1) < 1:
            raise ValueError(f"{text!r}: n must be at least 1")
        if values.get("p", 0) > 1:
            raise ValueError(f"{text!r}: p must be at most 1")
        std = values.get("mstd", 0.0)
        return cls(
            magnitude=values.get("m", MAX_LEVEL),
            num_layers=int(values.get("n", 2)),
            magnitude_std=math.inf if std > 100 else std,
            increasing=bool(values.get("inc", 0)),
            probability=values.get("p", 0.5),
        )

    def __call__(self, keys: jax.Array, images: jax.Array, fill: Sequence[int]) -> jax.Array:
        """Augments each image with operations of its own.

        Args:
            keys: keys[B], one an image.
            images: uint8[B, H, W, 3].
            fill: RGB grey levels of the pixels that geometric operations uncover; the reference: the rounded mean.

        Returns:
            uint8[B, H, W, 3].
        """
        operations, arguments = draw_operations(keys, self)

        def augment(row):
            image, operations, arguments = row
            return apply_operations(image, operations, arguments, fill)

        return jax.lax.map(augment, (images, operations, arguments))


def level_to_argument(
    operation: jax.Array, level: jax.Array, negative: jax.Array, increasing: bool = True
) -> jax.Array:
    """What an operation does at a level, after timm's LEVEL_TO_ARG. The three arrays broadcast.

    Args:
        operation: int32, a number of OPERATIONS.
        level: float32 in [0, 10].
        negative: bool, the sign's coin: rotation, shear, translation and increasing enhancements go either way.
        increasing: see RandAugment.

    Returns:
        float32: degrees (Rotate), shear factor, fraction of the size (TranslateX, TranslateY), bits kept (Posterize),
        threshold (Solarize), grey levels (SolarizeAdd), enhancement factor (Color to Sharpness); 0 without argument.
    """
    sign = jnp.where(negative, -1.0, 1.0)
    none = jnp.zeros_like(level)
    bits, threshold = jnp.floor(level * 0.4), jnp.minimum(jnp.floor(level * 25.6), 256)
    if increasing:
        bits, threshold = 4 - bits, 256 - threshold
        factor = jnp.maximum(1 + sign * level * 0.09, 0.1)
    else:
        factor = level * 0.18 + 0.1
    added = jnp.minimum(jnp.floor(level * 11), 128)
    shear, shift = sign * level * 0.03, sign * level * 0.045
    by_operation = [none] * 3 + [bits, threshold, added] + [factor] * 4 + [sign * level * 3, shear, shear, shift, shift]
    return jnp.select([operation == k for k in range(SKIP)], jnp.broadcast_arrays(*by_operation), 0.0)


def draw_operations(keys: jax.Array, policy: RandAugment) -> tuple[jax.Array, jax.Array]:
    """Draws each image's operations.

    Args:
        keys: keys[B], one an image.
        policy: the numbers.

    Returns:
        (operations int32[B, num_layers], SKIP among them; arguments float32[B, num_layers]).
    """

    def draw(key):
        # One call for all the numbers: every call compiles a generator of its own.
        choice, chance, noise, sign = jax.random.uniform(key, (4, policy.num_layers))
        if policy.magnitude_std == math.inf:
            level = policy.magnitude * noise
        else:
            level = policy.magnitude + policy.magnitude_std * ndtri(noise)
        level = jnp.clip(level, 0, MAX_LEVEL)
        operation = jnp.floor(SKIP * choice).astype(jnp.int32)
        argument = level_to_argument(operation, level, sign < 0.5, policy.increasing)
        return jnp.where(chance < policy.probability, operation, SKIP), argument

    return jax.vmap(draw)(keys)


def apply_operations(
    image: jax.Array, operations: jax.Array, arguments: jax.Array, fill: Sequence[int] = (124, 116, 104)
) -> jax.Array:
    """Applies one operation after another to one image.

    Args:
        image: uint8[H, W, 3].
        operations: int32[L], numbers of OPERATIONS, or SKIP.
        arguments: float32[L], see `level_to_argument`.
        fill: RGB grey levels of the pixels that geometric operations uncover.

    Returns:
        uint8[H, W, 3].
    """
    height, width, _ = image.shape
    first_warp = len(_POINTWISE)
    # The geometric operations share one branch, and differ in the matrix alone.
    branches = [lambda image, argument, matrix, op=op: op(image, argument) for op in _POINTWISE]
    branches.append(lambda image, argument, matrix: geometry.warp(image, matrix, fill))
    branches.append(lambda image, argument, matrix: image)

    def layer(image, drawn):
        operation, argument = drawn
        matrices = jnp.stack([matrix(argument, height, width) for matrix in _MATRICES])
        matrix = matrices[jnp.clip(operation - first_warp, 0, len(_MATRICES) - 1)]
        branch = jnp.where(operation == SKIP, first_warp + 1, jnp.minimum(operation, first_warp))
        return jax.lax.switch(branch, branches, image, argument, matrix), None

    planar, _ = jax.lax.scan(layer, rearrange(image, "h w c -> c h w"), (operations, arguments))
    return rearrange(planar, "c h w -> h w c")
