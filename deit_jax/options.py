"""Declaration of the options of the configuration: their types, checks, and how text on the command line is parsed.

The options are declared in config.py. Those of a registered loss follow from the defaults of its parameters.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import math
import re
import types
import typing
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

from ml_collections import ConfigDict

ALWAYS_RECORDED: Any = object()  # `before` of an option that is in every config.json, or that never affects numbers

_LARGEST = 3.4e38  # the largest float32
_MOST = 2**32 - 1  # the largest whole number for JAX's counters and NumPy's generators
_TINY, _NEARLY_1 = 1e-12, 1e-6  # margins, so that values above 0 or below 1 are so in float32 too
_TRUE, _FALSE = ("true", "t", "yes", "y", "on", "1"), ("false", "f", "no", "n", "off", "0")


class Kind(NamedTuple):
    """The type of a field."""

    base: type  # bool, int, float, str, tuple or ConfigDict
    optional: bool = False  # whether None is a value
    element: type = float  # type of a tuple's elements: float, int, str, or tuple for pairs of str
    length: int | None = None  # length of a tuple; None: any
    words: tuple[str, ...] = ()  # texts that are values too, e.g. "auto" for a number

    @classmethod
    def of_annotation(cls, annotation: Any) -> Kind:
        """Returns the kind of an annotation: `int`, `int | None`, `tuple[float, float]`, `tuple[str, ...]`, ..."""
        parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        [part] = [part for part in parts if part is not types.NoneType]
        if typing.get_origin(part) is not tuple:
            return cls(part, optional=len(parts) > 1)
        elements = typing.get_args(part)
        length = None if elements[-1] is Ellipsis else len(elements)
        return cls(tuple, len(parts) > 1, typing.get_origin(elements[0]) or elements[0], length)

    @classmethod
    def of_value(cls, value: Any) -> Kind:
        """Returns the kind of a field with this default."""
        return cls(type(value), element=type(value[0]) if isinstance(value, tuple) and value else float)

    @property
    def wanted(self) -> str:
        """Describes the allowed values."""
        words: dict[type, str] = {
            bool: "True or False", int: "a whole number", float: "a finite number", str: "a text",
            ConfigDict: "a dictionary, e.g. {'depth': 6}",
        }  # fmt: skip
        of_elements: dict[type, str] = {
            int: "whole numbers, separated by commas", float: "finite numbers, separated by commas",
            str: "texts, separated by commas", tuple: "pairs of texts, e.g. (('.*', 'fsdp'),)",
        }  # fmt: skip
        what = of_elements[self.element] if self.base is tuple else words[self.base]
        return what + "".join(f", or {word}" for word in (*self.words, *(("None",) if self.optional else ())))

    def fits(self, value: Any) -> bool:
        """Whether a value is of this kind, apart from the length of a tuple. Numbers must be finite in float32."""
        if value is None:
            return self.optional
        if isinstance(value, str) and value in self.words:
            return True
        if self.base is tuple:
            return isinstance(value, tuple | list) and all(_element_fits(self.element, item) for item in value)
        return _element_fits(self.base, value)

    def parse(self, text: str) -> Any:
        """Returns the value of a text on the command line. Raises ValueError with a description of the allowed values."""
        value = _parsed(self, text)
        if not self.fits(value):
            raise ValueError(f"give {self.wanted}")
        return value


@dataclasses.dataclass(frozen=True)
class Option:
    """A field of the configuration.

    Attributes:
        default: the value in `default_config`.
        meaning: a description with unit and source, for --help=config and docs/options.md.
        choices: the allowed values, or where the package lists them, e.g. "models.attention.ATTENTIONS": a sequence, a mapping,
            or a function without arguments, which is called each time because plugins may register more.
        at_least, above, at_most, below: bounds, for every element of a tuple.
        ordered: the elements of a tuple must not decrease.
        words: texts that are allowed besides the type's values.
        patterns: the texts of a tuple, or the first of each pair, are regular expressions.
        before: the meaning of a config.json without the field: what was done before the field existed. It never changes, even if
            the default does.
        of_model: passed to the configured model's module, as its field of the same name.
        only_if_typed: that it has no effect is reported only if the command line sets it, since configuration files set it for
            fields that their users may add.
        kind: the type, from the annotation.
    """

    default: Any
    meaning: str
    choices: str | tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    ordered: bool = False
    words: tuple[str, ...] = ()
    patterns: bool = False
    before: Any = ALWAYS_RECORDED
    of_model: bool = False
    only_if_typed: bool = False
    kind: Kind = dataclasses.field(default_factory=lambda: Kind(str))

    @classmethod
    def of_value(cls, value: Any) -> Option:
        """Returns an option with this default and no other constraints than its type."""
        return cls(value, "", kind=Kind.of_value(value))

    def known_choices(self) -> tuple[str, ...]:
        """Returns the allowed values; empty if there is no such list."""
        if isinstance(self.choices, tuple):
            return self.choices
        module, name = self.choices.rsplit(".", 1)
        choices = getattr(importlib.import_module(f"deit_jax.{module}"), name)
        return tuple(choices() if callable(choices) else choices)

    @property
    def bounds(self) -> str:
        """Describes the bounds; empty if there are none."""
        words = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return " and ".join(f"{word} {bound}" for word, bound in words.items() if bound is not None)

    def complaint(self, value: Any) -> str | None:
        """Returns what is wrong with a value, as the end of a message; None if it is allowed."""
        if not self.kind.fits(value):
            return f": give {self.kind.wanted}"
        if value is None or value in self.kind.words:
            return None
        if (choices := self.known_choices()) and value not in choices:
            return f" is none of {', '.join(choices)}"
        several = isinstance(value, tuple | list)
        if self.bounds and not all(self._within(number) for number in (value if several else (value,))):
            return f" must be {self.bounds}"
        if self.kind.base is int and value > _MOST:
            return f" must be at most {_MOST}"
        if self.kind.length is not None and len(value) != self.kind.length:
            return f": give {self.kind.length} numbers, separated by commas"
        if self.ordered and list(value) != sorted(value):
            return ": give the smaller number first"
        return None

    def _within(self, number: float) -> bool:
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number >= self.above + _TINY)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number <= self.below - _NEARLY_1)
        )


def option(default: Any, meaning: str, **facts: Any) -> Any:
    """Declares an `Option`; its type is the annotation of the class attribute that it is assigned to (`declared`)."""
    return Option(default, meaning, **facts)


def declared(section: type) -> Iterator[tuple[str, Option]]:
    """Yields the options that a class declares as annotated attributes, in order."""
    for name, annotation in typing.get_type_hints(section).items():
        each = vars(section)[name]
        yield name, dataclasses.replace(each, kind=Kind.of_annotation(annotation)._replace(words=each.words))


def bad_pattern(patterns: Sequence[str | Sequence[str]]) -> str | None:
    """Returns which of the texts, or of the first texts of the pairs, is not a regular expression, and why; None if all are."""
    for pattern in patterns:
        text = pattern if isinstance(pattern, str) else pattern[0]
        try:
            re.compile(text)
        except re.error as error:
            return f"{text!r} is not a regular expression ({error})"
    return None


def is_bool(text: str) -> bool:
    """Whether a text means True or False."""
    return text.strip().lower() in (*_TRUE, *_FALSE)


def _element_fits(type_: type, value: Any) -> bool:
    if type_ in (int, float):
        if isinstance(value, bool) or not isinstance(value, Integral if type_ is int else Real):
            return False
        return type_ is int or (math.isfinite(value) and abs(float(value)) <= _LARGEST)
    if type_ is tuple:
        return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(part, str) for part in value)
    return isinstance(value, type_)


def _parsed(kind: Kind, text: str) -> Any:
    """The value of a text, or a value that does not fit the kind."""
    if kind.optional and text.strip().lower() == "none":
        return None
    if text.strip().lower() in kind.words:
        return text.strip().lower()
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
    for convert in (type_, float):
        try:
            number = convert(text)
        except ValueError:
            continue
        whole = convert is not type_ and number.is_integer() and abs(number) < 2**53  # 1e3 and 16.0 are whole numbers
        return int(number) if whole else number
    return text


def _tuple(element: type, text: str) -> Any:
    """The elements of "(0.9, 0.99)", "[0.9, 0.99]" or "0.9,0.99"; texts need no quotation marks."""
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
    parts = _split(text.removesuffix(","))  # (0.1,) without brackets
    return tuple(_number(element, part) for part in parts if text)


def _split(text: str) -> list[str]:
    """Splits at commas outside of brackets, which occur in regular expressions such as x{1,2}."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _literal(text: str) -> Any:
    """The value of a Python tuple, list, dictionary or string; None for anything else."""
    if not re.match(r"\s*[(\[{\"']", text):
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
