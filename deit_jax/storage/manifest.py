"""What a finished checkpoint consists of: every file's size and digest, so that damage is found before it is used.

The manifest is written last, so a folder without one was not finished.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from deit_jax.errors import UserError

NAME = "manifest.json"


class DamageError(UserError):
    """A folder that is not what its manifest says. The message is one line that names the file."""


def begin(folder: Path) -> None:
    """Make `folder`, marked as unfinished until it is sealed."""
    folder.mkdir(parents=True)
    (folder / (NAME + ".partial")).touch()


def is_unfinished(folder: Path) -> bool:
    """Whether the folder was begun and not sealed; one with neither mark has lost its manifest."""
    return (folder / (NAME + ".partial")).exists() and not is_sealed(folder)


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Write the manifest of the files in `folder`, with `facts` about them; all of it is on the disk when this returns.

    Raises OSError, e.g. when the disk is full.
    """
    files = {}
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "blake2b": _digest(path)}
    for inner in {path.parent for path in _files(folder)}:
        _sync_folder(inner)
    content = {**facts, "files": files}
    partial = folder / (NAME + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        # The manifest's own digest: a flipped byte in it must not accuse a sound file, or move a fact.
        file.write(json.dumps({"content": content, "blake2b": _digest_of(content)}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / NAME)
    _sync_folder(folder)
    _sync_folder(folder.parent)


def is_sealed(folder: Path) -> bool:
    """Whether there is a manifest: the folder was finished once."""
    return (folder / NAME).is_file()


def facts(folder: Path) -> dict[str, Any]:
    """What `seal` was given. Raises DamageError if the manifest cannot be read."""
    return {name: value for name, value in _read(folder).items() if name != "files"}


def check(folder: Path) -> dict[str, Any]:
    """Read every file and compare it with the manifest; returns what `seal` was given.

    Raises DamageError for a file that is not there or not what it was, and for a manifest that cannot be read.
    """
    content = _read(folder)
    for name, written in content["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != written["bytes"]:
                raise DamageError(f"{path} has {size:,} bytes and was written with {written['bytes']:,}")
            if _digest(path) != written["blake2b"]:
                raise DamageError(f"{path} is not what was written (its checksum differs)")
        except OSError as error:
            raise DamageError(f"{path} cannot be read ({error.strerror})") from error
    return {name: value for name, value in content.items() if name != "files"}


def _read(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    try:
        whole = json.loads(path.read_bytes())
        content, digest = whole["content"], whole["blake2b"]
        content["files"].items()
    except OSError as error:
        raise DamageError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"{path} is damaged ({type(error).__name__})") from error
    if digest != _digest_of(content):
        raise DamageError(f"{path} is not what was written (its checksum differs)")
    return content


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(NAME))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _digest_of(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
