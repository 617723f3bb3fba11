"""Lists the fields of a configuration by dotted name, and those that differ from the defaults."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from deit_jax.printable import printable

MISSING = object()  # the default of a field that the defaults lack


def flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and value of each field of nested mappings; an empty mapping is a value."""
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def changed(fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns (dotted name, value, default or MISSING) of the fields that differ from the defaults; both nested, of JSON types.

    Compares a teacher's recipe, which is a whole configuration, with the same defaults.
    """
    flat_defaults = dict(flat(defaults))

    def default_of(name: str) -> Any:
        while name.startswith("teacher.recipe."):
            name = name.removeprefix("teacher.recipe.")
        return flat_defaults.get(name, MISSING)

    return [(name, value, default_of(name)) for name, value in flat(fields) if value != default_of(name)]


def text(value: Any) -> str:
    """Returns a value for display: a printable string, or JSON; "" for MISSING."""
    if value is MISSING:
        return ""
    return printable(value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False))
