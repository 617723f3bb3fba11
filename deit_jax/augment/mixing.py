"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) as timm 0.3.2's batch mode does them, in groups of rows.

A group is `group_size` consecutive rows of the global batch: the batch of one GPU in the reference, made independent of
the hardware. A group has one draw, and a row's partner is its mirror in the group, so that rows stay on their device
wherever devices hold whole groups.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from scipy import special

from deit_jax.augment.keys import fold_in_each


class Mix(NamedTuple):
    """What happens to each of G groups.

    Attributes:
        lam: float32[G], the share of a row's own label; 1 where the group is not mixed.
        cutmix: bool[G], True where pixels come from a box of the partner, False where both images are averaged.
        box: int32[G, 4], CutMix's box (top, bottom, left, right), bottom and right exclusive; zeros under mixup.
    """

    lam: jax.Array
    cutmix: jax.Array
    box: jax.Array


def cutmix_box(lam: jax.Array, center: jax.Array, image_size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """CutMix's box around a centre, clipped to the image, and the share of the image that lies outside it.

    As in timm 0.3.2 the half side is cut // 2, so that an odd side loses a pixel (timm 1.x does not).

    Args:
        lam: float32[], drawn share of the row's own image.
        center: int32[2], (y, x).
        image_size: (height, width) in pixels.

    Returns:
        (box int32[4]: (top, bottom, left, right), lam float32[]: 1 - area / (height * width)).
    """
    size = jnp.asarray(image_size, jnp.int32)
    half = (size * jnp.sqrt(1 - lam)).astype(jnp.int32) // 2
    low, high = jnp.clip(center - half, 0, size), jnp.clip(center + half, 0, size)
    box = jnp.stack([low[0], high[0], low[1], high[1]])
    return box, 1 - jnp.prod(high - low) / (image_size[0] * image_size[1])


def symmetric_beta(share: jax.Array, alpha: float) -> jax.Array:
    """The quantile function of Beta(alpha, alpha): a uniform share becomes a draw, to within 1e-6.

    `jax.random.beta` loops until it accepts, which compiles for seconds and synchronises devices in every turn.

    Args:
        share: float32, any shape, in [0, 1).
        alpha: above 0.

    Returns:
        float32 of the same shape, in [0, 1].
    """
    # In terms of share^(1 / alpha) the lower half is almost straight; the upper half is its mirror.
    knots = np.linspace(0, 0.5 ** (1 / alpha), 1025)
    quantiles = special.betaincinv(alpha, alpha, knots**alpha)
    lower = jnp.minimum(share, 1 - share) ** (1 / alpha)
    quantile = jnp.interp(lower, jnp.asarray(knots, jnp.float32), jnp.asarray(quantiles, jnp.float32))
    return jnp.where(share < 0.5, quantile, 1 - quantile)


def draw_mix(
    key: jax.Array,
    num_groups: int,
    image_size: tuple[int, int],
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    mix_probability: float = 1.0,
    switch_probability: float = 0.5,
) -> Mix:
    """One draw a group, keyed by the group's number.

    Args:
        key: one PRNG key.
        num_groups: G.
        image_size: (height, width) in pixels.
        mixup_alpha: mixup's lam ~ Beta(alpha, alpha); 0 = mixup off.
        cutmix_alpha: the same for CutMix.
        mix_probability: that a group is mixed at all.
        switch_probability: that a mixed group gets CutMix, when both are on.

    Returns:
        Mix of G groups.

    Raises:
        ValueError: both alphas are 0.
    """
    if mixup_alpha <= 0 and cutmix_alpha <= 0:
        raise ValueError("mixing needs mixup_alpha or cutmix_alpha above 0")

    def draw(key):
        # One call for all the numbers: every call compiles a generator of its own.
        chance, switch, share, *center = jax.random.uniform(key, (5,))
        if mixup_alpha > 0 and cutmix_alpha > 0:
            cutmix = switch < switch_probability
            lam = jnp.where(cutmix, symmetric_beta(share, cutmix_alpha), symmetric_beta(share, mixup_alpha))
        else:
            cutmix = jnp.asarray(cutmix_alpha > 0)
            lam = symmetric_beta(share, cutmix_alpha or mixup_alpha)
        mixed = chance < mix_probability
        lam = jnp.where(mixed, lam, 1.0)
        center = jnp.floor(jnp.stack(center) * jnp.asarray(image_size)).astype(jnp.int32)
        box, lam_of_box = cutmix_box(lam, center, image_size)
        cutmix = cutmix & mixed
        return Mix(jnp.where(cutmix, lam_of_box, lam), cutmix, jnp.where(cutmix, box, 0))

    return jax.vmap(draw)(fold_in_each(key, jnp.arange(num_groups)))


def mix_images(images: jax.Array, mix: Mix) -> jax.Array:
    """Mixes every row with its mirror in the group.

    Args:
        images: float32[B, H, W, C]; B is a multiple of the number of groups.
        mix: the draws of G groups; group g is rows g * B/G to (g + 1) * B/G.

    Returns:
        float32[B, H, W, C].
    """
    height, width = images.shape[1:3]
    top, bottom, left, right = (edge[:, None, None] for edge in mix.box.T)
    y, x = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None, :]
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    # CutMix is mixup with a weight of 0 or 1 for each pixel.
    own = jnp.where(mix.cutmix[:, None, None], ~inside, mix.lam[:, None, None])
    own = rearrange(own.astype(images.dtype), "g h w -> g 1 h w 1")
    rows = rearrange(images, "(g n) h w c -> g n h w c", g=len(mix.lam))
    return rearrange(rows * own + rows[:, ::-1] * (1 - own), "g n h w c -> (g n) h w c")


def smoothed_one_hot(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Targets with label smoothing: 1 - eps + eps / K at the label, eps / K elsewhere.

    Args:
        labels: int32[B].
        num_classes: K.
        smoothing: eps.

    Returns:
        float32[B, K]; rows sum to 1.
    """
    off = smoothing / num_classes
    is_label = labels[:, None] == jnp.arange(num_classes)
    return jnp.where(is_label, jnp.float32(1 - smoothing + off), jnp.float32(off))


def mix_targets(targets: jax.Array, mix: Mix) -> jax.Array:
    """Mixes every row's target with its mirror's, by the group's lam.

    Args:
        targets: float32[B, K].
        mix: the draws of G groups, the same as the images'.

    Returns:
        float32[B, K].
    """
    lam = mix.lam[:, None, None]
    rows = rearrange(targets, "(g n) k -> g n k", g=len(mix.lam))
    return rearrange(rows * lam + rows[:, ::-1] * (1 - lam), "g n k -> (g n) k")
