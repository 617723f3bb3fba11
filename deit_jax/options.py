"""How an option of the configuration is declared, and what follows from it: its type, its checks and the meaning of a text.

The options themselves are declared in config.py. A registered loss has options too, from the defaults of its parameters.
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

ALWAYS_RECORDED: Any = (
    object()
)  # `before` of an option that every workdir's config.json has, or whose absence changes no number

_LARGEST = 3.4e38  # of float32
_MOST = 2**32 - 1  # of whole numbers: what JAX's counters and NumPy's generators take
_TINY, _NEARLY_1 = 1e-12, 1e-6  # what is above 0 and below 1 must be so in float32
_TRUE, _FALSE = ("true", "t", "yes", "y", "on", "1"), ("false", "f", "no", "n", "off", "0")


class Kind(NamedTuple):
    """The type of a field."""

    base: type  # bool, int, float, str, tuple or ConfigDict
    optional: bool = False  # whether None is a value
    element: type = float  # of a tuple: float, int, str, or tuple for pairs of texts
    length: int | None = None  # of a tuple; None: any

    @classmethod
    def of_annotation(cls, annotation: Any) -> Kind:
        """The kind that an annotation means: `int`, `int | None`, `tuple[float, float]`, `tuple[str, ...]`, ..."""
        parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        [part] = [part for part in parts if part is not types.NoneType]
        if typing.get_origin(part) is not tuple:
            return cls(part, optional=len(parts) > 1)
        elements = typing.get_args(part)
        length = None if elements[-1] is Ellipsis else len(elements)
        return cls(tuple, len(parts) > 1, typing.get_origin(elements[0]) or elements[0], length)

    @classmethod
    def of_value(cls, value: Any) -> Kind:
        """The kind of a field whose usual value is this."""
        return cls(type(value), element=type(value[0]) if isinstance(value, tuple) and value else float)

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

    def fits(self, value: Any) -> bool:
        """Whether a value is of this kind, without the length of a tuple; numbers must be finite, also in float32."""
        if value is None:
            return self.optional
        if self.base is tuple:
            return isinstance(value, tuple | list) and all(_element_fits(self.element, item) for item in value)
        return _element_fits(self.base, value)

    def parse(self, text: str) -> Any:
        """The value that a text on the command line means. Raises ValueError that says what to give."""
        value = _meant(self, text)
        if not self.fits(value):
            raise ValueError(f"give {self.wanted}")
        return value


@dataclasses.dataclass(frozen=True)
class Option:
    """A field of the configuration: all that is known of it.

    Attributes:
        default: what `default_config` has.
        meaning: for people, with unit and source: --help=config and docs/options.md show it.
        choices: the values that it may have; or where the package lists them, e.g. "models.vit.ATTENTIONS": a sequence, a
            mapping, or a function without arguments, which is called each time, because plugins register more.
        at_least, above, at_most, below: bounds, of every element of a tuple.
        ordered: the elements of a tuple do not fall.
        patterns: the texts of a tuple, or the first of each pair, are regular expressions.
        before: what the absence of the field in a config.json means, i.e. what was done before the field existed. It never
            changes, whatever the default becomes.
        of_model: the module of the configured model gets the value, as its field of the same name.
        only_if_typed: that it has no effect is only said where the command line has it: configuration files set it for what their
            user may add.
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
    patterns: bool = False
    before: Any = ALWAYS_RECORDED
    of_model: bool = False
    only_if_typed: bool = False
    kind: Kind = dataclasses.field(default_factory=lambda: Kind(str))

    @classmethod
    def of_value(cls, value: Any) -> Option:
        """The option of which only a usual value is known."""
        return cls(value, "", kind=Kind.of_value(value))

    def known_choices(self) -> tuple[str, ...]:
        """The values that it may have; empty: any."""
        if isinstance(self.choices, tuple):
            return self.choices
        module, name = self.choices.rsplit(".", 1)
        found = getattr(importlib.import_module(f"deit_jax.{module}"), name)
        return tuple(found() if callable(found) else found)

    @property
    def bounds(self) -> str:
        """Which numbers it may be, in words; empty: all finite ones."""
        words = [
            f"{word} {bound}"
            for word, bound in (
                ("at least", self.at_least), ("above", self.above), ("at most", self.at_most), ("below", self.below)
            )
            if bound is not None
        ]  # fmt: skip
        return " and ".join(words)

    def complaint(self, value: Any) -> str | None:
        """What is wrong with a value, in the words that follow it in a message; None if nothing is."""
        if not self.kind.fits(value):
            return f": give {self.kind.wanted}"
        if value is None:
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
    """An `Option` whose type is the annotation of the class attribute that it becomes (`declared`)."""
    return Option(default, meaning, **facts)


def declared(section: type) -> Iterator[tuple[str, Option]]:
    """The options that a class declares as annotated attributes, in their order."""
    for name, annotation in typing.get_type_hints(section).items():
        yield name, dataclasses.replace(vars(section)[name], kind=Kind.of_annotation(annotation))


def bad_pattern(patterns: Sequence[str | Sequence[str]]) -> str | None:
    """Which of several texts, or of the first of several pairs, is not a regular expression, and why."""
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
