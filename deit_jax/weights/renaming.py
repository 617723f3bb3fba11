"""Translation of tensor names by pairs of templates, both ways."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBER, _WORD = r"(?P<{}>[0-9]{{1,4}})", r"(?P<{}>[A-Za-z_]+)"
_FIELDS = {"i": _NUMBER, "s": _NUMBER, "n": _NUMBER, "leaf": _WORD}


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
