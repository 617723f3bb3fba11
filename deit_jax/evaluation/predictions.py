"""What a network answers to single images: its first classes and their probabilities."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from deit_jax.evaluation.heads import outputs_of

PredictStep = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]


class Predictions(NamedTuple):
    """Of N images, the first k classes of the model's own answer (two heads fused as its `fusion` says).

    classes: int32[N, k], the most probable first, of equals the lower number. probabilities: float32[N, k] of these, softmax.
    labels: int32[N]. positions: int64[N], which of the images in the batches' order: those whose mask is set.
    """

    classes: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray
    positions: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """bool[N]: whether the first class is the label."""
        return self.classes[:, 0] == self.labels


@functools.cache
def make_predict_step(
    model: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...], first: int = 3
) -> PredictStep:
    """The jitted function (variables, uint8[B, H, W, 3]) -> (int32[B, k], float32[B, k]), as `Predictions` has them."""
    outputs = outputs_of(model, mean, std)

    @jax.jit
    def predict(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = outputs(variables, images).logits
        probabilities, classes = jax.lax.top_k(jax.nn.softmax(logits), min(first, logits.shape[-1]))
        return classes, probabilities

    return predict


def predict(step: PredictStep, variables: Any, batches: Iterable[dict[str, jax.Array]]) -> Predictions:
    """The answers to all images of `batches` ("image", "label", "mask"), in order; of a single process."""
    found: list[tuple[np.ndarray, ...]] = []
    masks = []
    for batch in batches:
        answers = step(variables, batch["image"])
        *values, mask = jax.device_get((*answers, batch["label"], batch["mask"]))
        found.append(tuple(value[mask] for value in values))
        masks.append(mask)
    classes, probabilities, labels = (np.concatenate(column) for column in zip(*found, strict=True))
    return Predictions(classes, probabilities, labels, np.flatnonzero(np.concatenate(masks)))


def confusion_matrix(labels: np.ndarray, decided: np.ndarray, num_classes: int) -> np.ndarray:
    """int64[K, K]: how many images of a class (row) were given a class (column)."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, decided), 1)
    return counts


def spread_indices(num_images: int, count: int) -> np.ndarray:
    """`count` of `num_images` indices, or all, evenly spread: of images sorted by class each has its share. int64."""
    count = min(count, num_images)
    return np.arange(count) * num_images // max(count, 1)
