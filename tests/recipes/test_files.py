"""Which file a name like configs/deit.py selects, with and without a file of that name."""

from pathlib import Path

import pytest

from deit_jax.errors import UserError
from deit_jax.paper.commands import FILES, load_commands
from deit_jax.recipes import files
from deit_jax.recipes.files import find_config, own_configs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_of_the_current_folder_comes_first(elsewhere):
    assert find_config("configs/deit.py") == ROOT / "configs" / "deit.py"
    write(elsewhere / "configs" / "deit.py")
    assert find_config("configs/deit.py") == Path("configs/deit.py")
    assert find_config("./configs/quickstart.py") == ROOT / "configs" / "quickstart.py"


def test_only_names_under_configs_are_looked_up(elsewhere):
    for name in ("deit.py", "other/configs/deit.py", "/configs/deit.py", "configs/../configs/deit.py", "configs"):
        with pytest.raises(UserError, match="there is no such file"):
            find_config(name)


def test_an_installed_package_has_its_own_configs(elsewhere, monkeypatch):
    package = elsewhere / "site-packages" / "deit_jax"
    write(elsewhere / "site-packages" / "configs" / "deit.py")  # of another project
    file = write(package / "configs" / "deit.py")
    monkeypatch.setattr(files, "_PACKAGE", package)
    assert own_configs() == package / "configs"
    assert find_config("configs/deit.py") == file


def test_the_error_lists_the_included_configs(elsewhere):
    with pytest.raises(UserError) as caught:
        find_config("configs/deti.py")
    message = str(caught.value)
    assert message.startswith("configs/deti.py: there is no such file") and "\n" not in message
    shipped = sorted(f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py"))
    assert message.endswith(", ".join(shipped))


def test_load_commands_uses_the_files_that_its_commands_select(elsewhere):
    everything = load_commands()
    assert {command.file for command in everything} == set(FILES)
    changed = (ROOT / "configs" / "search.py").read_text() + "\n\ndef get_config(argument):\n    return argument * 2\n"
    write(elsewhere / "configs" / "search.py", changed)
    assert {command.config() for command in load_commands() if command.file == "search"} > {"5e-4,0.055e-4,0.05"}


def test_load_commands_refuses_files_of_another_project(elsewhere):
    write(elsewhere / "configs" / "deit.py", "import ml_collections\n")
    with pytest.raises(UserError, match=r"configs/deit\.py .*belongs to another project"):
        load_commands()
