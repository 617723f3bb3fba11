"""Top-1, top-5 and loss of every head over a data set, each image counted exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deit_jax.augment.recipe import prepare_for_evaluation
from deit_jax.models.output import ModelOutput, fuse
from deit_jax.parallel.distributed import compiled_together

Totals = dict[str, Any]
EvalStep = Callable[[Totals, Any, dict[str, jax.Array]], Totals]
Scores = dict[str, dict[str, float]]  # head -> {"top1", "top5" in percent, "loss" in nats}


def heads(output: ModelOutput) -> dict[str, jax.Array]:
    """The answers to score, float32[B, K] by name: one of a plain model; of a distilled one each head and both fusions."""
    if output.distillation_logits is None:
        return {"class": output.class_logits}
    pair = (output.class_logits, output.distillation_logits)
    return {
        "class": output.class_logits,
        "distillation": output.distillation_logits,
        "fused_logits": fuse(*pair, "logits"),
        "fused_softmax": fuse(*pair, "softmax"),
    }


def answer_of(scores: Scores, fusion: str) -> dict[str, float]:
    """The scores of a model's own answer: its only head, or the fusion named."""
    return scores.get(f"fused_{fusion}", scores["class"])


def best_top1(scores: dict[str, Scores], fusion: str) -> float:
    """The top-1, in percent, of the better of raw and EMA weights: by which checkpoints are compared."""
    return max(answer_of(by_head, fusion)["top1"] for by_head in scores.values())


def score(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over the images where `mask` holds: correct in the first 1, in the first 5, and cross-entropy. Float32 scalars.

    logits: float32[B, K]; labels: int32[B]; mask: bool[B]. Of equal logits the one with the lower class number ranks first, as
    with argmax; an image with a logit that is not finite counts as wrong.
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


def make_eval_step(model: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...]) -> EvalStep:
    """The jitted function (totals, variables, batch) -> totals; `mean` and `std` normalise RGB in [0, 1]."""

    @jax.jit
    def eval_step(totals: Totals, variables: Any, batch: dict[str, jax.Array]) -> Totals:
        output = model.apply(variables, prepare_for_evaluation(batch["image"], mean, std), train=False)
        sums = {name: score(logits, batch["label"], batch["mask"]) for name, logits in heads(output).items()}
        sums["images"] = jnp.sum(batch["mask"], dtype=jnp.int32)
        return sums if not totals else jax.tree.map(jnp.add, totals, sums)

    return compiled_together(eval_step)


def evaluate(eval_step: EvalStep, variables: Any, batches: Iterable[dict[str, jax.Array]], num_images: int) -> Scores:
    """Scores of `variables` over all batches (global arrays "image", "label", "mask").

    The sums stay on the device until the end. Raises RuntimeError if the batches did not hold exactly `num_images` images.
    """
    totals: Totals = {}
    for batch in batches:
        totals = eval_step(totals, variables, batch)
    totals = jax.device_get(totals)
    counted = int(totals.pop("images", 0))
    if counted != num_images:
        raise RuntimeError(f"the evaluation counted {counted} images of {num_images}")
    return {
        name: {
            "top1": 100 * float(sums["top1"]) / counted,
            "top5": 100 * float(sums["top5"]) / counted,
            "loss": float(sums["loss"]) / counted,
        }
        for name, sums in totals.items()
    }
