"""Bytes that a compiled program reads and writes, counted in its text: for compilers that do not tell."""

from __future__ import annotations

import re

from deit_jax.parallel.program_report import COMPUTATION, shape_bytes

_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>.*?) (?P<opcode>[a-z][\w-]*)\((?P<operands>.*?)\)(?:,|$)"
)
# Computations that are a part of one kernel: their instructions touch registers, not memory.
_WITHIN_A_KERNEL = re.compile(
    r"\b(?:fusion|reduce|reduce-window|scatter|sort|map|select-and-scatter|all-reduce|all-reduce-start|reduce-scatter|"
    r"reduce-scatter-start|custom-call)\(.*?\b(?:calls|to_apply|called_computations)=\{?%?([\w.-]+)"
)
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "while", "conditional", "call", "async-start",
}  # fmt: skip


def bytes_in_text(text: str) -> int:
    """Result and operands of every kernel of an optimised HLO module, as if nothing stayed on the chip from one to the next.

    As in XLA's own estimate a loop's body counts once. A kernel that reads a part of an operand counts as reading all of it.
    """
    inside = set(_WITHIN_A_KERNEL.findall(text))
    sizes: dict[str, int] = {}
    total, counts = 0, True
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            counts = match[1] not in inside
        elif counts and (match := _INSTRUCTION.match(line)):
            sizes[match["name"]] = shape_bytes(match["shape"])
            if match["opcode"] in _FREE or match["opcode"].endswith("-done"):
                continue
            total += sizes[match["name"]]
            total += sum(sizes.get(name.strip(" %"), 0) for name in match["operands"].split(","))
    return total
