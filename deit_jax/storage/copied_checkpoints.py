"""The checkpoints of a workdir in a bucket to which Orbax does not write."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deit_jax.errors import UserError, machine_fault
from deit_jax.storage.bucket import Bucket
from deit_jax.storage.bucket_checkpoints import BucketCheckpoints, temporary_folder
from deit_jax.storage.checkpoints import STATE, DamageError
from deit_jax.storage.lease import Lease
from deit_jax.storage.store import BucketError


class CopiedCheckpoints(BucketCheckpoints):
    """A state is written to a folder of this process and uploaded before it is sealed, and downloaded before it is read.

    A manifest has the SHA-256 of each file, which the store compares with what it receives.

    folder: returns the folder of the new states, which this process removes at its end; it may not exist.
    """

    def __init__(self, bucket: Bucket, lease: Lease, folder: Callable[[], Path]) -> None:
        super().__init__(bucket, lease)
        self._local = folder

    def check_writers(self, processes: int) -> None:
        if processes > 1:
            workdir = self._bucket.address.removesuffix("/checkpoints")
            raise BucketError(
                f"--workdir={workdir} cannot be used by a run of {processes} processes, which write each checkpoint together, in "
                "a place that all of them see: use a gs:// bucket or a shared folder"
            )

    @contextlib.contextmanager
    def state(self, step: int) -> Iterator[Path]:
        manifest = self._manifest(step)
        with temporary_folder() as folder:
            for name in (manifest["state"], *manifest["files"]):  # others may have written the manifest
                if not (folder / name).resolve().is_relative_to(folder.resolve()):
                    raise DamageError(f"{self.address(step)}/{name} is not a name in a checkpoint")
            for name, facts in manifest["files"].items():
                self._download(step, name, facts, folder / name)
            yield folder / manifest["state"]

    def new_state(self, step: int) -> Path:
        return self._local() / str(step) / STATE

    def fault(self, error: Exception) -> str | None:
        self._lease.check(ask=True)
        reason = None if isinstance(error, UserError) else machine_fault(error)
        return None if reason is None else f"{reason} in the temporary folder {tempfile.gettempdir()}"

    def begin(self, step: int) -> None:
        super().begin(step)
        self._forget(step)
        self.new_state(step).parent.mkdir(parents=True)

    def seal(self, step: int, facts: dict[str, Any]) -> None:
        super().seal(step, facts)
        self._forget(step)

    def abandon(self, step: int) -> None:
        self._forget(step)
        super().abandon(step)

    def _stored_files(self, step: int, state: str) -> dict[str, dict[str, Any]]:
        local, files = self.new_state(step), {}
        for path in sorted(path for path in local.rglob("*") if path.is_file()):
            name = f"{state}/{path.relative_to(local).as_posix()}"
            self._lease.check()
            stored = self._bucket.upload(f"{step}/{name}", path)
            files[name] = {"bytes": stored.size, **stored.checksums}
        return files

    def _forget(self, step: int) -> None:
        """Removes a new state from the disk."""
        shutil.rmtree(self.new_state(step).parent, ignore_errors=True)
