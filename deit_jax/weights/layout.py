"""What a layout is: a framework's names for the tensors of these models. All others are translated to timm's."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from deit_jax.weights.errors import WeightsError, shown
from deit_jax.weights.files import Tensors

_NUMBER, _WORD = r"(?P<{}>[0-9]{{1,4}})", r"(?P<{}>[A-Za-z_]+)"
_FIELDS = {"i": _NUMBER, "s": _NUMBER, "n": _NUMBER, "leaf": _WORD}

Translated = tuple[Tensors, list[str]]  # tensors under timm's names, and the names that the layout has no meaning for


@dataclasses.dataclass(frozen=True)
class Layout:
    """A framework's names.

    name: as users type it. title: as messages say it. sign: a regular expression that the start of some name of every such file
    matches.
    to_timm, from_timm: translations of whole sets of tensors; values are only cut, joined or reordered, never computed.
    """

    name: str
    title: str
    sign: str
    to_timm: Callable[[Tensors], Translated]
    from_timm: Callable[[Tensors], Tensors]
    # A name that `from_timm` gives, in the spelling of a file with the names given, where a framework has several.
    spelled_as: Callable[[str, Iterable[str]], str] = lambda name, names: name

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether tensors of these names are in this layout."""
        return any(re.match(self.sign, name) for name in names)

    def prefixes(self, names: Iterable[str]) -> set[str]:
        """What stands before the names of this layout: {""} if they are as they should be; {} if there are none."""
        pattern = re.compile(rf"(?P<prefix>(?:[^.]+\.)*?)(?:{self.sign})")
        return {match["prefix"] for name in names if (match := pattern.match(name))}


class Renaming:
    """Names of one layout to another's, as (ours, theirs) templates tell.

    In a template {i}, {s} and {n} are numbers and {leaf} is a word; {n0} is n counted from 0, where the other side counts from 1.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        pairs = list(pairs)
        self._forward = [(_pattern(ours), theirs) for ours, theirs in pairs]
        self._backward = [(_pattern(theirs), ours) for ours, theirs in pairs]

    def theirs(self, name: str) -> str | None:
        """The other layout's name for ours; None if no template fits."""
        return _translate(name, self._forward)

    def ours(self, name: str) -> str | None:
        """Our name for the other layout's; None if no template fits."""
        return _translate(name, self._backward)


def rename_to_timm(tensors: Mapping[str, np.ndarray], renaming: Renaming) -> Translated:
    """`tensors` under the names that `renaming` (timm's, theirs) gives them. Raises WeightsError if two get the same."""
    renamed: Tensors = {}
    strangers = []
    for name, tensor in tensors.items():
        ours = renaming.ours(name)
        if ours is None:
            strangers.append(name)
        elif ours in renamed:
            raise WeightsError(f"two tensors stand for {ours}, one of them {shown(name)}: the file mixes two layouts")
        else:
            renamed[ours] = tensor
    return renamed, strangers


def rename_from_timm(tensors: Mapping[str, np.ndarray], renaming: Renaming) -> Tensors:
    """The inverse of `rename_to_timm`; a name without a translation stays as it is."""
    return {renaming.theirs(name) or name: tensor for name, tensor in tensors.items()}


def compare(
    tensors: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> tuple[list[str], list[str], list[str]]:
    """Names of `expected` that are missing, names that are not expected, and names of another shape."""
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    misshapen = [name for name in expected if name in tensors and tensors[name].shape != expected[name].shape]
    return missing, unexpected, misshapen


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
            for field, value in list(fields.items()):
                if field == "n0":
                    fields["n"] = str(int(value) + 1)
                elif field == "n":
                    fields["n0"] = str(int(value) - 1)
            return template.format(**fields)
    return None
