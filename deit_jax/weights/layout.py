"""Layouts: a framework's names for the tensors of these models, translated to and from timm's."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from deit_jax.weights.errors import WeightsError, shown
from deit_jax.weights.files import Tensors

_NUMBER, _WORD = r"(?P<{}>[0-9]{{1,4}})", r"(?P<{}>[A-Za-z_]+)"
_FIELDS = {"i": _NUMBER, "s": _NUMBER, "n": _NUMBER, "leaf": _WORD}

Translated = tuple[Tensors, list[str]]  # tensors under timm's names, and the names that the layout does not know


@dataclasses.dataclass(frozen=True)
class Layout:
    """A framework's names.

    name: as in flags and arguments. title: as in messages. sign: a regular expression that matches the start of some name in
    every file of this layout. to_timm, from_timm: translate whole sets of tensors; values are only split, joined or reordered.
    spelled_as: (name, names) -> a name from `from_timm` in the spelling of a file with `names`, for frameworks with several.
    """

    name: str
    title: str
    sign: str
    to_timm: Callable[[Tensors], Translated]
    from_timm: Callable[[Tensors], Tensors]
    spelled_as: Callable[[str, Iterable[str]], str] = lambda name, names: name

    def prefixes(self, names: Iterable[str]) -> set[str]:
        """Returns the prefixes before names of this layout: {""} if there is no prefix; {} if there are no such names."""
        pattern = re.compile(rf"(?P<prefix>(?:[^.]+\.)*?)(?:{self.sign})")
        return {match["prefix"] for name in names if (match := pattern.match(name))}


class Renaming:
    """Translates names between two layouts, by pairs of templates: timm's (`ours`) and the other layout's (`theirs`).

    In a template {i}, {s} and {n} are numbers and {leaf} is a word; {n0} is n - 1, for layouts that count from 0.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        pairs = list(pairs)
        self._forward = [(_pattern(ours), theirs) for ours, theirs in pairs]
        self._backward = [(_pattern(theirs), ours) for ours, theirs in pairs]

    def theirs(self, name: str) -> str | None:
        """Returns the other layout's name for timm's; None if no template matches."""
        return _translate(name, self._forward)

    def ours(self, name: str) -> str | None:
        """Returns timm's name for the other layout's; None if no template matches."""
        return _translate(name, self._backward)

    def to_timm(self, tensors: Mapping[str, np.ndarray]) -> Translated:
        """Renames `tensors` from the other layout to timm's. Raises WeightsError if two tensors get the same name."""
        renamed: Tensors = {}
        unknown = []
        for name, tensor in tensors.items():
            ours = self.ours(name)
            if ours is None:
                unknown.append(name)
            elif ours in renamed:
                raise WeightsError(f"two tensors map to {ours}, one of them {shown(name)}: the file mixes two layouts")
            else:
                renamed[ours] = tensor
        return renamed, unknown

    def from_timm(self, tensors: Mapping[str, np.ndarray]) -> Tensors:
        """The inverse of `to_timm`; keeps names without a translation."""
        return {self.theirs(name) or name: tensor for name, tensor in tensors.items()}


def _pattern(template: str) -> re.Pattern[str]:
    pieces, seen = [], set()
    for piece in re.split(r"(\{\w+\})", template):
        field = piece[1:-1]
        if not piece.startswith("{"):
            pieces.append(re.escape(piece))
        elif field in seen:
            pieces.append(f"(?P={field})")
        else:
            seen.add(field)
            pieces.append(_FIELDS[field.removesuffix("0")].format(field))
    return re.compile("".join(pieces))


def _translate(name: str, table: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in table:
        match = pattern.fullmatch(name)
        if match:
            fields = match.groupdict()
            if "n0" in fields:
                fields["n"] = str(int(fields["n0"]) + 1)
            elif "n" in fields:
                fields["n0"] = str(int(fields["n"]) - 1)
            return template.format(**fields)
    return None
