"""The checkpoint folders of a workdir. `deit_jax.training` decides which ones to keep and use.

Each has a manifest with the size and digest of every file, so that damage is found before the checkpoint is used. The manifest is
written last: a folder without one is unfinished.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from deit_jax.errors import UserError, machine_fault
from deit_jax.storage.files import reading, replace_file, status, sync_folder, write_json

MANIFEST = "manifest.json"
FORMAT = "format.json"  # exists if checkpoints have manifests
FORMAT_CONTENT = {"format": 2}
STATE = "default"  # the folder that Orbax writes, within a step's folder
UNFINISHED = MANIFEST + ".partial"
_DISCARDED = ".discarded"  # suffix before deletion, so that half a folder is never taken for a checkpoint
DAMAGED = ".damaged"  # suffix of a damaged checkpoint, which is left to the user


class DamageError(UserError):
    """A checkpoint that does not match its manifest. The message names the file."""


class CheckpointPlaces:
    """One folder per step, with the files of the state and the manifest.

    The methods that read raise UnreadableError for what cannot be read now, the others OSError on disk errors.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def address(self, step: int) -> str:
        """Returns the path of a step's folder, for messages."""
        return str(self._place(step))

    @contextlib.contextmanager
    def state(self, step: int) -> Iterator[Path | str]:
        """Gives where Orbax reads the state of a step, until the end of the block."""
        yield self._place(step) / STATE

    def new_state(self, step: int) -> Path | str:
        """Returns where Orbax writes the state of a step that was begun."""
        return self._place(step) / STATE

    def check_writers(self, processes: int) -> None:
        """Raises UserError if so many processes cannot write checkpoints together."""

    def exist(self) -> bool:
        """Returns whether the workdir has a checkpoint folder, which may be empty."""
        return _is_folder(self._folder)

    def have_manifests(self) -> bool:
        """Returns whether the run writes manifests, so that a step without one is unfinished."""
        return status(self._folder / FORMAT) is not None

    def steps(self) -> list[int]:
        """Returns the steps that have a folder, finished or not, in order."""
        if not self.exist():
            return []
        with reading(self._folder):
            names = os.listdir(self._folder)
        return sorted(int(name) for name in names if name.isdigit() and _is_folder(self._folder / name))

    def has(self, step: int) -> bool:
        """Returns whether the step has a folder, finished or not."""
        return _is_folder(self._place(step))

    def has_vanished(self, step: int) -> bool:
        """Returns whether a run has deleted a step, or is deleting it, that was complete before."""
        return not self.has(step)

    def fault(self, error: Exception) -> str | None:
        """Returns why a state cannot be written or read, if an error of Orbax is one of the disk, else None."""
        return machine_fault(error)

    # --- Readers --------------------------------------------------------------------------------------------------------------

    def is_sealed(self, step: int) -> bool:
        """Returns whether the step has a manifest."""
        return status(self._place(step) / MANIFEST) is not None

    def is_unfinished(self, step: int) -> bool:
        """Returns whether the step was begun and not sealed; a run may be writing it now.

        A step that has a state, but neither mark, has lost its manifest or was written without one.
        """
        if self.is_sealed(step):
            return False
        return status(self._place(step) / UNFINISHED) is not None or status(self._place(step) / STATE) is None

    def facts(self, step: int) -> dict[str, Any]:
        """Returns the `facts` given to `seal`. Raises DamageError if the manifest is damaged."""
        return {name: value for name, value in self._manifest(step).items() if name != "files"}

    def check(self, step: int) -> None:
        """Compares all files with the manifest. Raises DamageError if one is missing or different, or its disk fails."""
        folder = self._place(step)
        for name, written in self._manifest(step)["files"].items():
            path = folder / name
            with _damage(path):
                size = path.stat().st_size
                if size != written["bytes"]:
                    raise DamageError(f"{path} has {size:,} bytes and was written with {written['bytes']:,}")
                if _file_digest(path) != written["blake2b"]:
                    raise DamageError(f"{path} is not what was written (its checksum differs)")

    # --- The run that owns the workdir ----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Creates the folder, and deletes what a killed run has discarded."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            if path.name.endswith(_DISCARDED):
                shutil.rmtree(path, ignore_errors=True)

    def mark_manifests(self) -> None:
        """Makes `have_manifests` true."""
        write_json(self._folder / FORMAT, FORMAT_CONTENT)

    def begin(self, step: int) -> None:
        """Creates the folder of a step, unfinished until it is sealed."""
        folder = self._place(step)
        folder.mkdir(parents=True)
        (folder / UNFINISHED).touch()

    def seal(self, step: int, facts: dict[str, Any]) -> None:
        """Writes the manifest of a complete state, with `facts` of JSON types. Everything is synced when this returns."""
        folder = self._place(step)
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(MANIFEST))
        files = {}
        for path in paths:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "blake2b": _file_digest(path)}
        for inner in {path.parent for path in paths}:
            sync_folder(inner)
        replace_file(folder / MANIFEST, manifest_text({**facts, "files": files}))
        sync_folder(folder.parent)

    def abandon(self, step: int) -> None:
        """Removes a folder that could not be written completely, as far as the disk allows."""
        with contextlib.suppress(OSError):
            self.discard(step)

    def discard(self, step: int) -> None:
        """Removes a checkpoint. What cannot be removed does not look like one, nor what a killed process leaves."""
        shutil.rmtree(self._rename(step, _DISCARDED), ignore_errors=True)

    def set_aside(self, step: int) -> str:
        """Renames a damaged checkpoint so that it is not used; returns its new name."""
        return self._rename(step, DAMAGED).name

    def _place(self, step: int) -> Path:
        return self._folder / str(step)

    def _rename(self, step: int, suffix: str) -> Path:
        """Appends `suffix` to the name of a step's folder, several times if that name is taken; returns the new path."""
        path = self._place(step)
        new = path.with_name(path.name + suffix)
        while new.exists():
            new = new.with_name(new.name + suffix)
        return path.rename(new)

    def _manifest(self, step: int) -> dict[str, Any]:
        path = self._place(step) / MANIFEST
        with _damage(path):
            text = path.read_bytes()
        return manifest_content(text, str(path))


def manifest_text(content: dict[str, Any]) -> str:
    """Returns the text of a manifest, which has its own digest: its damage is not reported as that of a data file."""
    return json.dumps({"content": content, "blake2b": _digest(content)})


def manifest_content(text: bytes, place: str) -> dict[str, Any]:
    """Returns the content of a manifest. Raises DamageError, which names `place`."""
    try:
        whole = json.loads(text)
        content, digest = whole["content"], whole["blake2b"]
        content["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"{place} is damaged ({type(error).__name__})") from error
    if digest != _digest(content):
        raise DamageError(f"{place} is not what was written (its checksum differs)")
    return content


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _is_folder(path: Path) -> bool:
    return (found := status(path)) is not None and S_ISDIR(found.st_mode)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Converts an OSError of the block into DamageError if the file is gone or its disk fails, else into UnreadableError.

    The others may pass: a missing permission, a network disk that does not answer, too many open files.
    """
    with reading(path):
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == errno.EIO:
                raise DamageError(f"{path} cannot be read ({error.strerror})") from error
            raise
