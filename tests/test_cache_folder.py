import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deit_jax import cache_folder
from deit_jax.cache_folder import has_home, have_temporary_folder, shared_cache_folder, why_unsafe, without_home


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("HOME", "/users/one")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder.cache_folder() == Path("/users/one/.cache/deit_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder.cache_folder() == Path("/users/one/.cache/deit_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert cache_folder.cache_folder() == Path("/scratch/deit_jax")
    monkeypatch.setenv("HOME", "")
    assert cache_folder.cache_folder() == Path("/scratch/deit_jax")


def test_without_a_home_there_is_no_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "")
    assert not has_home() and cache_folder.cache_folder() is None
    without_home()
    with pytest.raises(OSError):
        Path("~/.cache/of_another_library").expanduser().mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    without_home()
    assert os.environ["HOME"] == str(tmp_path)


def test_a_user_unknown_to_the_system_has_no_cache_folder():
    stranger = ["env", "-u", "HOME", "-u", "XDG_CACHE_HOME", "unshare", "--user", "--map-user=31415"]
    if subprocess.run([*stranger, "true"], capture_output=True).returncode:
        pytest.skip("no other user can be created here")
    program = f"import runpy; print(runpy.run_path({cache_folder.__file__!r})['cache_folder']())"
    done = subprocess.run([*stranger, sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "None\n", done.stderr


def test_temporary_files_go_elsewhere_if_tmp_is_not_writable(monkeypatch, tmp_path):
    def none():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == tmp_path)
    have_temporary_folder(Path("/proc/nothing"), tmp_path / "not there" / "run")
    assert tempfile.tempdir == os.environ["TMPDIR"] == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_processes_share_a_folder_per_user(monkeypatch, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    own = shared_cache_folder(tmp_path / "link" / "one")
    assert own.parent == tmp_path / "runs" and own == shared_cache_folder(tmp_path / "runs" / "two")
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert shared_cache_folder(tmp_path / "runs" / "one") != own


def test_folders_that_others_own_or_can_write_are_unsafe(monkeypatch, tmp_path):
    folder, link = tmp_path / "folder", tmp_path / "link"
    assert why_unsafe(folder) == ""  # does not exist
    folder.mkdir()
    link.symlink_to(folder)
    for mode, reason in ((0o755, ""), (0o700, ""), (0o775, "its group"), (0o702, "everybody"), (0o777, "everybody")):
        folder.chmod(mode)
        for name in (folder, link):
            assert why_unsafe(name) == (reason and f"can be written by {reason}")
    folder.chmod(0o700)
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert why_unsafe(folder) == why_unsafe(link) == "belongs to another user"
