"""Text in pictures: the installed fonts that have its characters, and what is drawn where none has."""

from __future__ import annotations

import functools
import textwrap
import unicodedata
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

from deit_jax.printable import printable

_SHAPES_TEXT = matplotlib.__version_info__ >= (3, 11)  # joins letters, and writes from right to left


def drawn(text: str, class_names: Sequence[str] = (), *, width: int = 0, lines: int = 1) -> str:
    r"""`text` as matplotlib is to get it, so that every character is drawn as itself.

    A class name that no installed font can write becomes "class 3", other such characters escapes (`\u82b1`). No part is taken
    for mathematics.

    Args:
      text: in one line.
      class_names: the names that may occur in it, in the order of the classes.
      width: characters of a line, if it is to be folded; 0: it is not.
      lines: of a folded text; what is longer ends in an ellipsis.
    """
    text = printable(text)
    for number, name in undrawable(tuple(class_names)).items():
        text = text.replace(name, f"class {number}")
    text = "".join(it if _family_with(it) is not None else it.encode("unicode_escape").decode() for it in text)
    if width:
        text = "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder="…"))
    return text.replace("$", r"\$")


@functools.lru_cache(maxsize=16)
def undrawable(class_names: tuple[str, ...]) -> dict[int, str]:
    """The names that no installed font can write, printable and by their classes' numbers; the longest first."""
    names = {number: printable(name) for number, name in enumerate(class_names)}
    found = [(number, name) for number, name in names.items() if any(_family_with(it) is None for it in name)]
    return dict(sorted(found, key=lambda pair: -len(pair[1])))


def use_fonts(figure: Figure) -> None:
    """Let the figure's texts have the fonts that their characters need besides the default one. Call this before drawing."""
    texts = figure.findobj(Text)
    families = {_family_with(character) for text in texts for character in text.get_text()}
    further = sorted(family for family in families if family)
    if further:
        for text in texts:
            text.set_fontfamily([*text.get_fontfamily(), *further])


@functools.cache
def _family_with(character: str) -> str | None:
    """The family of an installed font that has a character; "" for the default font, None where no font has it."""
    if character == "\n":
        return ""
    if not _SHAPES_TEXT and unicodedata.bidirectional(character) in ("R", "AL"):
        return None
    return next((family for family, file in _files().items() if ord(character) in _characters(file)), None)


@functools.cache
def _files() -> dict[str, str]:
    """The file of each family that is installed, the default one ("") first, then those that are made for many languages."""
    own = matplotlib.get_data_path()  # for mathematics, other than the default one
    plain = {
        font.name: font.fname
        for font in fontManager.ttflist
        if font.weight == 400 and font.style == "normal" and not font.fname.startswith(own)
    }
    families = sorted(plain, key=lambda name: (not name.startswith(("Noto Sans", "DejaVu Sans")), name))
    return {"": str(findfont(FontProperties())), **{name: plain[name] for name in families}}


@functools.cache
def _characters(file: str) -> frozenset[int]:
    try:
        return frozenset(get_font(file).get_charmap())
    except (OSError, RuntimeError):  # e.g. of pictures in colour, which matplotlib cannot draw
        return frozenset()
