import io
import shutil
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.font_manager import fontManager, get_font

from deit_jax.modes.analysis_output import plot_disagreement
from deit_jax.reporting import plots
from deit_jax.reporting.plots import captioned_grid, confusion_picture, heat_map, image_grid

NOWHERE = "\U0003fffd"  # an unassigned character, which no font has
TTF = Path(matplotlib.get_data_path()) / "fonts/ttf"


@pytest.fixture
def added_font(tmp_path):
    """Installs a font; returns a character that it has and the default font lacks."""
    path = shutil.copy(TTF / "STIXGeneral.ttf", tmp_path)
    default = get_font(TTF / "DejaVuSans.ttf").get_charmap()
    character = next(chr(code) for code in get_font(path).get_charmap() if code not in default and chr(code).isalpha())
    fontManager.addfont(path)
    caches = plots._files, plots._family_with, plots.undrawable
    for cache in caches:
        cache.cache_clear()
    yield character
    fontManager.ttflist[:] = [font for font in fontManager.ttflist if font.fname != str(path)]
    for cache in caches:
        cache.cache_clear()


def test_texts_are_not_drawn_in_math_mode():
    assert plots.drawn("$100 and a_b^c$") == r"\$100 and a_b^c\$"
    nasty = ["$100", "a_b^c$", "$\\frac{", "%s {0} \\$"]
    assert confusion_picture(np.eye(4, dtype=int), nasty).std() > 0


def test_a_class_name_without_a_font_becomes_its_number():
    names = ("cat", f"a{NOWHERE}", f"a{NOWHERE}b", "\x1b")
    assert plots.undrawable(names) == {2: f"a{NOWHERE}b", 1: f"a{NOWHERE}"}
    assert plots.drawn(f"0.60 a{NOWHERE}b + 0.40 a{NOWHERE}", names) == "0.60 class 2 + 0.40 class 1"
    assert plots.drawn(f"file {NOWHERE}\x1b") == r"file \U0003fffd\x1b"


def test_long_names_are_wrapped_and_truncated():
    assert plots.drawn("a b " * 50, width=10, lines=2).count("\n") == 1
    assert plots.drawn("x" * 500, width=40).endswith("…")


def test_a_font_that_has_the_characters_is_used(added_font):
    assert plots.drawn(added_font) == added_font and plots.undrawable((added_font,)) == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_font = confusion_picture(np.eye(2, dtype=int), [added_font, "b"])
    assert with_font.std() > 0


def test_pictures_of_any_names_are_drawn_without_warnings(tmp_path):
    names = ["花", "Köln", "🐈\u200d⬛", "عربي", f"{NOWHERE}", "$x_1$", "caf\udce9", "\x1b[31m\n", "long " * 40]
    images = np.zeros((len(names), 8, 8, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        confusion_picture(np.ones((len(names),) * 2, int), names)
        captioned_grid(io.BytesIO(), list(images), [f"is {name}" for name in names], class_names=names)
        image_grid(tmp_path / "grid.png", ["$a$"], images[:, None], [[name] for name in names], class_names=names)
        plot_disagreement(tmp_path / "d.png", names, np.eye(len(names)), title=names[0])


@pytest.mark.parametrize("side", [28, 224])
def test_a_heat_map_is_reddest_at_the_largest_weight(side):
    weights = np.zeros((2, 2), np.float32)
    weights[0, 1] = 0.3
    found = heat_map(np.full((side, side, 3), 90, np.uint8), weights).astype(int)
    assert found.shape[0] == found.shape[1] >= 112
    red = found[..., 0] - found[..., 2]
    half = len(red) // 2
    assert red[:half, half:].min() > red[half:].max() + 30 and red[:half, half:].min() > red[:half, :half].max() + 30
