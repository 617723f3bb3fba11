"""Errors of weights, how messages show names, and checks of named tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from deit_jax.errors import UserError
from deit_jax.printable import printable

_SHOWN = 20  # names in a message
_LONGEST = 150  # characters of a name
_EPSILON = 1e-5  # BatchNorm adds this to a variance
_VARIANCES = ("running_var", "/var")  # BatchNorm's variances: in PyTorch, in this package


class WeightsError(UserError):
    """Weights that cannot be read, do not fit, or cannot be written. The message is one line."""


class MisfitError(WeightsError):
    """Weights of another model. The message shows the first names of each kind, the attributes hold all of them.

    missing, unexpected: names; misshapen: "name (shape), not (shape)".
    """

    def __init__(self, message: str, missing: list[str], unexpected: list[str], misshapen: list[str]) -> None:
        super().__init__(message)
        self.missing, self.unexpected, self.misshapen = missing, unexpected, misshapen


class TokenMisfitError(MisfitError):
    """Weights of a distilled model for a plain one, or vice versa.

    wanted: True if the model has a distillation token and the weights do not; False for the reverse.
    """

    wanted = False


def listed(names: Iterable[str], most: int = _SHOWN) -> str:
    """Returns count and names: "3 (a, b, c)"; at most the first `most` names."""
    names = list(names)
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} ({', '.join(map(shown, names[:most]))}{more})"


def shown(name: str) -> str:
    """Returns a tensor's name for a message: printable, in one line, not too long."""
    name = printable(name)
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."


def compare(
    tensors: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> tuple[list[str], list[str], list[str]]:
    """Returns the names of `expected` that are missing, the unexpected names, and those of another shape."""
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    misshapen = [name for name in expected if name in tensors and tensors[name].shape != expected[name].shape]
    return missing, unexpected, misshapen


def problems(missing: list[str], unexpected: list[str], misshapen: list[str], most: int = 20) -> list[str]:
    """Returns one phrase per kind of misfit, with at most `most` names each."""
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    return [f"{kind} {listed(names, most)}" for kind, names in kinds if names]


def require_match(
    tensors: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], message: str, most: int = 20
) -> None:
    """Raises MisfitError, which starts with `message`, unless names and shapes are those of `expected`."""
    misfits = compare(tensors, expected)
    if any(misfits):
        raise MisfitError(f"{message}: {'; '.join(problems(*misfits, most))}", *misfits)


def heads_to_reset(
    tensors: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], heads: Iterable[str], mode: str
) -> set[str]:
    """Returns those of `heads` (prefixes of names) to reinitialise: all if `mode` is "reset", else missing or misshapen ones."""
    result = set()
    for name, like in expected.items():
        head = next((head for head in heads if f"{name}/".startswith(head)), None)
        if head and (mode == "reset" or name not in tensors or tensors[name].shape != like.shape):
            result.add(head)
    return result


def unusable_values(tensors: Mapping[str, np.ndarray]) -> str:
    """Lists the tensors with NaN, infinite values (as float32) or negative variances, with counts; "" if there are none."""
    found = []
    for name, tensor in tensors.items():
        with np.errstate(over="ignore"):
            values = np.asarray(tensor, np.float32)
        counts: tuple[tuple[int, str], ...] = ()
        if not np.isfinite(values).all():
            counts = ((int(np.isnan(values).sum()), "NaN"), (int(np.isinf(values).sum()), "infinite"))
        elif name.endswith(_VARIANCES):
            counts = ((int((values <= -_EPSILON).sum()), "negative"),)
        found += [f"{shown(name)}: {count} of {values.size} {kind}" for count, kind in counts if count]
    return listed(found) if found else ""
