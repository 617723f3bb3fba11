"""An animated picture of the attention of class and distillation token on one image, block by block: an SVG without scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image

from deit_jax.reporting.html import escape

_SIDE = 224  # pixels of a panel
_GAP, _TOP, _BOTTOM = 12, 26, 62
_LETTERS = 32  # of a title, which has the width of a panel
_SECONDS = 1.2  # per block


def attention_animation(title: str, image: np.ndarray, maps: np.ndarray, tokens: Sequence[str]) -> str:
    """Returns an SVG: the image, and next to it for each token the attention to the patches, one block after the other.

    The animation is CSS, so an <img> plays it. A viewer without animations, or a reader who asks for none, sees the last block.

    Args:
      title: the text below the image.
      image: uint8[H, W, 3], as the network sees it.
      maps: float32[L, P, h, w]: by block and token, each with its own colour scale; the mean over the heads.
      tokens: the names of the P tokens.
    """
    blocks = len(maps)
    width, height = (len(tokens) + 1) * (_SIDE + _GAP) + _GAP, _TOP + _SIDE + _BOTTOM
    lefts = [_GAP + i * (_SIDE + _GAP) for i in range(len(tokens) + 1)]
    pixels = Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    label = f"Attention of the {' and '.join(tokens)} token on {title}, block by block"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(label)}">\n<style>{_style(blocks)}</style>\n',
        f'<rect width="{width}" height="{height}" fill="white"/>\n',
        _text(lefts[0], _TOP - 9, "input of the network"),
        _picture(lefts[0], pixels, "jpeg", quality=90),
        _text(lefts[0], _TOP + _SIDE + 18, title if len(title) <= _LETTERS else f"{title[: _LETTERS - 3]}..."),
    ]
    # Pale and gray, so that light and dark areas of the image are not mistaken for the map's.
    pale = Image.fromarray((255 - 0.35 * (255 - np.asarray(pixels.convert("L"), np.float32))).astype(np.uint8))
    for left, token in zip(lefts[1:], tokens, strict=True):
        parts += [_text(left, _TOP - 9, f"{token} token"), _picture(left, pale, "jpeg", quality=85)]
    for block, by_token in enumerate(maps):
        shown = [f'<g class="block" style="animation-delay:{-_SECONDS * (blocks - block):.1f}s">\n']
        for left, values in zip(lefts[1:], by_token, strict=True):
            shown.append(_picture(left, _overlay(values), "png", optimize=True))
            facts = f"to patches {values.sum():.2f}, largest {values.max():.3f}"
            shown.append(_text(left, _TOP + _SIDE + 18, facts))
        done = (width - 2 * _GAP) * (block + 1) / blocks
        shown.append(f'<rect x="{_GAP}" y="{height - 28}" width="{done:.0f}" height="3" fill="#a50f15"/>\n')
        shown.append(_text(_GAP, height - 9, f"block {block + 1} of {blocks}, mean of the heads"))
        parts += [*shown, "</g>\n"]
    return "".join(parts) + "</svg>\n"


def _style(blocks: int) -> str:
    return (
        "text{font:13px sans-serif;fill:#222}"
        f".block{{opacity:0;animation:show {_SECONDS * blocks:.1f}s step-end infinite}}.block:last-child{{opacity:1}}"
        f"@keyframes show{{0%{{opacity:1}}{100 / blocks:.4f}%{{opacity:0}}}}"
        "@media (prefers-reduced-motion:reduce){.block{animation:none}}"
    )


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x}" y="{y}">{escape(text)}</text>\n'


def _picture(left: int, image: Image.Image, kind: str, **options: int | bool) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    data = base64.b64encode(file.getvalue()).decode()
    place = f'x="{left}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}"'
    return f'<image {place} href="data:image/{kind};base64,{data}"/>\n'


def _overlay(values: np.ndarray) -> Image.Image:
    """Draws a map float32[h, w] in red, more opaque where it is larger; each value is a square."""
    share = values / max(float(values.max()), 1e-12)
    colors = colormaps["Reds"](share)
    colors[..., 3] = 0.1 + 0.75 * share
    shown = Image.fromarray((255 * colors).round().astype(np.uint8), "RGBA")
    return shown.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
