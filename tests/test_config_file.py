import pytest

from deit_jax.config_file import field_names, refusal

KNOWN = field_names()
START = "from deit_jax.config import default_config\ndef get_config():\n    config = default_config()\n"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (START + "    config.train.epoch = 3\n", ", line 4: there is no field 'epoch'; the nearest is 'epochs'"),
        (START + "    config.trian.epochs = 3\n", ", line 4: there is no field 'trian'; the nearest is 'train'"),
        (START + "    config.train.epochs = 'many'\n", ", line 4: TypeError: Could not override field 'epochs'"),
        (START, ": get_config returns nothing, not a ConfigDict"),
        ("def get_config():\n    return {}\n", ": get_config returns a dict, not a ConfigDict"),
        ("x = 1\n\ndef get_config(:\n", ", line 3: invalid syntax"),
        ("import nothing_like_it\n", ", line 1: ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("def get_config():\n    open('/nowhere')\n", ", line 2: FileNotFoundError:"),
        ("x = 1\n", " has no function get_config"),
    ],
)  # fmt: skip
def test_file_line_and_what_are_told(tmp_path, source, said):
    path = tmp_path / "mine.py"
    path.write_text(source)
    line = refusal(str(path), KNOWN)
    assert line.startswith(f"{path}{said}"), line
    assert "\n" not in line and len(line) < 500


def test_what_the_file_itself_refuses_stands_alone():
    assert refusal("configs/deit.py:huge", KNOWN).startswith("configs/deit.py:huge: 'huge' is not known")


def test_a_good_file_is_not_refused():
    assert refusal("configs/deit.py:small,distilled", KNOWN) is None
