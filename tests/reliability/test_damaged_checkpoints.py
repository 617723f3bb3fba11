"""Damaged checkpoints are detected, named and not used."""

import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from deit_jax.errors import UserError
from deit_jax.storage.checkpoints import MANIFEST, CheckpointPlaces
from deit_jax.training.checkpoint_folder import CheckpointError
from deit_jax.training.checkpointing import Checkpoints, load_state
from tests.other_user import another_user, folder_of_another_user, give
from tests.training.test_checkpointing import assert_equal, make_state


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


DAMAGES = (truncate, flip_a_byte, lengthen, Path.unlink)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A workdir with the checkpoints of steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("two")
    with Checkpoints(workdir, keep=5) as checkpoints:
        for step in (1, 2):
            checkpoints.save(make_state(step))
    return workdir


def like():
    return jax.eval_shape(lambda: make_state(0))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_detected_and_the_one_before_is_used(two, tmp_path, damage, capsys):
    names = sorted(
        path.relative_to(two / "checkpoints/2") for path in (two / "checkpoints/2").rglob("*") if path.is_file()
    )
    assert len(names) > 5
    for number, name in enumerate(names):
        workdir = tmp_path / str(number)
        shutil.copytree(two, workdir)
        damage(workdir / "checkpoints/2" / name)
        assert load_state(workdir)[1] == 1  # a reader skips it and renames nothing
        output = capsys.readouterr().out.replace("\n", "")
        assert "checkpoint 2 is DAMAGED" in output and name.name in output
        with Checkpoints(workdir) as checkpoints:
            assert checkpoints.latest_step() == 1
            assert_equal(checkpoints.restore(like()), make_state(1))
        output = capsys.readouterr().out.replace("\n", "")
        assert "checkpoint 2 is DAMAGED" in output and name.name in output and "2.damaged" in output
        assert (workdir / "checkpoints/2.damaged").is_dir()  # kept


@pytest.mark.parametrize("name", [MANIFEST, "default/_METADATA", "default/manifest.ocdbt"])
def test_a_checkpoint_that_cannot_be_read_now_is_not_damaged(two, name):
    with folder_of_another_user() as folder:
        shutil.copytree(two, folder / "run")
        give(folder)
        path, line = folder / "run/checkpoints/2" / name, rf"/2/{name} cannot be read \(Permission denied\)"
        mode = path.stat().st_mode
        path.chmod(0)
        with another_user():
            for read in (load_state, Checkpoints):
                with pytest.raises(UserError, match=line):
                    read(folder / "run")
        assert sorted(os.listdir(folder / "run/checkpoints")) == ["1", "2", "format.json"]
        path.chmod(mode)
        with Checkpoints(folder / "run") as checkpoints:
            assert checkpoints.latest_step() == 2
            assert_equal(checkpoints.restore(like()), make_state(2))
            path.chmod(0)
            if name != MANIFEST:
                with (
                    another_user(),
                    pytest.raises(CheckpointError, match=r"/2: .* cannot be read \(Permission denied\)"),
                ):
                    checkpoints.restore(like())  # the error is Orbax's


def test_what_cannot_be_removed_is_not_a_checkpoint(two):
    """As on NFS, while another process has a file open."""
    with folder_of_another_user() as folder:
        shutil.copytree(two, folder / "run")
        give(folder)
        checkpoints = folder / "run/checkpoints"
        (checkpoints / "1/default/d").chmod(0o555)
        with another_user():
            for _ in range(2):
                with Checkpoints(folder / "run", keep=1):
                    pass
                assert sorted(os.listdir(checkpoints)) == ["1.discarded", "2", "format.json"]
            shutil.copytree(checkpoints / "2", checkpoints / "1")
            CheckpointPlaces(checkpoints).discard(1)
            assert sorted(os.listdir(checkpoints)) == ["1.discarded", "2", "format.json"]
            shutil.copytree(checkpoints / "2", checkpoints / "1")
            checkpoints.chmod(0o555)
            with pytest.raises(CheckpointError, match=r"checkpoint of step 1 cannot be removed \(Permission denied\)"):
                Checkpoints(folder / "run", keep=1)._discard_surplus()


def test_if_all_are_damaged_there_is_none(two, tmp_path):
    shutil.copytree(two, tmp_path / "run")
    for step in (1, 2):
        truncate(tmp_path / f"run/checkpoints/{step}/default/_METADATA")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        load_state(tmp_path / "run")
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(make_state(1))
    assert load_state(tmp_path / "run")[1] == 1


def test_an_unfinished_checkpoint_is_removed(two, tmp_path, capsys):
    shutil.copytree(two, tmp_path / "run")
    places = CheckpointPlaces(tmp_path / "run/checkpoints")
    places.begin(3)
    shutil.copytree(two / "checkpoints/2/default", places.new_state(3))  # everything except the manifest
    assert load_state(tmp_path / "run")[1] == 2 and capsys.readouterr().out == ""  # a run may be writing it
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step() == 2
    assert "checkpoint 3 was being written when the run ended" in capsys.readouterr().out
    assert not places.has(3)


def test_checkpoints_of_an_earlier_version_get_manifests(two, tmp_path, capsys):
    shutil.copytree(two, tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    (folder / "format.json").unlink()
    for step in (1, 2):
        (folder / str(step) / MANIFEST).unlink()
    assert load_state(tmp_path / "run")[1] == 2
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step() == 2
    assert "from an earlier version" in capsys.readouterr().out
    flip_a_byte(folder / "2/default/_METADATA")
    assert load_state(tmp_path / "run")[1] == 1


def test_the_best_is_kept_with_the_newest(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, top1 in enumerate((10.0, None, 30.0, 20.0, None, 30.0 - 1e-3, None, None), 1):
            assert checkpoints.would_be_best(top1 or 0.0) == (top1 in (10.0, 30.0))
            checkpoints.save(make_state(step), top1, {"replaced": step})
        assert checkpoints.best() == (3, 30.0)
        assert checkpoints.notes() == {"replaced": 8}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()} == {"3", "7", "8"}


def test_a_checkpoint_of_another_model_raises_with_the_names_that_differ(two):
    with Checkpoints(two) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(jax.eval_shape(lambda: make_state(0, width=5, ema=False)))
    line = str(error.value)
    assert "ema/params/head/bias: float32[3] there, nothing here" in line and "and" in line and "\n" not in line
    with pytest.raises(CheckpointError, match=r"params/head/bias: float32\[3\] there, float32\[5\] here"):
        Checkpoints(two).restore(jax.eval_shape(lambda: make_state(0, width=5)))
    np.testing.assert_array_equal(load_state(two)[0]["step"], 2)
