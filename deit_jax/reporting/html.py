"""The pieces of a self-contained HTML page. Every text given to these functions is escaped; what is named `html` is not."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape as escape_markup
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from deit_jax.printable import printable

_STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def escape(text: str) -> str:
    """A text as part of a page: what it would do, as markup or as a control character, is shown instead."""
    return escape_markup(printable(text))


class Section(NamedTuple):
    """A part of a page: its anchor, its heading, and its content as HTML."""

    anchor: str
    title: str
    html: str


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole document; `lead` is HTML below the heading."""
    links = "".join(f'<li><a href="#{part.anchor}">{escape(part.title)}</a></li>' for part in sections)
    body = "".join(
        f'<section id="{part.anchor}" aria-labelledby="{part.anchor}-title">\n'
        f'<h2 id="{part.anchor}-title">{escape(part.title)}</h2>\n{part.html}</section>\n'
        for part in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        # Without an icon of its own a browser asks the server for one.
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{_STYLE}</style>\n</head>\n<body>\n"
        f'<header>\n<h1>{escape(title)}</h1>\n{lead}<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>\n'
        f"<main>\n{body}</main>\n</body>\n</html>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; `kind` is a class of the style sheet: "note" tells what is missing."""
    return f"<p{_class(kind)}>{escape(text)}</p>\n"


def facts(values: Mapping[str, str]) -> str:
    """Named facts."""
    return (
        "<dl>" + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in values.items()) + "</dl>\n"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str, kind: str = "") -> str:
    """A table whose rows are headed by their first cell; it scrolls within its own box. `kind`: "numbers" aligns right."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = []
    for first, *rest in rows:
        if not rest:  # a heading within the table
            lines.append(f'<tr><th scope="rowgroup" colspan="{len(columns)}" class="group">{escape(first)}</th></tr>')
            continue
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    return scrolling(
        f"<table{_class(kind)}><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>\n<tbody>"
        + "\n".join(lines) + "</tbody></table>",
        caption,
    )  # fmt: skip


def scrolling(html: str, label: str) -> str:
    """A box that what is wider than the page scrolls in, with the keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{html}</div>\n'


def details(summary: str, html: str) -> str:
    """What is folded until it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>\n{html}</details>\n"


def picture(pixels: np.ndarray, alternative: str, captions: Sequence[str] = (), kind: str = "") -> str:
    """A figure of an image uint8[H, W, 3], with lines of text below it."""
    # Few pixels are shown as pixels, not blurred.
    coarse = ' class="coarse"' if max(pixels.shape[:2]) < 128 else ""
    height, width = pixels.shape[:2]
    size = f'width="{width}" height="{height}"'
    image = f'<img src="{_data_uri(pixels)}" alt="{escape(alternative)}"{coarse} {size}>'
    lines = "".join(f"<span>{escape(line)}</span>" for line in captions if line)
    return f"<figure{_class(kind)}>{image}" + (f"<figcaption>{lines}</figcaption>" if lines else "") + "</figure>\n"


def grid(pictures: Sequence[str]) -> str:
    """Figures side by side, as many as there is room for."""
    return f'<div class="pictures">\n{"".join(pictures)}</div>\n'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _data_uri(pixels: np.ndarray, most: int = 256) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((most, most))
    file = io.BytesIO()
    if max(image.size) <= 64:
        image.save(file, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(file, "JPEG", quality=88)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
