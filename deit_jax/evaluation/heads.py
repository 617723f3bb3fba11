"""From images to what a network says about them: its outputs, its heads by name, and which of them is its own answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax

from deit_jax.augment.pipeline import prepare_for_evaluation
from deit_jax.models.output import ModelOutput, fuse
from deit_jax.models.protocol import classify, fusion_of, is_distilled

_PLAIN = ("class",)
_DISTILLED = ("class", "distillation", "fused_logits", "fused_softmax")
OfHead = TypeVar("OfHead")


def outputs_of(
    model: nn.Module, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Any, jax.Array], ModelOutput]:
    """The function (variables, uint8[B, H, W, 3]) -> outputs, to be jitted; `mean` and `std` normalise RGB in [0, 1]."""
    mean, std = tuple(mean), tuple(std)

    def outputs(variables: Any, images: jax.Array) -> ModelOutput:
        return classify(model, variables, prepare_for_evaluation(images, mean, std))

    return outputs


def heads(output: ModelOutput) -> dict[str, jax.Array]:
    """The logits float32[B, K] of every head: one of a plain model; of a distilled one each head and both fusions."""
    if output.distillation_logits is None:
        return {"class": output.class_logits}
    pair = (output.class_logits, output.distillation_logits)
    return dict(zip(_DISTILLED, (*pair, fuse(*pair, "logits"), fuse(*pair, "softmax")), strict=True))


def head_names(model: nn.Module) -> tuple[str, ...]:
    """The names that `heads` gives the outputs of a model."""
    return _DISTILLED if is_distilled(model) else _PLAIN


def own_head(model: nn.Module) -> str:
    """The head that is the model's own answer, equal to its `logits`: one of `head_names`."""
    return _head_of(fusion_of(model))


def answer_of(by_head: Mapping[str, OfHead], fusion: str) -> OfHead:
    """What belongs to a model's own answer, e.g. its scores: its only head's, or the fusion's ("class": the class head alone)."""
    return by_head.get(_head_of(fusion), by_head["class"])


def _head_of(fusion: str) -> str:
    return "class" if fusion == "class" else f"fused_{fusion}"
