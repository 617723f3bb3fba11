"""Compares what the processes of a run have read, before anything is computed or written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from deit_jax.errors import UserError
from deit_jax.parallel.distributed import gather

_MAX_VALUE_CHARS = 80  # longest value in a message
_MAX_FIELDS = 3  # in a message
_SHOWN = 3  # fields that a message shows
_Value = TypeVar("_Value")


class DisagreementError(UserError):
    """The processes of one run differ. The message is the same line in all of them."""


def agree(make: Callable[[], _Value], facts: Callable[[_Value], Mapping[str, Any]]) -> _Value:
    """Returns `make()`, once it has succeeded in every process with the same facts. A single process only calls it.

    Args:
      make: if it waits for other processes, all of them must reach that point, even those in which it fails. So it may be (or
        end in) one `first_process_first`, and must not call another collective after something that can fail in one process.
      facts: maps the result to named values of JSON types. Messages use the names.

    Raises the UserError that `make` raised here, or in another process, whose number the message names; DisagreementError if a
    fact differs from process 0's.
    """
    if jax.process_count() == 1:
        return make()
    _check_device_counts()
    made: list[_Value] = []
    failure: UserError | None = None
    try:
        made.append(make())
        own: dict[str, Any] = {"facts": dict(facts(made[0]))}
    except UserError as error:
        failure, own = error, {"error": str(error)}
    everyone = gather(own, "comparing the processes")
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
    shown = [f"{name}: {_short(facts.get(name))}, not {_short(first.get(name))}" for name in names[:_MAX_FIELDS]]
    more = f" and {len(names) - _MAX_FIELDS} more" if len(names) > _MAX_FIELDS else ""
    return f"process {number} differs from process 0 in {'; '.join(shown)}{more}: use the same in all processes"


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= _MAX_VALUE_CHARS else f"{text[:_MAX_VALUE_CHARS]}..."


def _check_device_counts() -> None:
    """Every process sees all devices, so all raise the same error; collectives need the same number in each process."""
    counts = Counter(device.process_index for device in jax.devices())
    other = next((number for number in counts if counts[number] != counts[0]), None)
    if other is not None:
        raise DisagreementError(
            f"process {other} has {counts[other]} devices, process 0 has {counts[0]}: give all processes the same number"
        )
