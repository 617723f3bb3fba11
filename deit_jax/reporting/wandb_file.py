"""Reading what an offline run of Weights & Biases has on the disk (wandb has no public reader of its own files)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MAGIC = b":W&B"
_FIRST, _BLOCK = (
    7,
    32768,
)  # bytes: the file's header; a block of LevelDB's log format, whose records do not cross its end
_HEADER = struct.Struct("<IHB")  # of a piece: checksum, length, kind
_WHOLE, _FIRST_PIECE, _LAST_PIECE = 1, 2, 4


def read_records(path: Path) -> Iterator[Any]:
    """The records (wandb's protocol buffers) of a `.wandb` file, which is LevelDB's log; ends where a killed process ended it."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    if not content.startswith(_MAGIC):
        return
    position, record = _FIRST, b""
    while True:
        left = _BLOCK - position % _BLOCK
        if left < _HEADER.size:
            position += left  # padding
        if position + _HEADER.size > len(content):
            return
        _, length, kind = _HEADER.unpack_from(content, position)
        position += _HEADER.size
        if kind == 0 or position + length > len(content):
            return
        if kind in (_WHOLE, _FIRST_PIECE):
            record = b""
        record += content[position : position + length]
        position += length
        if kind in (_WHOLE, _LAST_PIECE):
            yield Record.FromString(record)


def last_logged_step(path: Path) -> int:
    """The step of the last row that a `.wandb` file holds; -1 if it holds none or is not there."""
    if not path.exists():
        return -1
    steps = [record.history.step.num for record in read_records(path) if record.WhichOneof("record_type") == "history"]
    return max(steps, default=-1)
