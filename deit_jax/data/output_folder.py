"""The folder that --mode=prepare writes to: on disk, or in a bucket."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deit_jax import console
from deit_jax.data.sources import DataError
from deit_jax.data.stored_files import RemoteFile, as_python_file, filesystem, scheme_of, stored_bytes
from deit_jax.errors import machine_fault
from deit_jax.printable import printable
from deit_jax.storage.files import replace_bytes
from deit_jax.storage.workdir import InUseError, locked

_LOCK, _READ = ".lock", 1 << 22


class OutputFolder:
    """Files by name below a path or an address; a file is complete or absent. Pickles.

    The methods raise DataError, in one line, if the folder cannot be read or written.
    """

    def __init__(self, root: str):
        self.root = root.rstrip("/") if scheme_of(root) else os.path.abspath(root)
        self._remote = bool(scheme_of(root))

    def __str__(self) -> str:
        return printable(self.root)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    @contextlib.contextmanager
    def _faults(self, name: str, what: str = "written", *, local: bool = False) -> Iterator[None]:
        """Converts errors of the block. local: it accesses only the disk."""
        try:
            yield
        except DataError:
            raise
        except Exception as error:  # each package of a bucket has its own for networks and permissions
            if (local or not self._remote) and not isinstance(
                error, OSError | RuntimeError
            ):  # array_record's are the latter
                raise
            reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
            reason = printable(machine_fault(error) or reason)[:200]
            raise DataError(
                f"{printable(self._path(name))}: cannot be {what} ({reason}); fix that, then the same command continues"
            ) from error

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Creates the folder and locks it until the block ends; in a bucket does nothing."""
        if self._remote:
            yield
            return
        with contextlib.ExitStack() as stack:
            with self._faults(""):
                os.makedirs(self.root, exist_ok=True)
                try:
                    stack.enter_context(locked(Path(self._path(_LOCK)), console.warn))
                except InUseError as holder:
                    raise DataError(
                        f"{self}: another command writes it ({holder}); wait for that, or stop it"
                    ) from None
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(self._path(_LOCK))

    def names(self) -> list[str]:
        """Returns the names of the files and folders in it, without hidden ones; none if it does not exist."""
        with self._faults("", "listed"):
            try:
                if self._remote:
                    files = filesystem(scheme_of(self.root))
                    files.invalidate_cache()
                    found = [os.path.basename(each.rstrip("/")) for each in files.ls(self.root, detail=False)]
                else:
                    found = os.listdir(self.root)
            except FileNotFoundError:
                return []
        return sorted(each for each in found if each and not each.startswith("."))

    def read(self, name: str) -> bytes | None:
        """Returns the content of a small file; None if there is none."""
        with self._faults(name, "read"):
            return stored_bytes(self._path(name))

    def write(self, name: str, content: bytes) -> None:
        """Writes or replaces a small file."""
        with self._faults(name):
            if self._remote:
                filesystem(scheme_of(self.root)).pipe_file(self._path(name), content)
                return
            os.makedirs(os.path.dirname(self._path(name)), exist_ok=True)
            replace_bytes(Path(self._path(name)), content)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[str]:
        """Gives a local path to write a large file to, which becomes `name` at the end of the block."""
        if not self._remote:
            path = self._path(f".{name}.unfinished")
            try:
                with self._faults(name):
                    yield path
                    with open(path, "rb") as file:
                        os.fsync(file.fileno())
                    os.replace(path, self._path(name))
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(path)
            return
        with tempfile.TemporaryDirectory() as folder:
            with self._faults(name, local=True):
                yield (path := os.path.join(folder, name))
            with self._faults(name):
                files: Any = filesystem(scheme_of(self.root))
                files.put_file(path, self._path(name))
                if (size := files.info(self._path(name))["size"]) != os.path.getsize(path):
                    raise OSError(None, f"{size:,} of {os.path.getsize(path):,} bytes arrived")

    def digest(self, name: str) -> str:
        """Returns the digest of a file's content, `digest_of`; "" if there is none."""
        with self._faults(name, "read"):
            try:
                if self._remote:
                    size = filesystem(scheme_of(self.root)).info(self._path(name))["size"]
                    return digest_of(as_python_file(RemoteFile(self._path(name), size)))
                with open(self._path(name), "rb") as file:
                    return digest_of(file)
            except FileNotFoundError:
                return ""

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with its files, if it is there."""
        with self._faults(name, "removed"), contextlib.suppress(FileNotFoundError):
            if self._remote:
                filesystem(scheme_of(self.root)).rm(self._path(name), recursive=True)
            elif os.path.isdir(self._path(name)):
                shutil.rmtree(self._path(name))
            else:
                os.unlink(self._path(name))


def digest_of(file: Any) -> str:
    """Returns BLAKE2b of an open file's content, 32 hexadecimal digits."""
    result = hashlib.blake2b(digest_size=16)
    while block := file.read(_READ):
        result.update(block)
    return result.hexdigest()
