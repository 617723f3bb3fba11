import pytest

from deit_jax.config_file import ConfigFileError, load_config
from deit_jax.errors import UserError

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
        (START + "    config.teacher.recipe = type(config)({'seed': 1})\n    return config\n",
         ": the configuration has no field 'teacher.recipe."),
        ("import ml_collections as m\ndef get_config():\n    return m.ConfigDict()\n", ": the configuration has no field"),
    ],
)  # fmt: skip
def test_file_line_and_what_are_told(tmp_path, source, said):
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(ConfigFileError) as raised:
        load_config(str(path))
    line = str(raised.value)
    assert line.startswith(f"{path}{said}"), line
    assert "\n" not in line and len(line) < 500


def test_what_the_file_itself_refuses_stands_alone():
    with pytest.raises(UserError, match=r"^configs/deit.py:huge: 'huge' is not known"):
        load_config("configs/deit.py:huge")


def test_a_good_file_gives_its_configuration_locked(tmp_path):
    config = load_config("configs/deit.py:small,distilled")
    assert config.model.name == "deit_small_distilled_patch16_224" and config.is_locked
    # A dataclass looks for its module by name.
    source = "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass Sizes:\n    rows: int = 48\n"
    (tmp_path / "mine.py").write_text(
        source + START + "    config.train.batch_size = Sizes().rows\n    return config\n"
    )
    assert load_config(str(tmp_path / "mine.py")).train.batch_size == 48
