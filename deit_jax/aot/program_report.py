"""Extracts from a compiled program: memory by kind, collectives, and the minimum time that it can take."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from deit_jax.aot.topologies import Chip

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute", "collective-broadcast",
)  # fmt: skip
ITEM_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}
_NAMES = "|".join(sorted(COLLECTIVES, key=len, reverse=True))
_COLLECTIVE = re.compile(rf"= (?P<shape>.*?) (?P<kind>{_NAMES})(?P<start>-start)?\(")
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
CHAIN = re.compile(r'chain_id="(\d+)"')
REDUCE_SCATTER = "all-reduce-scatter"  # a TPU computation's name begins with it
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes of a tree's arrays on one device, from their shapes, dtypes and shardings (default: replicated)."""

    def count(leaf: Any) -> int:
        shape = leaf.shape if getattr(leaf, "sharding", None) is None else leaf.sharding.shard_shape(leaf.shape)
        return math.prod(shape) * np.dtype(leaf.dtype).itemsize

    return sum(count(leaf) for leaf in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device while the program runs."""

    arguments: dict[str, int]  # by kind: the arrays themselves
    padding: int  # added to the arguments by the device's layout
    outputs: int  # except those that alias an argument
    temporary: int
    code: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(self.arguments.values()) + self.padding + self.outputs + self.temporary + self.code

    def by_kind(self) -> dict[str, int]:
        """Returns every part by name, and the total."""
        rest = {"padding": self.padding, "outputs": self.outputs, "temporary": self.temporary, "code": self.code}
        return self.arguments | rest | {"total": self.total}


def memory_of(executable: Any, arguments: Mapping[str, Any]) -> Memory:
    """Returns the memory of a compiled program by kind; `arguments` are the program's argument trees by kind."""
    stats = executable.memory_analysis()
    sizes = {kind: bytes_per_device(tree) for kind, tree in arguments.items()}
    return Memory(
        arguments=sizes,
        # The compiler does not count an argument that the program does not read; avoid negative padding.
        padding=max(0, stats.argument_size_in_bytes - sum(sizes.values())),
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporary=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices: the bytes of its result on one device, and the number of participating devices."""

    kind: str
    bytes: int
    group_size: int
    in_loop: bool  # in a loop's body: executed in every iteration, listed once

    @property
    def sent(self) -> int:
        """Bytes that a device sends with the algorithm that sends least (a ring)."""
        n = self.group_size
        if self.kind == "all-reduce":
            return 2 * self.bytes * (n - 1) // n
        if self.kind == "reduce-scatter":  # its result is one device's share
            return self.bytes * (n - 1)
        return self.bytes if self.kind.startswith("collective") else self.bytes * (n - 1) // n


def collectives_of(text: str, num_devices: int) -> list[Collective]:
    """Returns the collectives of an optimized HLO module in text form (`executable.as_text()`); asynchronous ones count once.

    If a collective overlaps with other work, the TPU compiler writes it into each fusion of that work, with one chain_id.
    """
    found, loops, chains, computation = [], set(), set(), ""
    calls: dict[str, set[str]] = {}
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            computation = match[1]
            continue
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [name.strip(" %") for name in branches.split(",")]
        calls.setdefault(computation, set()).update(called)
        if " while(" in line:
            loops.update(called)
        if match := _COLLECTIVE.search(line):
            if chain := CHAIN.search(line):
                if (match["kind"], chain[1]) in chains:
                    continue
                chains.add((match["kind"], chain[1]))
            found.append((computation, read_collective(match["kind"], match["shape"], line, computation, num_devices)))
    looped = _reachable(loops, calls)
    return [dataclasses.replace(item, in_loop=where in looped) for where, item in found]


def read_collective(kind: str, shape: str, line: str, computation: str, num_devices: int) -> Collective:
    """Returns the collective of an instruction: its opcode without "-start", its shape, its text and where it is."""
    if f" {kind}-start(" in line and kind != "all-reduce":  # (operands, results, perhaps counters)
        shape = _parts(shape)[1]
    size = shape_bytes(shape)
    group = _group_size(line, num_devices)
    # A TPU reduce-scatter is a fusion that reduces, then slices.
    if kind == "all-reduce" and computation.startswith(REDUCE_SCATTER):
        kind, size = "reduce-scatter", size // group
    return Collective(kind, size, group, in_loop=False)


def shape_bytes(shape: str) -> int:
    """Returns the bytes of a shape in an HLO module's text, such as "(bf16[16,8]{1,0}, s32[])"."""
    return sum(_bytes(*item) for item in _SHAPE.findall(shape))


def _bytes(kind: str, dimensions: str) -> int:
    bits = ITEM_BITS.get(kind) or int(re.findall(r"\d+", kind)[0])  # s32, f8e4m3fn
    return math.prod(int(size) for size in dimensions.split(",") if size) * bits // 8


def _parts(shape: str) -> list[str]:
    """Splits the shape of a tuple into its elements, keeping nested tuples: "((f32[2], s8[4]), u32[])" has two."""
    parts, depth = [""], 0
    for character in shape[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _group_size(line: str, num_devices: int) -> int:
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(match[1].split(","))
    # Named axes, or parts of them: 'a':(before)size
    if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = dict(re.findall(r"('\w+')=(\d+)", match[1]))
        axes = re.findall(r"('\w+')(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[name]) for name, part in axes)
    return num_devices


def _reachable(names: set[str], calls: Mapping[str, set[str]]) -> set[str]:
    reached, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += calls.get(name, ())
    return reached


def summarize_collectives(collectives: list[Collective]) -> dict[str, dict[str, int]]:
    """Returns by kind the count, the bytes of the results and the bytes sent per device, and how many are in loops."""
    summary: dict[str, dict[str, int]] = {}
    for item in collectives:
        row = summary.setdefault(item.kind, {"count": 0, "bytes": 0, "sent": 0, "in_loops": 0})
        row["count"] += 1
        row["bytes"] += item.bytes
        row["sent"] += item.sent
        row["in_loops"] += item.in_loop
    return summary


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step at published peak rates, for each resource of a device."""

    compute: float
    memory: float
    links: float | None  # None: unknown, and ignored in the properties

    @property
    def bound(self) -> float:
        """The longest of the three: the time if they overlap completely."""
        return max(self.compute, self.memory, self.links or 0)

    @property
    def limit(self) -> str:
        """Name of the longest of the three."""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name) or 0)

    @property
    def in_turn(self) -> float:
        """The sum: the time without overlap."""
        return self.compute + self.memory + (self.links or 0)


def roofline(chip: Chip, *, flops: float, bytes_accessed: float, bytes_sent: float | None) -> Roofline:
    """Returns the roofline of a program with these costs per device."""
    links = None if bytes_sent is None else bytes_sent / chip.link_bandwidth
    return Roofline(flops / chip.peak_flops, bytes_accessed / chip.memory_bandwidth, links)


def bytes_accessed(executable: Any) -> float | None:
    """Returns the bytes read and written, as estimated by the compiler; loops count once. None if it gives no estimate."""
    analysis = executable.cost_analysis()
    if isinstance(analysis, list):
        analysis = analysis[0] if analysis else None
    return None if not analysis else analysis.get("bytes accessed")
