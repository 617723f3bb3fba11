import contextlib
import os

import jax
import pytest

from deit_jax.parallel.compilation_cache import keep_compiled_programs, share_compiled_programs


@pytest.fixture
def no_folder_yet():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_folder_is_made_for_its_owner_only(no_folder_yet, tmp_path):
    keep_compiled_programs(str(tmp_path / "a" / "b"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_is_set_already_is_kept(no_folder_yet, tmp_path):
    jax.config.update("jax_compilation_cache_dir", "/elsewhere")
    keep_compiled_programs(str(tmp_path))
    assert jax.config.jax_compilation_cache_dir == "/elsewhere"


def test_none_is_none_and_an_impossible_one_too(no_folder_yet, tmp_path):
    (tmp_path / "file").touch()
    for folder in ("", str(tmp_path / "file" / "cache")):
        keep_compiled_programs(folder)
        assert jax.config.jax_compilation_cache_dir is None


def test_without_a_home_its_folder_is_none(no_folder_yet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "")
    keep_compiled_programs("auto")
    assert jax.config.jax_compilation_cache_dir is None and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("unsafe", ["everybody", "another user"])
def test_a_folder_that_others_could_fill_is_not_used(no_folder_yet, tmp_path, monkeypatch, unsafe):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o777 if unsafe == "everybody" else 0o700)
    if unsafe == "another user":
        own = os.getuid()
        monkeypatch.setattr("os.getuid", lambda: own + 1)
    warning = keep_compiled_programs(str(folder))
    assert jax.config.jax_compilation_cache_dir is None
    assert warning.startswith("compiled programs are not kept") and unsafe in warning and str(folder) in warning
    assert "\n" not in warning


def test_several_processes_keep_their_programs_beside_the_workdir(no_folder_yet, tmp_path, monkeypatch):
    workdir = tmp_path / "runs" / "one"
    assert share_compiled_programs("auto", workdir) == ""
    assert (
        jax.config.jax_compilation_cache_dir is None and not workdir.parent.exists()
    )  # one process: its user's folder
    monkeypatch.setattr("jax.process_count", lambda: 4)
    assert share_compiled_programs("", workdir) == share_compiled_programs("/named", workdir) == ""
    assert jax.config.jax_compilation_cache_dir is None
    assert share_compiled_programs("auto", workdir) == ""
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "runs" / ".deit_jax")
    assert (tmp_path / "runs" / ".deit_jax").stat().st_mode & 0o777 == 0o700
    (tmp_path / "runs" / ".deit_jax").chmod(0o777)
    assert "can be written by everybody" in share_compiled_programs("auto", workdir)
    assert jax.config.jax_compilation_cache_dir is None


def test_a_second_run_in_a_process_gets_the_folder_that_it_asks_for(no_folder_yet, tmp_path):
    for number, name in enumerate(("a", "b", "", "a")):
        keep_compiled_programs(str(tmp_path / name) if name else "")
        assert jax.config.jax_compilation_cache_dir == (str(tmp_path / name) if name else None)
        files = {one: len(list((tmp_path / one).glob("*"))) for one in "ab" if (tmp_path / one).exists()}
        with _everything_is_kept():
            jax.jit(lambda x, number=number: x * number + 3).lower(1.0).compile()
        for one, count in files.items():
            assert (len(list((tmp_path / one).glob("*"))) > count) == (one == name)


@contextlib.contextmanager
def _everything_is_kept():
    """However quickly it was compiled."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    yield
    jax.config.update(name, before)
