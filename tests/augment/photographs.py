"""The recorded photo crops and the results of timm and Pillow (tests/golden/record_augment.py)."""

import pathlib

import numpy as np

from deit_jax.augment.operations import OPERATIONS

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "augment_operations.npz")  # images are [36, 44, 3]
FILL = (124, 116, 104)
WITHIN_ONE_LEVEL = ("AutoContrast", "Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
CASES = [(name, case) for name in OPERATIONS for case in range(len(GOLDEN["cases"])) if f"{name}_{case}" in GOLDEN]


def recorded_case(name, case):
    """(photo, argument, timm's result)."""
    photo = GOLDEN["cases"][case][2]
    return GOLDEN[str(photo)], GOLDEN[f"{name}_{case}_argument"].astype(np.float32), GOLDEN[f"{name}_{case}"]


def difference(ours, others):
    return np.abs(np.asarray(ours).astype(int) - np.asarray(others).astype(int))


def assert_equals_pillow(name, ours, pillow):
    """Exact operations must be equal; the others may differ by one gray level, warps in few pixels.

    AutoContrast can be one level off wherever a channel has a certain level.
    """
    off = difference(ours, pillow)
    if name in WITHIN_ONE_LEVEL:
        assert off.max() <= 1
        assert name == "AutoContrast" or np.mean(off > 0) < 4e-3
    else:
        assert off.max() == 0
