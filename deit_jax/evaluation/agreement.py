"""On how many images classifiers decide differently (paper, section 5.2, Table 4)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.evaluation.heads import heads, outputs_of
from deit_jax.models.output import ModelOutput

HEADS = ("class", "distillation", "both")  # in this order
Decisions = dict[str, np.ndarray]  # name -> int32[N], the class that each image was given
DecideStep = Callable[[Any, jax.Array], dict[str, jax.Array]]


def answers(output: ModelOutput) -> dict[str, jax.Array]:
    """The answers that are compared, float32[B, K] by head: "class" of a plain model, else also "distillation" and "both".

    "both" is the model's own answer, fused as its `fusion` says.
    """
    found = heads(output)
    return found if len(found) == 1 else {head: found.get(head, output.logits) for head in HEADS}


@functools.cache  # networks of one kind share the compiled function
def make_decide_step(model: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...]) -> DecideStep:
    """The jitted function (variables, uint8[B, H, W, 3]) -> int32[B] by head: argmax, of equal logits the lower class."""
    outputs = outputs_of(model, mean, std)

    @jax.jit
    def decide(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        by_head = answers(outputs(variables, images))
        return {head: jnp.argmax(logits, axis=-1).astype(jnp.int32) for head, logits in by_head.items()}

    return decide


def decide(
    decide_step: DecideStep, variables: Any, batches: Iterable[dict[str, jax.Array]]
) -> tuple[Decisions, np.ndarray]:
    """The decisions of every head on all images of `batches` ("image", "label", "mask"), and the labels int32[N], in order."""
    chosen: dict[str, list[np.ndarray]] = {}
    labels = []
    for batch in batches:
        found, mask = jax.device_get((decide_step(variables, batch["image"]), batch["mask"]))
        for head, classes in found.items():
            chosen.setdefault(head, []).append(classes[mask])
        labels.append(np.asarray(batch["label"])[mask])
    # A compiled function returns its dict sorted.
    return {head: np.concatenate(chosen[head]) for head in HEADS if head in chosen}, np.concatenate(labels)


def disagreement(decisions: Mapping[str, np.ndarray]) -> np.ndarray:
    """The share of images on which two classifiers decide differently: float64[n, n], symmetrical, 0 on the diagonal.

    decisions: int[N] each, of the same images in the same order; the labels may be one of them, whose row is then the error.
    Raises ValueError if they are not of one length, or of no image at all.
    """
    lengths = {name: len(classes) for name, classes in decisions.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        raise ValueError(f"decisions on {lengths} images cannot be compared: give all of them for the same images")
    table = np.stack([np.asarray(classes) for classes in decisions.values()])
    return np.mean(table[:, None] != table[None, :], axis=-1)
