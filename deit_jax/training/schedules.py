"""Learning rate schedules."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Schedule = Callable[[jax.Array | int], jax.Array]


def cosine_schedule(
    *,
    peak: float,
    warmup: float,
    minimum: float,
    epochs: int,
    warmup_epochs: float,
    steps_per_epoch: int,
    kind: str,
    per_step: bool,
) -> Schedule:
    """Returns timm's CosineLRScheduler as a function from step (int32 scalar) to learning rate (float32 scalar).

    Linear warm-up from `warmup`, then a cosine from `peak` to `minimum`. The cosine's clock also runs during the warm-up
    (warmup_prefix=False), so the rate does not quite reach `peak`.

    Args:
      peak, warmup, minimum: rates, which are not scaled here.
      kind: "released": the rate lags one epoch, as in the published training code, which sets the rate of epoch e before epoch
        e + 1: epochs 0 and 1 both run at `warmup`. "plain": no lag (timm's own training script).
      per_step: the rate changes every step (timm's --sched-on-updates) instead of every epoch.

    Raises ValueError for an unknown kind.
    """
    if kind not in ("released", "plain"):
        raise ValueError(f"schedule kind {kind!r} is neither 'released' nor 'plain'")
    # A table, computed in float64 on the host: float32 in the graph would drift from PyTorch's rates in the sixth digit.
    count = epochs * steps_per_epoch if per_step else epochs
    epoch = np.arange(count) / (steps_per_epoch if per_step else 1)
    if kind == "released":
        epoch = np.maximum(epoch - 1, 0)
    rising = warmup + epoch * (peak - warmup) / max(warmup_epochs, 1e-12)
    falling = minimum + 0.5 * (peak - minimum) * (1 + np.cos(np.pi * np.minimum(epoch / epochs, 1.0)))
    table = np.where(epoch < warmup_epochs, rising, falling).astype(np.float32)

    def schedule(step: jax.Array | int) -> jax.Array:
        index = jnp.asarray(step) if per_step else jnp.asarray(step) // steps_per_epoch
        return jnp.asarray(table)[jnp.clip(index, 0, len(table) - 1)]

    return schedule
