import contextlib
import os

import jax
import pytest

from deit_jax import command_line
from deit_jax.cache_folder import shared_cache_folder
from deit_jax.parallel.compilation_cache import keep_compiled_programs, share_compiled_programs, shares_programs
from tests.tiny import tiny_config


@pytest.fixture
def no_folder_yet():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_folder_is_private(no_folder_yet, tmp_path):
    keep_compiled_programs(str(tmp_path / "a" / "b"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_configured_folder_is_kept(no_folder_yet, tmp_path):
    jax.config.update("jax_compilation_cache_dir", "/elsewhere")
    keep_compiled_programs(str(tmp_path))
    assert jax.config.jax_compilation_cache_dir == "/elsewhere"


def test_no_folder_and_invalid_folder_disable_the_cache(no_folder_yet, tmp_path):
    (tmp_path / "file").touch()
    for folder in ("", str(tmp_path / "file" / "cache")):
        keep_compiled_programs(folder)
        assert jax.config.jax_compilation_cache_dir is None


def test_no_home_disables_the_default_folder(no_folder_yet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "")
    keep_compiled_programs("auto")
    assert jax.config.jax_compilation_cache_dir is None and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("unsafe", ["everybody", "its group", "another user"])
def test_unsafe_folder_is_not_used(no_folder_yet, tmp_path, monkeypatch, unsafe):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod({"everybody": 0o777, "its group": 0o770, "another user": 0o700}[unsafe])
    if unsafe == "another user":
        own = os.getuid()
        monkeypatch.setattr("os.getuid", lambda: own + 1)
    warning = keep_compiled_programs(str(folder))
    assert jax.config.jax_compilation_cache_dir is None
    assert warning.startswith("compiled programs are not cached") and unsafe in warning and str(folder) in warning
    assert ("; remove it, or name another" in warning) == (unsafe != "another user")  # it cannot be removed
    assert "name another in config.parallel.compilation_cache" in warning and "\n" not in warning


def test_several_processes_cache_next_to_the_workdir(no_folder_yet, tmp_path, monkeypatch):
    folder = shared_cache_folder(tmp_path / "runs" / "one")
    assert folder == tmp_path / "runs" / f".deit_jax-{os.getuid()}"
    assert share_compiled_programs("auto", folder) == "" and not shares_programs("auto")
    assert jax.config.jax_compilation_cache_dir is None and not folder.parent.exists()  # one process: its user's folder
    monkeypatch.setattr("jax.process_count", lambda: 4)
    assert share_compiled_programs("", folder) == share_compiled_programs("/named", folder) == ""
    assert jax.config.jax_compilation_cache_dir is None
    for _ in range(2):
        assert share_compiled_programs("auto", folder) == ""
        assert jax.config.jax_compilation_cache_dir == str(folder)
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(0o755)  # as created for an index of the data
    folder.chmod(0o777)
    assert "can be written by everybody" in share_compiled_programs("auto", folder)
    assert jax.config.jax_compilation_cache_dir is None


def test_unused_unsafe_folder_is_not_reported(no_folder_yet, tmp_path, monkeypatch, capsys):
    unsafe = tmp_path / ".cache" / "deit_jax"
    unsafe.mkdir(parents=True)
    unsafe.chmod(0o777)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("deit_jax.parallel.distributed.start", lambda *_, **__: None)
    command_line.parse(["run.py"])

    def said(processes, beside_workdir, cache="auto"):
        monkeypatch.setattr("jax.process_count", lambda: processes)
        config = tiny_config(parallel__compilation_cache=cache, parallel__keep_host_memory=False)
        command_line._prepare_process(config, beside_workdir=beside_workdir)
        return "compiled programs are not cached" in capsys.readouterr().out

    assert not said(2, True)
    assert said(2, False) and said(1, True) and said(2, True, cache=str(unsafe))


def test_second_run_in_a_process_uses_its_folder(no_folder_yet, tmp_path):
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
    """Caches programs regardless of their compile time."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    yield
    jax.config.update(name, before)
