"""What the recorded peers and our tests of foreign layouts have in common: the weights and the small DeiT.

A layout is the names and shapes of one library's state dict. Weights are not kept: both sides compute them with
`layout_tensor`, from the peer's own names, so that a golden answer depends on no translation between layouts. This
file needs NumPy only, because tests/golden/record_layouts.py imports it too.
"""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"

# The small DeiT, plain and distilled: what differs from deit_tiny_patch16_224 and its distilled twin.
SMALL = {"image_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
LAYER_NORM_EPSILON = 1e-6
MLP_RATIO = 4
REGNET_IMAGE_SIZE = 64
PHOTOGRAPHS = 2


def layout_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 tensor behind a name of any layout: uniform noise seeded by the name, scaled by its role.

    The scales keep logits near 1, so that an error in any tensor moves them. Roles are read off the endings that the
    layouts share, and off the shape.
    """
    noise = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1.0, 1.0, shape) * 3**0.5  # mean 0, variance 1
    fan_in = int(np.prod(shape[1:], dtype=np.int64))
    if name.endswith("running_var"):
        values = 1.0 + 0.4 * noise
    elif name.endswith(("running_mean", "bias")):
        values = 0.1 * noise
    elif name.endswith((".c_bn.weight", ".c.1.weight")):  # last BatchNorm of pycls's and torchvision's branch: quieter
        values = 0.3 + 0.1 * noise
    elif len(shape) == 1:  # LayerNorm and BatchNorm scales
        values = 1.0 + 0.2 * noise
    elif name.endswith(("_token", "pos_embed", "position_embeddings")):
        values = 0.5 * noise
    elif len(shape) == 4 and not any(part in name for part in ("patch_embed", ".se.", ".proj.")):  # before a ReLU
        values = (2.0 / fan_in) ** 0.5 * noise
    else:
        values = fan_in**-0.5 * noise
    return values.astype(np.float32)


def layout_shapes() -> dict[str, dict[str, dict[str, tuple[int, ...]]]]:
    """The recorded state dicts: layout to model to tensor name to shape."""
    with gzip.open(GOLDEN / "layouts_names.json.gz", "rt") as file:
        recorded = json.load(file)
    return {
        layout: {model: {name: tuple(shape) for name, shape in tensors.items()} for model, tensors in models.items()}
        for layout, models in recorded.items()
    }


def layout_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The state dict of a golden model; BatchNorm's counters are 0."""
    return {
        name: np.zeros(shape, np.int64) if name.endswith("num_batches_tracked") else layout_tensor(name, shape)
        for name, shape in shapes.items()
    }
