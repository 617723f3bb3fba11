"""Every call that opens a text file specifies UTF-8, so that the locale does not matter."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = {"read_text", "write_text"}


def without_encoding(source):
    """Yields the lines of calls that open a text file without an encoding."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = getattr(getattr(call.func, "value", None), "id", "")
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        mode = named.get("mode", next((it for it in call.args if isinstance(it, ast.Constant) and it.value), None))
        opens = (
            name == "open"
            and owner not in ("os", "Image", "opener", "tarfile")
            and "b" not in str(getattr(mode, "value", ""))
        )
        if (opens or name in TEXT) and "encoding" not in named:
            yield call.lineno


@pytest.mark.parametrize("path", sorted((ROOT / "deit_jax").rglob("*.py")), ids=lambda path: path.name)
def test_every_text_file_is_opened_as_utf8(path):
    assert list(without_encoding(path.read_text(encoding="utf-8"))) == []


def test_a_call_without_an_encoding_is_found():
    source = "open(p)\nopen(p, 'w')\np.open('a')\np.read_text()\np.write_text(t)\nopen(p, mode='w')\n"
    assert list(without_encoding(source)) == [1, 2, 3, 4, 5, 6]
    right = (
        "open(p, 'rb')\np.open(mode='wb')\np.read_text(encoding='utf-8')\nImage.open(p)\nos.open(p, f)\np.read_bytes()"
    )
    assert list(without_encoding(right)) == []
