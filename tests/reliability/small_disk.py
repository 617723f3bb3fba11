"""A disk that is really full: a small file system in memory, for those who may mount one."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: float = 8):
    """`folder` as a file system of its own; the test is skipped where it cannot be mounted."""
    folder.mkdir()
    size = f"size={int(megabytes * 1024)}k"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """A file that takes all of a small disk but `leave` bytes."""
    disk = os.statvfs(folder)
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        file.write(bytes(max(disk.f_bavail * disk.f_frsize - leave, 0)))
    return path


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)
