"""What a layout is: a framework's names for the tensors of these models. All others are translated to timm's."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from deit_jax.weights.errors import WeightsError, shown
from deit_jax.weights.files import Tensors
from deit_jax.weights.renaming import Renaming

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
