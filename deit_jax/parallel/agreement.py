"""The processes of a run compare what each has read before anything is computed or written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from deit_jax.errors import UserError
from deit_jax.parallel.distributed import wait_for_all

_LONGEST = 80  # characters of a value that a message shows
_SHOWN = 3  # fields that a message shows
_Value = TypeVar("_Value")


class DisagreementError(UserError):
    """Processes of one run that would do different things. The message is the same line in all of them."""


def agree(make: Callable[[], _Value], facts: Callable[[_Value], Mapping[str, Any]]) -> _Value:
    """What `make` returns here, once it has succeeded in every process with the same facts. A single process just makes it.

    Args:
      make: where it waits for other processes, all of them must come there, also those in which it fails: so it may be (or end
        in) one `first_process_first`, and must not call a collective of its own after something that can fail in one of them.
      facts: of what was made, by the name that messages call them; values of JSON's types.

    Raises the UserError that `make` raised here, or in another process, whose number the message then has; DisagreementError if
    a fact differs from the first process's.
    """
    if jax.process_count() == 1:
        return make()
    _refuse_uneven_devices()
    made: list[_Value] = []
    failure: UserError | None = None
    try:
        made.append(make())
        told: dict[str, Any] = {"facts": dict(facts(made[0]))}
    except UserError as error:
        failure, told = error, {"error": str(error)}
    everyone = _gathered(json.dumps(told))
    if failure is not None:
        raise failure
    for number, other in enumerate(everyone):
        if "error" in other:
            raise DisagreementError(f"process {number}: {other['error']}")
    first = everyone[0]["facts"]
    for number, other in enumerate(everyone[1:], 1):
        if line := _difference(number, other["facts"], first):
            raise DisagreementError(line)
    return made[0]


def _difference(number: int, facts: Mapping[str, Any], first: Mapping[str, Any]) -> str | None:
    names = [name for name in {**first, **facts} if facts.get(name) != first.get(name)]
    if not names:
        return None
    shown = [f"{name}: {_short(facts.get(name))}, not {_short(first.get(name))}" for name in names[:_SHOWN]]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"process {number} differs from process 0 in {'; '.join(shown)}{more}: give all processes of a run the same"


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _refuse_uneven_devices() -> None:
    """Every process knows every device, so all refuse alike; collectives need the same number in each."""
    counts = Counter(device.process_index for device in jax.devices())
    other = next((number for number in counts if counts[number] != counts[0]), None)
    if other is not None:
        raise DisagreementError(
            f"process {other} has {counts[other]} devices, process 0 has {counts[0]}: give all processes of a run as many"
        )


def _gathered(text: str) -> list[dict[str, Any]]:
    """Every process's JSON, by its number."""
    from jax.experimental import multihost_utils

    own = np.frombuffer(text.encode(), np.uint8)
    wait_for_all("comparing the processes")
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(own)))).reshape(-1)
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(own)] = own
    rows = np.asarray(multihost_utils.process_allgather(padded)).astype(np.uint8).reshape(len(lengths), -1)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]
