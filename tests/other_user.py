"""A folder whose permissions bind the test, also if it runs as root."""

import contextlib
import os
import tempfile
from pathlib import Path

NOBODY = 65534


@contextlib.contextmanager
def another_user():
    """Inside the block, root is another user."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@contextlib.contextmanager
def folder_of_another_user():
    """Gives a new folder, which `another_user` owns; `give` it what others have put there."""
    with tempfile.TemporaryDirectory() as name:
        give(Path(name))
        yield Path(name)


def give(folder):
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
