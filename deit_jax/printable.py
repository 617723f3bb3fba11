"""Texts that others chose, such as names of files and classes, made safe to show."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

# Marks of the direction of writing can make a line read as another one.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def printable(text: str | os.PathLike[str]) -> str:
    r"""`text` with backslash escapes for what would act instead of being shown: `\x1b`, `\n`, `\u202e`.

    Control characters, line separators, marks of the direction of writing. Bytes of a file name that Python could not decode
    (surrogates) are decoded as UTF-8, or else escaped as `\xe9`. The result can be written in UTF-8.
    """
    text = os.fspath(text)
    if text.isprintable():
        return text
    if not is_utf8(text):
        try:
            text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        except UnicodeEncodeError:  # surrogates that are no bytes of a file name
            text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(_escaped(character) if _acts(character) else character for character in text)


def is_utf8(text: str) -> bool:
    """Whether a text can be written in UTF-8: a file's name may have bytes that Python could not decode."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def in_one_line(text: str) -> str:
    """`text` printable, its lines joined by spaces: for messages, whose line breaks say nothing."""
    return printable(" ".join(text.split()))


def in_a_spreadsheet(text: str) -> str:
    """`text` printable, with a leading apostrophe where a spreadsheet would take it for a formula."""
    text = printable(text)
    return f"'{text}" if text.lstrip()[:1] in tuple("=+-@") and not _NUMBER.fullmatch(text) else text


def all_printable(value: Any) -> Any:
    """A value of JSON's types with all its texts, names too, printable."""
    if isinstance(value, Mapping):
        return {printable(name): all_printable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [all_printable(inner) for inner in value]
    return printable(value) if isinstance(value, str) else value


def _acts(character: str) -> bool:
    return character in _DIRECTIONS or unicodedata.category(character) in ("Cc", "Zl", "Zp")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
