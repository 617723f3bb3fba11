"""Outputs of a network by head, and which head is its prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax

from deit_jax.augment.pipeline import prepare_for_evaluation
from deit_jax.models.protocol import ModelOutput, classify, fuse, fusion_of, is_distilled

_DISTILLED = ("class", "distillation", "fused_logits", "fused_softmax")
OfHead = TypeVar("OfHead")


def outputs_of(
    model: nn.Module, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Any, jax.Array], ModelOutput]:
    """Returns the function (variables, uint8[B, H, W, 3]) -> outputs, to be jitted; `mean` and `std` normalise RGB in [0, 1]."""
    mean, std = tuple(mean), tuple(std)

    def outputs(variables: Any, images: jax.Array) -> ModelOutput:
        return classify(model, variables, prepare_for_evaluation(images, mean, std))

    return outputs


def heads(output: ModelOutput) -> dict[str, jax.Array]:
    """Returns the logits float32[B, K] by head: one for a plain model; both heads and both fusions for a distilled one."""
    if output.distillation_logits is None:
        return {"class": output.class_logits}
    pair = (output.class_logits, output.distillation_logits)
    return dict(zip(_DISTILLED, (*pair, fuse(*pair, "logits"), fuse(*pair, "softmax")), strict=True))


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Returns the keys of `heads` for a model."""
    return _DISTILLED if is_distilled(model) else ("class",)


def own_head(model: nn.Module) -> str:
    """Returns the name of the head that equals the model's `logits`: one of `head_names`."""
    return _head_of(fusion_of(model))


def answer_of(by_head: Mapping[str, OfHead], fusion: str) -> OfHead:
    """Selects the entry of the model's prediction: that of its fusion, or of its only head ("class": the class head)."""
    return by_head.get(_head_of(fusion), by_head["class"])


def _head_of(fusion: str) -> str:
    return "class" if fusion == "class" else f"fused_{fusion}"
