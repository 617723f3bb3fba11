"""Makes untrusted texts, such as names of files and classes, safe to print."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

# Marks of the writing direction can make a line read differently.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def printable(text: str | os.PathLike[str]) -> str:
    r"""Returns `text` with backslash escapes for characters with side effects: `\x1b`, `\n`, `\u202e`.

    These are control characters, line separators and marks of the writing direction. Bytes of a file name that Python could not
    decode (surrogates) are decoded as UTF-8, or else escaped as `\xe9`. The result can be encoded in UTF-8.
    """
    text = os.fspath(text)
    if text.isprintable():
        return text
    if not is_utf8(text):
        try:
            text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        except UnicodeEncodeError:  # surrogates that do not stand for bytes
            text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(_escaped(character) if _acts(character) else character for character in text)


def is_utf8(text: str) -> bool:
    """Whether a text can be encoded in UTF-8. A file name may contain bytes that Python could not decode."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def in_one_line(text: str) -> str:
    """Returns `text` printable and in one line, for messages."""
    return printable(" ".join(text.split()))


def in_a_spreadsheet(text: str) -> str:
    """Returns `text` printable, with a leading apostrophe if a spreadsheet would treat it as a formula."""
    text = printable(text)
    return f"'{text}" if text.lstrip()[:1] in tuple("=+-@") and not _NUMBER.fullmatch(text) else text


def all_printable(value: Any) -> Any:
    """Returns a JSON value with all of its texts, including keys, printable."""
    if isinstance(value, Mapping):
        return {printable(name): all_printable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [all_printable(inner) for inner in value]
    return printable(value) if isinstance(value, str) else value


def _acts(character: str) -> bool:
    return character in _DIRECTIONS or unicodedata.category(character) in ("Cc", "Zl", "Zp")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
