"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) as in timm 0.3.2, within groups of rows.

A group is `group_size` consecutive rows of the global batch. It replaces the reference's batch of one GPU, independently of the
hardware. A row is mixed with its mirror in the group, so rows stay on their device if devices hold whole groups. timm's
modes differ in what shares a draw: a group ("batch"), a row and its partner ("pair"), or nothing ("elem": per row).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from scipy import special

MODES = ("batch", "pair", "elem")


class Mix(NamedTuple):
    """N draws; each applies to B / N consecutive rows of a batch of B.

    Attributes:
        lam: float32[N], the weight of a row's own label; 1 if the row is not mixed.
        cutmix: bool[N], True if pixels come from a box of the partner, False if both images are averaged.
        box: int32[N, 4], CutMix's box (top, bottom, left, right), bottom and right exclusive; zeros for mixup.
    """

    lam: jax.Array
    cutmix: jax.Array
    box: jax.Array


def fold_in_each(key: jax.Array, numbers: jax.Array) -> jax.Array:
    """Derives keys[N], one for each number in int32[N], e.g. a row's position in the global batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)


def cutmix_box(lam: jax.Array, center: jax.Array, image_size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Returns CutMix's box around a center, clipped to the image, int32[4], and the share of the image outside it, float32[].

    As in timm 0.3.2 the half side is cut // 2, so an odd side loses a pixel (not so in timm 1.x). lam: float32[], the drawn
    share of the row's own image. center: int32[2], (y, x). image_size: (height, width) in pixels.
    """
    size = jnp.asarray(image_size, jnp.int32)
    half = (size * jnp.sqrt(1 - lam)).astype(jnp.int32) // 2
    low, high = jnp.clip(center - half, 0, size), jnp.clip(center + half, 0, size)
    box = jnp.stack([low[0], high[0], low[1], high[1]])
    return box, 1 - jnp.prod(high - low) / (image_size[0] * image_size[1])


def symmetric_beta(share: jax.Array, alpha: float) -> jax.Array:
    """Maps uniform shares in [0, 1) to draws from Beta(alpha, alpha) by its quantile function, with an error of at most 1e-6.

    `jax.random.beta` uses rejection sampling, which takes seconds to compile and synchronises devices in every iteration. share
    and result: float32 of any shape; alpha: greater than 0.
    """
    # As a function of share^(1 / alpha) the lower half is almost linear; the upper half is its mirror.
    knots = np.linspace(0, 0.5 ** (1 / alpha), 1025)
    quantiles = special.betaincinv(alpha, alpha, knots**alpha)
    lower = jnp.minimum(share, 1 - share) ** (1 / alpha)
    quantile = jnp.interp(lower, jnp.asarray(knots, jnp.float32), jnp.asarray(quantiles, jnp.float32))
    return jnp.where(share < 0.5, quantile, 1 - quantile)


def draw_mix_of_rows(
    key: jax.Array, batch_size: int, group_size: int, mode: str, image_size: tuple[int, int], **options: float
) -> Mix:
    """Draws the mixing of a batch: Mix of B / group_size draws ("batch") or B draws.

    Args:
        key: one PRNG key.
        batch_size: B, a multiple of group_size.
        group_size: rows per group; even.
        mode: "batch": one draw per group, keyed by the group's number; "pair" and "elem": one draw per pair or per row, keyed
            by the position of the (first) row.
        image_size: (height, width) in pixels.
        options: passed to `draw_mix`.

    Raises ValueError for an unknown mode, or if both alphas are 0.
    """
    if mode not in MODES:
        raise ValueError(f"mix mode {mode!r} is not one of {', '.join(MODES)}")
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
    """Returns Mix of N draws, one per number and keyed by it; raises ValueError if both alphas are 0.

    Args:
        key: one PRNG key.
        numbers: int32[N].
        image_size: (height, width) in pixels.
        mixup_alpha: mixup's lam ~ Beta(alpha, alpha); 0 disables mixup.
        cutmix_alpha: the same for CutMix.
        mix_probability: that a draw mixes.
        switch_probability: that a draw which mixes is CutMix, if both are enabled.
    """
    if mixup_alpha <= 0 and cutmix_alpha <= 0:
        raise ValueError("mixing needs mixup_alpha or cutmix_alpha greater than 0")

    def draw(key: jax.Array) -> Mix:
        # One call for all numbers: every call compiles another generator.
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
    """Mixes every row of images, float32[B, H, W, C], with its mirror in the group.

    mix: N draws; N divides B, and draw n applies to rows n * B/N to (n + 1) * B/N. group_size: rows per group; None: B/N.
    """
    height, width = images.shape[1:3]
    top, bottom, left, right = (edge[:, None, None] for edge in mix.box.T)
    y, x = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None, :]
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    # CutMix is mixup with a weight of 0 or 1 for each pixel.
    own = jnp.where(mix.cutmix[:, None, None], ~inside, mix.lam[:, None, None])
    return _with_mirror(images, own.astype(images.dtype)[..., None], group_size)


def smoothed_one_hot(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Returns targets float32[B, K] for labels int32[B]: 1 - smoothing + smoothing / K at the label, smoothing / K elsewhere."""
    off = smoothing / num_classes
    is_label = labels[:, None] == jnp.arange(num_classes)
    return jnp.where(is_label, jnp.float32(1 - smoothing + off), jnp.float32(off))


def mix_targets(targets: jax.Array, mix: Mix, group_size: int | None = None) -> jax.Array:
    """Mixes every row's target, float32[B, K], with its mirror's, weighted by lam; see `mix_images` for the arguments."""
    return _with_mirror(targets, mix.lam[:, None], group_size)


def _with_mirror(rows: jax.Array, own: jax.Array, group_size: int | None) -> jax.Array:
    """Returns rows * own + mirrored rows * (1 - own), for rows[B, ...] and own[N, ...]."""
    draws = len(own)
    group_size = group_size or len(rows) // draws
    mirrored = rearrange(rearrange(rows, "(g n) ... -> g n ...", n=group_size)[:, ::-1], "g n ... -> (g n) ...")
    rows, mirrored = (rearrange(x, "(n r) ... -> n r ...", n=draws) for x in (rows, mirrored))
    own = own[:, None]
    return rearrange(rows * own + mirrored * (1 - own), "n r ... -> (n r) ...")
