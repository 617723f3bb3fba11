"""FLOPs of the matrix products and convolutions of an optimized module for a GPU, where a library computes them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from deit_jax.aot.schedule import Instruction

_CONTRACTED = re.compile(r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([\d",\s]*)[}\]]')
_LABELS = re.compile(r"dim_labels=\w+_(\w+)->\w+")


def flops_of(instruction: Instruction, by_name: Mapping[str, Instruction]) -> int:
    """Returns 2 x multiply-adds of a product or convolution (by a library or not), 0 for any other instruction."""
    kind = instruction.target or instruction.opcode
    operands = [by_name[name].arrays[0].dimensions for name in instruction.operands if name in by_name]
    if len(operands) < 2 or not instruction.arrays:
        return 0
    result = instruction.arrays[0].dimensions
    if kind == "dot" or kind.startswith("__cublas"):
        contracted = _CONTRACTED.search(instruction.rest)
        depth = [operands[0][int(i)] for i in re.findall(r"\d+", contracted[1])] if contracted else []
        return 2 * math.prod(result) * math.prod(depth)
    labels = _LABELS.search(instruction.rest)
    if (kind != "convolution" and not kind.startswith("__cudnn$conv")) or not labels:
        return 0
    outputs, kernel = result, operands[1]
    if "BackwardInput" in kind:  # (gradient of the outputs, kernel)
        outputs = operands[0]
    elif "BackwardFilter" in kind:  # (inputs, gradient of the outputs)
        outputs, kernel = operands[1], result
    return 2 * math.prod(outputs) * math.prod(kernel) // kernel[labels[1].index("o")]
