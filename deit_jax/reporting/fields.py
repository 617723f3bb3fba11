"""The fields of a configuration for people: by dotted name, and which of them differ from the defaults."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from deit_jax.printable import printable

MISSING = object()  # the default of a field that the defaults do not have


def flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the value of each field of nested mappings; an empty mapping is a value."""
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def changed(fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted name, value, default or MISSING) of the fields that differ from the defaults; both nested, of JSON's types.

    The fields of a teacher's recipe, a whole configuration, are compared with the same defaults.
    """
    usual = dict(flat(defaults))

    def default_of(name: str) -> Any:
        while name.startswith("teacher.recipe."):
            name = name.removeprefix("teacher.recipe.")
        return usual.get(name, MISSING)

    return [(name, value, default_of(name)) for name, value in flat(fields) if value != default_of(name)]


def text(value: Any) -> str:
    """A value as it is shown: a text printable, else JSON; nothing for MISSING."""
    if value is MISSING:
        return ""
    return printable(value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False))
