"""Distance of DeiT-Ti's logits and gradients from float64, for each compute dtype and dtype of the residual stream.

    python benchmarks/precision.py

Random weights, eight images of noise, one forward and backward pass of the cross-entropy on the CPU; only the dtypes differ.
Prints relative L2 distances of the logits and of the whole gradient.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from deit_jax.models import create_model
from deit_jax.training.losses import cross_entropy

_MODEL = flags.DEFINE_string("model", "deit_tiny_patch16_224", "a DeiT")
_IMAGES = flags.DEFINE_integer("images", 8, "images")

CASES = (("float32", "compute"), ("bfloat16", "compute"), ("bfloat16", "float32"))  # dtype, residual_dtype


def answer(variables, images, targets, **fields):
    """Returns logits [N, 1000] and the gradient of all parameters as one vector, in float64 on the host."""
    model = create_model(_MODEL.value, **fields)

    def loss_of(params):
        logits = model.apply({"params": params}, images).logits
        return cross_entropy(logits, targets), logits

    gradients, logits = jax.jit(jax.grad(loss_of, has_aux=True))(variables["params"])
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradients)]
    return np.asarray(logits, np.float64), np.concatenate(leaves)


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def main(_):
    jax.config.update("jax_enable_x64", True)
    random = np.random.default_rng(0)
    images = random.normal(size=(_IMAGES.value, 224, 224, 3)).astype(np.float32)
    targets = np.eye(1000, dtype=np.float32)[random.integers(0, 1000, _IMAGES.value)]
    shapes = jnp.zeros((1, 224, 224, 3), jnp.float32)
    variables = jax.jit(create_model(_MODEL.value).init)(jax.random.key(0), shapes)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    truth = answer(wide, images.astype(np.float64), targets.astype(np.float64), dtype=jnp.float64)
    print(f"{'dtype':10}{'residual':10}{'logits':>10}{'gradient':>10}")
    for dtype, residual in CASES:
        logits, gradient = answer(variables, images, targets, dtype=jnp.dtype(dtype), residual_dtype=residual)
        print(f"{dtype:10}{residual:10}{distance(logits, truth[0]):10.3%}{distance(gradient, truth[1]):10.3%}")


if __name__ == "__main__":
    app.run(main)
