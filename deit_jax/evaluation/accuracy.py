"""Top-1, top-5 and loss of every head over a dataset, with each image counted exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deit_jax.evaluation.heads import answer_of, heads, outputs_of
from deit_jax.parallel.distributed import compiled_together
from deit_jax.parallel.in_advance import Unfinished

Totals = dict[str, Any]
EvalStep = Callable[[Any, dict[str, jax.Array]], Totals]
# head -> {"top1", "top5" in percent, "loss" in nats}; no loss if an image may have several labels
Scores = dict[str, dict[str, float]]


def best_top1(scores: dict[str, Scores], fusion: str) -> float:
    """Returns the top-1, in percent, of the better of raw and EMA weights, which ranks checkpoints."""
    return max(answer_of(by_head, fusion)["top1"] for by_head in scores.values())


def as_row(scores: dict[str, Scores]) -> dict[str, float]:
    """Flattens scores to a row of metrics: {"raw": {"class": {"top1": x}}} to {"eval/raw/class/top1": x}."""
    return {
        f"eval/{weights}/{head}/{name}": value
        for weights, by_head in scores.items()
        for head, by_name in by_head.items()
        for name, value in by_name.items()
    }


def score(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums top-1 hits, top-5 hits and cross-entropy over the images where `mask` is True. Float32 scalars.

    logits: float32[B, K]; labels: int32[B]; mask: bool[B]. Among equal logits the lower class index ranks first, as in argmax; an
    image with a non-finite logit counts as wrong.
    """
    label_logit = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before = jnp.arange(logits.shape[-1]) < labels[:, None]
    rank = jnp.sum((logits > label_logit) | ((logits == label_logit) & before), axis=-1)
    right = mask & jnp.all(jnp.isfinite(logits), axis=-1)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]
    return {
        "top1": jnp.sum(right & (rank < 1), dtype=jnp.float32),
        "top5": jnp.sum(right & (rank < 5), dtype=jnp.float32),
        "loss": jnp.sum(jnp.where(mask, losses, 0.0)),
    }


def score_any(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """As `score`, for images with any number of correct labels: counts images with one of them in the top 1 and top 5.

    logits: float32[B, K]; labels: bool[B, K'], K' <= K; mask: bool[B]. Images without a label add nothing. Top-1 follows ReaL,
    and top-5 accordingly. No loss, because cross-entropy is not defined for several labels.
    """
    right = mask & jnp.all(jnp.isfinite(logits), axis=-1)
    labels = jnp.pad(labels, ((0, 0), (0, logits.shape[-1] - labels.shape[-1])))
    _, first = jax.lax.top_k(logits, min(5, logits.shape[-1]))  # among equals the lower index first, as argmax
    hits = jnp.take_along_axis(labels, first, axis=-1)
    return {
        "top1": jnp.sum(right & hits[:, 0], dtype=jnp.float32),
        "top5": jnp.sum(right & jnp.any(hits, axis=-1), dtype=jnp.float32),
    }


def make_eval_step(model: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...]) -> EvalStep:
    """Returns the jitted function (variables, batch) -> sums over the batch; `mean` and `std` normalise RGB in [0, 1]."""
    outputs = outputs_of(model, mean, std)

    @jax.jit
    def eval_step(variables: Any, batch: dict[str, jax.Array]) -> Totals:
        output = outputs(variables, batch["image"])
        labels, mask = batch["label"], batch["mask"]
        scoring = score if labels.ndim == 1 else score_any
        sums: Totals = {name: scoring(logits, labels, mask) for name, logits in heads(output).items()}
        sums["images"] = jnp.sum(mask, dtype=jnp.int32)
        sums["labelled"] = (
            sums["images"] if labels.ndim == 1 else jnp.sum(mask & jnp.any(labels, axis=-1), dtype=jnp.int32)
        )
        return sums

    return compiled_together(eval_step)


def evaluate(eval_step: EvalStep, variables: Any, batches: Iterable[dict[str, jax.Array]], num_images: int) -> Scores:
    """Returns the scores of `variables` over all batches (global arrays "image", "label", "mask"); see `mean_scores`."""
    return mean_scores(sum_scores(eval_step, {"": variables}, batches)[""], num_images)[0]


# A separate program: as part of the evaluation step it would compile the whole network twice.
@jax.jit
def _added(totals: Totals, sums: Totals) -> Totals:
    return jax.tree.map(jnp.add, totals, sums)


def sum_scores(
    eval_step: EvalStep, weights: Mapping[str, Any], batches: Iterable[dict[str, jax.Array]]
) -> dict[str, Totals]:
    """Sums the results of `eval_step` for each of `weights` in one pass over the batches, by name.

    The sums stay on the device until the end, then move to the host. Few batches are on the device at a time, see `Unfinished`.
    """
    totals: dict[str, Totals] = {name: {} for name in weights}
    unfinished = Unfinished()
    for batch in batches:
        for name, variables in weights.items():
            sums = eval_step(variables, batch)
            totals[name] = _added(totals[name], sums) if totals[name] else sums
        unfinished.note(dict(totals))
    totals = jax.device_get(totals)  # sorted by name
    return {name: totals[name] for name in weights}


def mean_scores(totals: Totals, num_images: int) -> tuple[Scores, int]:
    """Returns mean scores and the number of labelled images.

    Raises RuntimeError unless the batches held exactly `num_images` images.
    """
    by_head = dict(totals)
    counted, labelled = int(by_head.pop("images", 0)), int(by_head.pop("labelled", 0))
    if counted != num_images:
        raise RuntimeError(f"the evaluation counted {counted} images of {num_images}")
    units = {"top1": 100.0, "top5": 100.0, "loss": 1.0}
    scores = {
        head: {name: units[name] * float(total) / max(labelled, 1) for name, total in sums.items()}
        for head, sums in by_head.items()
    }
    return scores, labelled
