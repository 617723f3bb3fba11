import io
import shutil
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.font_manager import fontManager, get_font

from deit_jax.reporting import fonts
from deit_jax.reporting.analysis_plots import disagreement
from deit_jax.reporting.plots import captioned_grid, confusion_picture, image_grid

NOWHERE = "\U0003fffd"  # a character that is not assigned, so that no font has it
TTF = Path(matplotlib.get_data_path()) / "fonts/ttf"


@pytest.fixture
def further_font(tmp_path):
    """An installed font, and a character that it has and the default one does not have."""
    path = shutil.copy(TTF / "STIXGeneral.ttf", tmp_path)
    default = get_font(TTF / "DejaVuSans.ttf").get_charmap()
    character = next(chr(code) for code in get_font(path).get_charmap() if code not in default and chr(code).isalpha())
    fontManager.addfont(path)
    caches = fonts._files, fonts._family_with, fonts.undrawable
    for cache in caches:
        cache.cache_clear()
    yield character
    fontManager.ttflist[:] = [font for font in fontManager.ttflist if font.fname != str(path)]
    for cache in caches:
        cache.cache_clear()


def test_texts_are_no_mathematics():
    assert fonts.drawn("$100 and a_b^c$") == r"\$100 and a_b^c\$"
    nasty = ["$100", "a_b^c$", "$\\frac{", "%s {0} \\$"]
    assert confusion_picture(np.eye(4, dtype=int), nasty).std() > 0


def test_a_class_that_no_font_can_write_is_called_by_its_number():
    names = ("cat", f"a{NOWHERE}", f"a{NOWHERE}b", "\x1b")
    assert fonts.undrawable(names) == {2: f"a{NOWHERE}b", 1: f"a{NOWHERE}"}
    assert fonts.drawn(f"0.60 a{NOWHERE}b + 0.40 a{NOWHERE}", names) == "0.60 class 2 + 0.40 class 1"
    assert fonts.drawn(f"file {NOWHERE}\x1b") == r"file \U0003fffd\x1b"


def test_long_names_are_folded_and_end():
    assert fonts.drawn("a b " * 50, width=10, lines=2).count("\n") == 1
    assert fonts.drawn("x" * 500, width=40).endswith("…")


def test_a_font_that_has_the_characters_is_used(further_font):
    assert fonts.drawn(further_font) == further_font and fonts.undrawable((further_font,)) == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_font = confusion_picture(np.eye(2, dtype=int), [further_font, "b"])
    assert with_font.std() > 0


def test_pictures_of_any_names_are_drawn_without_warnings(tmp_path):
    names = ["花", "Köln", "🐈\u200d⬛", "عربي", f"{NOWHERE}", "$x_1$", "caf\udce9", "\x1b[31m\n", "long " * 40]
    images = np.zeros((len(names), 8, 8, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        confusion_picture(np.ones((len(names),) * 2, int), names)
        captioned_grid(io.BytesIO(), list(images), [f"is {name}" for name in names], class_names=names)
        image_grid(tmp_path / "grid.png", ["$a$"], images[:, None], [[name] for name in names], class_names=names)
        disagreement(tmp_path / "d.png", names, np.eye(len(names)), title=names[0])
