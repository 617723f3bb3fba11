"""Predictions for single images: top classes and probabilities, decisions by head, and how often they differ."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.evaluation.heads import heads, outputs_of
from deit_jax.models.protocol import ModelOutput

HEADS = ("class", "distillation", "both")  # in this order
PredictStep = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
Decisions = dict[str, np.ndarray]  # name -> int32[N], the predicted class of each image
DecideStep = Callable[[Any, jax.Array], dict[str, jax.Array]]


class Predictions(NamedTuple):
    """The model's top k classes for N images (its two heads fused by `fusion`).

    classes: int32[N, k], most probable first, among equals the lower index. probabilities: float32[N, k], softmax.
    labels: int32[N]. positions: int64[N], indices of the images with mask True, in the batches' order.
    """

    classes: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray
    positions: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """bool[N]: whether the top class is the label."""
        return self.classes[:, 0] == self.labels


@functools.cache
def make_predict_step(
    model: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...], first: int = 3
) -> PredictStep:
    """Returns the jitted function (variables, uint8[B, H, W, 3]) -> classes int32[B, k], probabilities float32[B, k]."""
    outputs = outputs_of(model, mean, std)

    @jax.jit
    def predict(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = outputs(variables, images).logits
        probabilities, classes = jax.lax.top_k(jax.nn.softmax(logits), min(first, logits.shape[-1]))
        return classes, probabilities

    return predict


def predict(step: PredictStep, variables: Any, batches: Iterable[dict[str, jax.Array]]) -> Predictions:
    """Predicts all images of `batches` ("image", "label", "mask"), in order, in a single process."""
    rows: list[tuple[np.ndarray, ...]] = []
    masks = []
    for batch in batches:
        outputs = step(variables, batch["image"])
        *values, mask = jax.device_get((*outputs, batch["label"], batch["mask"]))
        rows.append(tuple(value[mask] for value in values))
        masks.append(mask)
    classes, probabilities, labels = (np.concatenate(column) for column in zip(*rows, strict=True))
    return Predictions(classes, probabilities, labels, np.flatnonzero(np.concatenate(masks)))


def predictions_by_head(output: ModelOutput) -> dict[str, jax.Array]:
    """Returns logits float32[B, K] by head: "class" of a plain model, else also "distillation" and "both", the model's own."""
    logits = heads(output)
    return logits if len(logits) == 1 else {head: logits.get(head, output.logits) for head in HEADS}


@functools.cache  # networks of one kind share the compiled function
def make_decide_step(model: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...]) -> DecideStep:
    """Returns the jitted function (variables, uint8[B, H, W, 3]) -> argmax int32[B] by head, of equal logits the first."""
    outputs = outputs_of(model, mean, std)

    @jax.jit
    def decide(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        by_head = predictions_by_head(outputs(variables, images))
        return {head: jnp.argmax(logits, axis=-1).astype(jnp.int32) for head, logits in by_head.items()}

    return decide


def decide(
    decide_step: DecideStep, variables: Any, batches: Iterable[dict[str, jax.Array]]
) -> tuple[Decisions, np.ndarray]:
    """Returns every head's decisions on all images of `batches` ("image", "label", "mask"), and labels int32[N], in order."""
    rows: dict[str, list[np.ndarray]] = {}
    labels = []
    for batch in batches:
        by_head, mask = jax.device_get((decide_step(variables, batch["image"]), batch["mask"]))
        for head, classes in by_head.items():
            rows.setdefault(head, []).append(classes[mask])
        labels.append(np.asarray(batch["label"])[mask])
    # A jitted function returns its dict sorted by key.
    return {head: np.concatenate(rows[head]) for head in HEADS if head in rows}, np.concatenate(labels)


def disagreement(decisions: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the share of images on which classifiers differ (paper, section 5.2, Table 4): symmetric float64[n, n].

    decisions: int[N] each, of the same images in the same order; the labels may be one of them, whose row is then the error.
    Raises ValueError if they are empty or differ in length.
    """
    lengths = {name: len(classes) for name, classes in decisions.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        raise ValueError(f"decisions on {lengths} images cannot be compared: give all of them for the same images")
    table = np.stack([np.asarray(classes) for classes in decisions.values()])
    return np.mean(table[:, None] != table[None, :], axis=-1)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts images by label (row) and predicted class (column): int64[K, K]."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def spread_indices(num_images: int, count: int) -> np.ndarray:
    """Returns `count` evenly spaced indices of `num_images` (at most all), so that images sorted by class all occur. int64."""
    count = min(count, num_images)
    return np.arange(count) * num_images // max(count, 1)
