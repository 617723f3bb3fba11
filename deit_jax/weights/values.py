"""Values that make every answer NaN."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deit_jax.weights.errors import listed, shown

_EPSILON = 1e-5  # that BatchNorm adds to a variance
_VARIANCES = ("running_var", "/var")  # of BatchNorm: PyTorch's name and ours


def unusable_values(tensors: Mapping[str, np.ndarray]) -> str:
    """Which tensors hold NaN, infinite numbers or negative variances, as float32, and how many; "" if none does."""
    found = []
    for name, tensor in tensors.items():
        with np.errstate(over="ignore"):
            values = np.asarray(tensor, np.float32)
        counts: tuple[tuple[int, str], ...] = ()
        if not np.isfinite(values).all():
            counts = ((int(np.isnan(values).sum()), "NaN"), (int(np.isinf(values).sum()), "infinite"))
        elif name.endswith(_VARIANCES):
            counts = ((int((values <= -_EPSILON).sum()), "negative"),)
        found += [f"{shown(name)}: {count} of {values.size} {kind}" for count, kind in counts if count]
    return listed(found) if found else ""
