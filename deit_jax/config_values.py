"""The type of every field of a configuration: what a text on the command line means, and which values will do."""

from __future__ import annotations

import ast
import functools
import math
import re
from numbers import Integral, Real
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from deit_jax.config import default_config

# Elements of tuples whose default has none to tell, or more than one type.
_ELEMENTS: dict[str, type] = {
    "plugins": str,
    "teacher.mean": float,
    "teacher.std": float,
    "teacher.classes": int,
    "parallel.sharding_rules": tuple,
}
_LARGEST = 3.4e38  # of float32
_TRUE, _FALSE = ("true", "t", "yes", "y", "on", "1"), ("false", "f", "no", "n", "off", "0")


class Kind(NamedTuple):
    """The type of a field."""

    base: type  # bool, int, float, str, tuple or ConfigDict
    optional: bool = False  # whether None is a value
    element: type = float  # of a tuple: float, int, str, or tuple for pairs of texts

    @property
    def wanted(self) -> str:
        """What to give, in words."""
        words: dict[type, str] = {
            bool: "True or False", int: "a whole number", float: "a finite number", str: "a text",
            ConfigDict: "a dictionary, e.g. {'depth': 6}",
        }  # fmt: skip
        of_elements: dict[type, str] = {
            int: "whole numbers, separated by commas", float: "finite numbers, separated by commas",
            str: "texts, separated by commas", tuple: "pairs of texts, e.g. (('.*', 'fsdp'),)",
        }  # fmt: skip
        what = of_elements[self.element] if self.base is tuple else words[self.base]
        return what + (", or None" if self.optional else "")


@functools.cache
def kinds() -> dict[str, Kind]:
    """The kind of every field of `default_config`, by dotted name; sections whose fields are not fixed are ConfigDicts."""
    found: dict[str, Kind] = {}

    def collect(section: ConfigDict, prefix: str) -> None:
        for key in section:
            name, value = prefix + key, section[key]
            if isinstance(value, ConfigDict) and len(value):
                collect(value, f"{name}.")
            else:
                element = _ELEMENTS.get(name) or (type(value[0]) if isinstance(value, tuple) else float)
                found[name] = Kind(section.get_type(key), value is None, element)

    collect(default_config(), "")
    return found


def kind_of(value: Any) -> Kind:
    """The kind of a field whose usual value is this."""
    return Kind(type(value), element=type(value[0]) if isinstance(value, tuple) and value else float)


def will_do(kind: Kind, value: Any) -> bool:
    """Whether a value is of that kind; numbers must be finite, also in float32."""
    if value is None:
        return kind.optional
    if kind.base is tuple:
        return isinstance(value, tuple | list) and all(_element_will_do(kind.element, item) for item in value)
    return _element_will_do(kind.base, value)


def _element_will_do(type_: type, value: Any) -> bool:
    if type_ in (int, float):
        if isinstance(value, bool) or not isinstance(value, Integral if type_ is int else Real):
            return False
        return type_ is int or (math.isfinite(value) and abs(float(value)) <= _LARGEST)
    if type_ is tuple:
        return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(part, str) for part in value)
    return isinstance(value, type_)


def parse(kind: Kind, text: str) -> Any:
    """The value that a text on the command line means. Raises ValueError that says what to give."""
    value = _meant(kind, text)
    if not will_do(kind, value):
        raise ValueError(f"give {kind.wanted}")
    return value


def is_bool(text: str) -> bool:
    """Whether a text means True or False."""
    return text.strip().lower() in (*_TRUE, *_FALSE)


def _meant(kind: Kind, text: str) -> Any:
    """The value of a text, or anything that is not of that kind."""
    if kind.optional and text.strip().lower() == "none":
        return None
    if kind.base is str:
        return text
    if kind.base is bool:
        return text.strip().lower() in _TRUE if is_bool(text) else text
    if kind.base in (int, float):
        return _number(kind.base, text)
    if kind.base is tuple:
        return _tuple(kind.element, text)
    value = _literal(text)
    return ConfigDict(value) if isinstance(value, dict) and all(isinstance(key, str) for key in value) else text


def _number(type_: type, text: str) -> Any:
    try:
        number = int(text) if type_ is int else float(text)
    except ValueError:
        try:
            number = float(text)
        except ValueError:
            return text
        # 1e3 and 16.0 are whole numbers, too.
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    return number


def _tuple(element: type, text: str) -> Any:
    """The elements of "(0.9, 0.99)", "[0.9, 0.99]" or "0.9,0.99"; of texts also without quotation marks."""
    text = text.strip()
    value = _literal(text)
    if isinstance(value, tuple | list) and not isinstance(value, str):
        if element is tuple and len(value) == 2 and all(isinstance(part, str) for part in value):
            return (tuple(value),)  # a single pair
        return tuple(tuple(item) if isinstance(item, list) else item for item in value)
    if element is str:
        return (value,) if isinstance(value, str) else tuple(part.strip() for part in _split(text) if part.strip())
    if element is tuple:
        return text
    parts = _split(text.removesuffix(","))  # (0.1,) may lose its brackets
    return tuple(_number(element, part) for part in parts if text)


def _split(text: str) -> list[str]:
    """The parts between commas that are not within brackets, as in the regular expression x{1,2}."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _literal(text: str) -> Any:
    """The value of a Python literal; None if it is not one."""
    if not re.match(r"\s*[(\[{\"']", text):
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
