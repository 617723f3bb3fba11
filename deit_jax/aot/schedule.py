"""Reads an optimized HLO module: its instructions in the order of the schedule, how often each runs, and what each costs.

TPU's compiler writes its estimate of the cycles into each instruction that uses the vector or matrix units, and marks arrays that
stay on the chip by a memory space in their layouts. Programs for GPUs have neither: their cycles are unknown.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from deit_jax.aot.program_report import CHAIN, COLLECTIVES, COMPUTATION, ITEM_BITS, Collective, read_collective

_INSTRUCTION = re.compile(
    r"^\s*(?P<root>ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>.*?) (?P<opcode>[a-z][\w-]*)\((?P<operands>.*?)\)(?P<rest>,.*|)$"
)
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLS = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_KNOWN_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
KERNEL = "tpu_custom_call"  # a kernel written in Pallas

PREFETCHES = ("copy-start", "slice-start")
# Custom calls that name a buffer and move nothing.
_FREE_TARGETS = ("AllocateBuffer", "ConcatBitcast", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape")
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "opt-barrier",
    "while", "conditional", "call", "async-start", "async-update", "async-done",
}  # fmt: skip
_MOVES = {"copy", "transpose", "bitcast", "reshape", "parameter", "tuple", "get-tuple-element"}


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
    """An array of a result: its dimensions, its bytes with the padding of its tiles, and whether it stays on the chip."""

    dtype: str
    dimensions: tuple[int, ...]
    bytes: int
    on_chip: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """A line of the module. `rest`: its attributes, metadata and backend configuration, as text."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    @property
    def op_name(self) -> str:
        """The scopes and the operation of the traced program that it comes from, separated by "/"; may be empty."""
        found = _OP_NAME.search(self.rest)
        return found[1] if found else ""

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate; None if there is none."""
        found = _CYCLES.search(self.rest)
        return int(found[1]) if found else None

    @property
    def called(self) -> dict[str, str]:
        """The computations that it calls, by attribute, except for those of a switch."""
        return dict(_CALLS.findall(self.rest))

    @property
    def target(self) -> str:
        """What a custom call calls; else empty."""
        found = _TARGET.search(self.rest) if self.opcode == "custom-call" else None
        return found[1] if found else ""

    @property
    def collective(self) -> str:
        """The kind of exchange between devices that it is or starts; else empty."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else ""

    @property
    def arrays(self) -> list[Array]:
        """The arrays of its result, those of nested tuples in order."""
        return arrays_of(self.shape)


def arrays_of(shape: str) -> list[Array]:
    """Returns the arrays of a shape as a module writes it, such as "(bf16[16,8]{1,0:T(8,128)(2,1)S(1)}, s32[])"."""
    return [_array(*item) for item in _ARRAY.findall(shape)]


@functools.cache
def _array(dtype: str, dimensions: str, order: str, tiles: str) -> Array:
    sizes = [int(size) for size in dimensions.split(",") if size]
    padded = list(sizes)
    tile = re.match(r"T\(([\d,]+)\)", tiles)
    if tile and sizes:
        minor_to_major = [int(i) for i in order.split(",")]
        for dimension, size in zip(minor_to_major, reversed(tile[1].split(",")), strict=False):
            padded[dimension] = -(-padded[dimension] // int(size)) * int(size)
    bits = ITEM_BITS.get(dtype) or int(re.findall(r"\d+", dtype)[0])
    space = re.search(r"S\((\d+)\)", tiles)
    return Array(dtype, tuple(sizes), math.prod(padded) * bits // 8, bool(space and space[1] != "0"))


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction and how often it runs in a step: a mean, if a loop's length depends on the data."""

    instruction: Instruction
    times: float


@dataclasses.dataclass(frozen=True)
class Module:
    """The computations of a module by name, each with its instructions in order."""

    computations: Mapping[str, Sequence[Instruction]]
    entry: str

    def fused(self, instruction: Instruction) -> Sequence[Instruction]:
        """Returns the instructions of a fusion; empty for any other instruction."""
        return self.computations.get(instruction.called.get("calls", ""), ()) if instruction.opcode == "fusion" else ()

    def collective(self, instruction: Instruction, num_devices: int) -> tuple[Collective, str] | None:
        """Returns the collective that an instruction is, starts or contains, and its name among those of the module.

        A collective that overlaps with several fusions is written into each of them, under the same name.
        """
        where = instruction.called.get("calls", "")
        for item in (instruction, *self.fused(instruction)):
            if kind := item.collective:
                line = f" {item.opcode}({item.rest}"
                chain = CHAIN.search(item.rest)
                name = f"{kind} {chain[1]}" if chain else instruction.name
                return read_collective(kind, item.shape, line, where, num_devices), name
        return None

    def heaviest(self, instruction: Instruction) -> Instruction:
        """Returns the instruction that decides where a fusion belongs: its largest matrix product or convolution, else itself.

        The compiler gives a fusion the metadata of its root.
        """
        products = [
            item for item in self._inside(instruction) if item.opcode in ("dot", "convolution") and item.op_name
        ]
        return max(products, key=lambda item: sum(array.bytes for array in item.arrays), default=instruction)

    def _inside(self, fusion: Instruction) -> Iterator[Instruction]:
        for item in self.fused(fusion):
            yield item
            yield from self._inside(item)

    def moves_only(self, instruction: Instruction) -> bool:
        """Whether it only writes an array in another layout."""
        inside = self.fused(instruction)
        opcodes = {item.opcode for item in inside} if inside else {instruction.opcode}
        return opcodes <= _MOVES and bool(opcodes & {"copy", "transpose"})

    def runs(self, turns: Mapping[str, float]) -> tuple[list[Run], list[str]]:
        """Returns what a step runs, in order, and the loops of unknown length, which count once.

        turns: the mean number of turns of loops whose length depends on the data, by a scope in their op_name. Of the branches of
        a conditional the one with the most cycles counts.
        """
        unknown: list[str] = []
        return list(self._runs(self.entry, 1.0, turns, unknown)), unknown

    def _runs(self, computation: str, times: float, turns: Mapping[str, float], unknown: list[str]) -> Iterator[Run]:
        for item in self.computations[computation]:
            if item.opcode == "while":
                count = self._turns(item, turns)
                if count is None:
                    unknown.append(item.op_name or item.name)
                yield from self._runs(item.called["body"], times * (1 if count is None else count), turns, unknown)
            elif item.opcode == "conditional":
                branches = [self._branch(name, times, turns, unknown) for name in _branches(item)]
                yield from max(branches, key=_sum_of_cycles, default=[])
            elif item.opcode == "call":
                yield from self._runs(item.called["to_apply"], times, turns, unknown)
            elif item.opcode == "async-start" and "calls" in item.called:
                for run in self._runs(item.called["calls"], times, turns, unknown):
                    # Under the name of the start, by which the end refers to it.
                    yield Run(dataclasses.replace(run.instruction, name=item.name), times)
            else:
                yield Run(item, times)

    def _branch(self, name: str, times: float, turns: Mapping[str, float], unknown: list[str]) -> list[Run]:
        return list(self._runs(name, times, turns, unknown))

    def _turns(self, loop: Instruction, turns: Mapping[str, float]) -> float | None:
        if known := _KNOWN_TURNS.search(loop.rest):
            return int(known[1])
        *_, scope, name = ("", "", *loop.op_name.split("/"))
        if name == "while" and scope in turns:
            return turns[scope]
        # A scan counts from 0 and its condition is `count < length`; the compiler has moved the length there.
        condition = {item.name: item for item in self.computations.get(loop.called.get("condition", ""), ())}
        root = next((item for item in condition.values() if item.is_root), None)
        if root is None or root.opcode != "compare" or "direction=LT" not in root.rest:
            return None
        limit = condition.get(root.operands[1]) if len(root.operands) > 1 else None
        # The operand of a constant is its value.
        return int(limit.operands[0]) if limit is not None and limit.opcode == "constant" else None

    def main_memory_bytes(self, instruction: Instruction) -> int:
        """Returns the bytes that it reads from and writes to main memory, with padding; not those that stay on the chip.

        An operand of which a fusion reads only a slice counts as that slice, and an array that is updated in place as the update.
        """
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done") or instruction.target in _FREE_TARGETS:
            return 0
        if opcode in PREFETCHES:  # a transfer beside the computation: (from, to) or (to, from), and a counter
            first, second = instruction.arrays[:2]
            moved = min(first.bytes, second.bytes)
            return moved * ((not first.on_chip) + (not second.on_chip))
        if opcode.endswith("-start") and opcode != "all-reduce-start":  # the result holds the operands too
            return _in_main_memory(instruction.arrays)
        operands = [self.by_name.get(name) for name in instruction.operands]
        read, written = self._touched(instruction)
        total = _in_main_memory(instruction.arrays) if written is None else written
        for i, operand in enumerate(operands):
            if operand is not None:
                whole = _in_main_memory(operand.arrays)
                total += min(whole, read[i]) if i in read else whole
        return total

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """All instructions; their names are unique in a module."""
        return {item.name: item for items in self.computations.values() for item in items}

    def _touched(self, instruction: Instruction) -> tuple[dict[int, int], int | None]:
        """Returns the bytes read of each operand that is not read as a whole, and those written (None: the whole result)."""
        inside = self.fused(instruction)
        if not inside:
            inside, numbers = [instruction], dict(enumerate(instruction.operands))
        else:
            # The operand of a parameter is its number.
            numbers = {int(item.operands[0]): item.name for item in inside if item.opcode == "parameter"}
        root = next((item for item in inside if item.is_root), inside[-1])
        results = [self.by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
        updates = [
            item for item in results if item.opcode == "dynamic-update-slice" and item.operands[0] in numbers.values()
        ]
        read = {}
        for number, name in numbers.items():
            pieces = [_piece(item, name, item in updates) for item in inside if name in item.operands]
            if pieces and None not in pieces:
                read[number] = sum(piece for piece in pieces if piece is not None)
        if not updates:
            return read, None
        written = [self.by_name.get(item.operands[1], item) if item in updates else item for item in results]
        changed = sum(_in_main_memory(item.arrays) for item in written)
        return read, min(changed, _in_main_memory(instruction.arrays))


def _piece(user: Instruction, name: str, updates: bool) -> int | None:
    """Returns the bytes that an instruction reads of an operand if it does not need the whole, else None.

    updates: whether it updates its first operand in place.
    """
    if name in user.operands[1:]:
        return None
    if user.opcode in ("dynamic-slice", "slice", "gather"):
        return sum(array.bytes for array in user.arrays)
    return 0 if updates else None


def _in_main_memory(arrays: Sequence[Array]) -> int:
    return sum(array.bytes for array in arrays if not array.on_chip)


def _branches(conditional: Instruction) -> list[str]:
    listed = _BRANCHES.search(conditional.rest)
    if listed:
        return [name.strip(" %") for name in listed[1].split(",")]
    called = conditional.called
    return [called[key] for key in ("true_computation", "false_computation") if key in called]


def _sum_of_cycles(runs: Sequence[Run]) -> float:
    return sum(run.times * (run.instruction.cycles or 0) for run in runs)


def parse(text: str) -> Module:
    """Parses an optimized module in text form (`executable.as_text()`)."""
    computations: dict[str, list[Instruction]] = {}
    entry = ""
    items: list[Instruction] = []
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            items = computations.setdefault(header[1], [])
            entry = header[1] if line.startswith("ENTRY ") else entry
        elif found := _INSTRUCTION.match(line):
            written = found["operands"]
            named = tuple(re.findall(r"%([\w.-]+)", written))
            operands = named or tuple(part.strip() for part in written.split(",") if part.strip())
            items.append(
                Instruction(
                    found["name"], found["shape"], found["opcode"], operands, found["rest"], bool(found["root"])
                )
            )
    return Module(computations, entry)
