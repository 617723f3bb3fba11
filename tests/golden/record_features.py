"""Records what PyTorch computes for the feature losses and their gradients in float64, for tests/training/test_features.py.

It writes tests/golden/features.npz, by "<case>/<loss>/<name>" of tests/training/feature_reference.py:

    python tests/golden/record_features.py

with an interpreter that has torch (recorded with torch 2.13.0).
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests/training"))
from feature_reference import CASES, LOSSES, reference

out = {
    f"{case}/{loss}/{name}": value for case in CASES for loss in LOSSES for name, value in reference(case, loss).items()
}
np.savez_compressed(Path(__file__).with_name("features.npz"), **out)
