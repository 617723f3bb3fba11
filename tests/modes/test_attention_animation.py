import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from deit_jax.modes.attention_animation import attention_animation

SVG = "{http://www.w3.org/2000/svg}"
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)


def maps(blocks, tokens, side, *, seed=1):
    drawn = np.random.default_rng(seed).random((blocks, tokens, side, side)).astype(np.float32)
    return drawn / (drawn.sum(axis=(-1, -2), keepdims=True) * 1.25)


def pictures(element):
    """The decoded pictures directly within an element, float64[H, W, bands]."""
    data = [one.get("href").partition("base64,")[2] for one in element.findall(f"{SVG}image")]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))), np.float64) for one in data]


def texts(element):
    return [one.text for one in element.findall(f"{SVG}text")]


def test_every_block_is_a_frame_with_the_map_of_each_token():
    values = maps(3, 2, 5)
    svg = ElementTree.fromstring(attention_animation("a boot", IMAGE, values, ("class", "distillation")))
    shown, pale, other = pictures(svg)
    expected = np.asarray(Image.fromarray(IMAGE).resize(shown.shape[:2], Image.Resampling.BICUBIC), np.float64)
    assert np.abs(shown - expected).mean() < 8  # JPEG
    np.testing.assert_array_equal(pale, other)
    assert texts(svg) == ["input of the network", "a boot", "class token", "distillation token"]
    blocks = svg.findall(f"{SVG}g")
    assert len(blocks) == 3
    for number, (block, of_tokens) in enumerate(zip(blocks, values, strict=True), 1):
        for overlay, of_token in zip(pictures(block), of_tokens, strict=True):
            rows = (np.arange(5) * len(overlay) // 5) + len(overlay) // 10
            opacity = overlay[rows][:, rows, 3] / 255
            np.testing.assert_allclose(opacity, 0.1 + 0.75 * of_token / of_token.max(), atol=0.005)
        assert texts(block)[0] == f"to patches 0.80, largest {of_tokens[0].max():.3f}"
        assert texts(block)[-1] == f"block {number} of 3, mean of the heads"


@pytest.mark.parametrize("blocks", [1, 4])
def test_one_block_is_visible_at_any_time(blocks):
    text = attention_animation("x", IMAGE, maps(blocks, 1, 2), ("class",))
    [seconds] = [float(found) for found in re.findall(r"animation:show ([\d.]+)s step-end infinite", text)]
    [share] = [float(found) / 100 for found in re.findall(r"([\d.]+)%{opacity:0}", text)]
    delays = [float(found) for found in re.findall(r"animation-delay:(-[\d.]+)s", text)]
    for time in np.arange(0.05, 2 * seconds, 0.1):
        visible = [k for k, delay in enumerate(delays) if (time - delay) % seconds < share * seconds]
        assert visible == [int(time / seconds * blocks) % blocks]
    assert ".block:last-child{opacity:1}" in text and "prefers-reduced-motion" in text  # without animations


def test_titles_are_escaped_and_cut():
    text = attention_animation("<b>\u202e & " + "long " * 20, IMAGE, maps(1, 1, 2), ("class",))
    [title] = [one for one in texts(ElementTree.fromstring(text)) if one.startswith("<b>")]
    assert title.startswith("<b>\\u202e & long") and title.endswith("...") and len(title) < 45


def test_the_file_of_a_full_size_network_stays_small():
    assert len(attention_animation("x", IMAGE, maps(12, 2, 14), ("class", "distillation"))) < 200_000
