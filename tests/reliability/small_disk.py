"""A full disk: a small file system in memory, if the user may mount one."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: float = 8):
    """Mounts a small file system at `folder`; skips the test if that fails."""
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
    """Writes a file that fills a small disk except `leave` bytes."""
    disk = os.statvfs(folder)
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        file.write(bytes(max(disk.f_bavail * disk.f_frsize - leave, 0)))
    return path


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)
