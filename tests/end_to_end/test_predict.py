import pytest

from tests.end_to_end.commands import TINY, refused, succeed
from tests.inference.conftest import CHINA, FLOWER
from tests.modes.workdirs import untrained
from tests.tiny import tiny_config


@pytest.mark.long
def test_files_are_classified_by_a_command(tmp_path):
    untrained(tmp_path / "run", tiny_config())
    # Flags may follow the files.
    done = succeed("--mode=predict", CHINA, FLOWER, f"--workdir={tmp_path / 'run'}")
    assert "crops_china.jpg" in done.stdout and "crops_flower.jpg" in done.stdout
    assert "2 images" in done.stdout


def test_a_command_without_files_or_weights_is_refused():
    assert "no image is given" in refused("--mode=predict", TINY)
    assert "either --workdir" in refused("--mode=predict", CHINA)
    assert "the configuration's is --config.train.epochs" in refused(TINY, "--epochs=6")
    assert "unexpected argument" in refused("--mode=eval", TINY, CHINA)
