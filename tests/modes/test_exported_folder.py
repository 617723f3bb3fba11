"""An export into a folder that holds an earlier one, with a hub on loopback."""

import pytest

from deit_jax.config import ConfigError
from deit_jax.modes.export import Push, export
from tests.hub_server import TOKEN, hub_server


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server(monkeypatch, tmp_path / "home") as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_nothing_describes_the_earlier_export(hub, trained_student, tmp_path):
    folder = tmp_path / "out"
    export(trained_student, folder, layout="hf", which="raw", push=Push("oak/leaf"))
    first = (folder / "README.md").read_text()
    (folder / "notes.txt").write_text("mine")
    export(trained_student, folder, layout="hf", which="raw")  # the same weights: the card is still right
    assert (folder / "README.md").read_text() == first
    export(trained_student, folder, layout="timm", which="raw")
    assert names(folder) == {"README.earlier.md", "config.json", "model.safetensors", "notes.txt"}
    assert (folder / "README.earlier.md").read_text() == first
    export(trained_student, folder, layout="timm", which="ema", push=Push("oak/leaf"))
    assert 'library_name: "timm"' in (folder / "README.md").read_text()
    assert set(hub.repositories["oak/leaf"].branches["main"]) == {"README.md", "config.json", "model.safetensors"}


def test_files_of_others_are_kept(hub, trained_student, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "README.md").write_text("# My models\n\n## Not verified\n")
    with pytest.raises(ConfigError, match=r"README.md is not a model card of this program and would be replaced"):
        export(trained_student, folder, layout="timm", which="raw", push=Push("oak/leaf"))
    assert names(folder) == {"README.md"} and not hub.repositories
    export(trained_student, folder, layout="timm", which="raw")
    assert (folder / "README.md").read_text().startswith("# My models")


def test_a_program_and_weights_have_separate_folders(trained_student, tmp_path):
    export(trained_student, tmp_path / "weights", layout="timm", which="raw")
    with pytest.raises(
        ConfigError, match=r"holds model.safetensors of another export.*give a program and weights separate"
    ):
        export(trained_student, tmp_path / "weights", layout="jax", which="raw")
    (tmp_path / "program").mkdir()
    (tmp_path / "program/model.jax").touch()
    with pytest.raises(ConfigError, match=r"holds model.jax of another export.*give weights and a program separate"):
        export(trained_student, tmp_path / "program", layout="timm", which="raw")
