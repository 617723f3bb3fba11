"""What is wrong with a weights file."""

from __future__ import annotations

from collections.abc import Iterable

from deit_jax.errors import UserError
from deit_jax.printable import printable

_SHOWN = 20  # names of a list that a message shows
_LONGEST = 150  # characters of a name


class WeightsError(UserError):
    """Weights that cannot be read, do not fit, or cannot be written. The message is one line."""


class MisfitError(WeightsError):
    """Weights of another model. The message shows the first names of each kind, the attributes have them all.

    missing, unexpected: names; misshapen: "name (shape), not (shape)".
    """

    def __init__(self, message: str, missing: list[str], unexpected: list[str], misshapen: list[str]) -> None:
        super().__init__(message)
        self.missing, self.unexpected, self.misshapen = missing, unexpected, misshapen


class TokenMisfitError(MisfitError):
    """Weights of a distilled model for a plain one, or the reverse.

    wanted: whether the model has the distillation token, which the weights then lack.
    """

    def __init__(
        self, message: str, missing: list[str], unexpected: list[str], misshapen: list[str], *, wanted: bool
    ) -> None:
        super().__init__(message, missing, unexpected, misshapen)
        self.wanted = wanted


def listed(names: Iterable[str], most: int = _SHOWN) -> str:
    """How many and which: "3 (a, b, c)"; of a long list only the first `most` names."""
    names = list(names)
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} ({', '.join(map(shown, names[:most]))}{more})"


def shown(name: str) -> str:
    """A name as a message may hold it, whatever a file calls its tensors: printable, in one line, not too long."""
    name = printable(name)
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."
