from pathlib import Path

import jax
import numpy as np
import pytest

from deit_jax.data.decoding import CenterCrop, decode
from deit_jax.models import create_model
from tests.tiny import STUDENT

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def photographs():
    """Two real photographs as a network of 28 pixels sees them: uint8[2, 28, 28, 3]."""
    files = [(GOLDEN / f"crops_{name}.jpg").read_bytes() for name in ("china", "flower")]
    return np.stack([CenterCrop(28)(decode(file)) for file in files])


@pytest.fixture(scope="session")
def transformer():
    """A small distilled transformer with random weights: (model, NumPy variables). 2 blocks, 2 heads, 2 x 2 patches."""
    model = create_model("deit_tiny_distilled_patch16_224", 10, 28, **STUDENT)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 28, 28, 3), np.float32))
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda s: rng.normal(0, 0.4, s.shape).astype(np.float32), shapes)
