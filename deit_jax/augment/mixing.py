"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) as timm 0.3.2 does them, in groups of rows.

A group is `group_size` consecutive rows of the global batch: the batch of one GPU in the reference, made independent of
the hardware. A row's partner is its mirror in the group, so that rows stay on their device wherever devices hold whole
groups. timm's modes differ in who shares a draw: a group ("batch"), a row and its partner ("pair"), or nobody ("elem": the
partner may be mixed otherwise).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from scipy import special

from deit_jax.augment.keys import fold_in_each

MODES = ("batch", "pair", "elem")


class Mix(NamedTuple):
    """N draws; each goes for as many consecutive rows of a batch as the N divide it into.

    Attributes:
        lam: float32[N], the share of a row's own label; 1 where it is not mixed.
        cutmix: bool[N], True where pixels come from a box of the partner, False where both images are averaged.
        box: int32[N, 4], CutMix's box (top, bottom, left, right), bottom and right exclusive; zeros under mixup.
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


def draw_mix_of_rows(
    key: jax.Array, batch_size: int, group_size: int, mode: str, image_size: tuple[int, int], **options: float
) -> Mix:
    """The draws of a batch.

    Args:
        key: one PRNG key.
        batch_size: B, a multiple of group_size.
        group_size: rows of a group; even.
        mode: "batch": a draw a group, keyed by the group's number; "pair" and "elem": a draw a pair of rows or a row,
            keyed by the position of the pair's first row or the row.
        image_size: (height, width) in pixels.
        options: those of `draw_mix`.

    Returns:
        Mix of B / group_size draws ("batch") or B draws.

    Raises:
        ValueError: unknown mode, or both alphas are 0.
    """
    if mode not in MODES:
        raise ValueError(f"mix mode {mode!r} is none of {', '.join(MODES)}")
    if mode == "batch":
        return draw_mix(key, jnp.arange(batch_size // group_size), image_size, **options)
    if mode == "elem":
        return draw_mix(key, jnp.arange(batch_size), image_size, **options)
    rows = rearrange(jnp.arange(batch_size), "(g n) -> g n", n=group_size)
    half = group_size // 2
    mix = draw_mix(key, rows[:, :half].reshape(-1), image_size, **options)

    def mirror(draws: jax.Array) -> jax.Array:  # the second half of a group repeats the first, backwards
        draws = rearrange(draws, "(g n) ... -> g n ...", n=half)
        return rearrange(jnp.concatenate([draws, draws[:, ::-1]], 1), "g n ... -> (g n) ...")

    return jax.tree.map(mirror, mix)


def draw_mix(
    key: jax.Array,
    numbers: jax.Array,
    image_size: tuple[int, int],
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    mix_probability: float = 1.0,
    switch_probability: float = 0.5,
) -> Mix:
    """A draw for each number, keyed by it.

    Args:
        key: one PRNG key.
        numbers: int32[N].
        image_size: (height, width) in pixels.
        mixup_alpha: mixup's lam ~ Beta(alpha, alpha); 0 = mixup off.
        cutmix_alpha: the same for CutMix.
        mix_probability: that a draw mixes at all.
        switch_probability: that one that mixes is CutMix, when both are on.

    Returns:
        Mix of N draws.

    Raises:
        ValueError: both alphas are 0.
    """
    if mixup_alpha <= 0 and cutmix_alpha <= 0:
        raise ValueError("mixing needs mixup_alpha or cutmix_alpha above 0")

    def draw(key: jax.Array) -> Mix:
        # One call for all the numbers: every call compiles a generator of its own.
        chance, switch, share, *place = jax.random.uniform(key, (5,))
        if mixup_alpha > 0 and cutmix_alpha > 0:
            cutmix = switch < switch_probability
            lam = jnp.where(cutmix, symmetric_beta(share, cutmix_alpha), symmetric_beta(share, mixup_alpha))
        else:
            cutmix = jnp.asarray(cutmix_alpha > 0)
            lam = symmetric_beta(share, cutmix_alpha or mixup_alpha)
        mixed = chance < mix_probability
        lam = jnp.where(mixed, lam, 1.0)
        center = jnp.floor(jnp.stack(place) * jnp.asarray(image_size)).astype(jnp.int32)
        box, lam_of_box = cutmix_box(lam, center, image_size)
        cutmix = cutmix & mixed
        return Mix(jnp.where(cutmix, lam_of_box, lam), cutmix, jnp.where(cutmix, box, 0))

    return jax.vmap(draw)(fold_in_each(key, numbers))


def mix_images(images: jax.Array, mix: Mix, group_size: int | None = None) -> jax.Array:
    """Mixes every row with its mirror in the group.

    Args:
        images: float32[B, H, W, C].
        mix: N draws, N a divisor of B; draw n goes for rows n * B/N to (n + 1) * B/N.
        group_size: rows of a group; None: B/N, the rows of a draw.

    Returns:
        float32[B, H, W, C].
    """
    height, width = images.shape[1:3]
    top, bottom, left, right = (edge[:, None, None] for edge in mix.box.T)
    y, x = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None, :]
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    # CutMix is mixup with a weight of 0 or 1 for each pixel.
    own = jnp.where(mix.cutmix[:, None, None], ~inside, mix.lam[:, None, None])
    return _with_mirror(images, own.astype(images.dtype)[..., None], group_size)


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


def mix_targets(targets: jax.Array, mix: Mix, group_size: int | None = None) -> jax.Array:
    """Mixes every row's target with its mirror's, by its lam.

    Args:
        targets: float32[B, K].
        mix: the same as the images'.
        group_size: the same as the images'.

    Returns:
        float32[B, K].
    """
    return _with_mirror(targets, mix.lam[:, None], group_size)


def _with_mirror(rows: jax.Array, own: jax.Array, group_size: int | None) -> jax.Array:
    """rows * own + mirrored rows * (1 - own), for rows[B, ...] and own[N, ...]."""
    draws = len(own)
    group_size = group_size or len(rows) // draws
    mirrored = rearrange(rearrange(rows, "(g n) ... -> g n ...", n=group_size)[:, ::-1], "g n ... -> (g n) ...")
    rows, mirrored = (rearrange(x, "(n r) ... -> n r ...", n=draws) for x in (rows, mirrored))
    own = own[:, None]
    return rearrange(rows * own + mirrored * (1 - own), "n r ... -> (n r) ...")
