"""Colour jitter as torchvision's ColorJitter: brightness, contrast and saturation by random factors, in random order."""

import dataclasses

import jax
import jax.numpy as jnp

from deit_jax.augment.operations import NUMBER


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """How far the factors go: each is uniform in [max(0, 1 - strength), 1 + strength].

    Attributes:
        strength: of brightness, contrast and saturation alike (timm's color_jitter; hue stays as it is).
    """

    strength: float = 0.4

    def draw(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draws each image's factors and their order.

        Args:
            keys: keys[B], one an image.

        Returns:
            (operations int32[B, 3], a permutation of Brightness, Contrast and Color; arguments float32[B, 3]).
        """
        adjustments = jnp.asarray([NUMBER[name] for name in ("Brightness", "Contrast", "Color")])
        low = max(0.0, 1 - self.strength)

        def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            # One call for all the numbers: every call compiles a generator of its own.
            order, share = jax.random.uniform(key, (2, 3))
            return adjustments[jnp.argsort(order)], low + (1 + self.strength - low) * share

        return jax.vmap(draw)(keys)
