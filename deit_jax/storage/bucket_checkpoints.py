"""The checkpoints of a workdir in a bucket: their marks and manifests. The manifest is the last object of each.

`DirectCheckpoints` have states that Orbax writes to the bucket, `CopiedCheckpoints` those that it writes to a folder.
"""

from __future__ import annotations

import abc
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deit_jax.errors import UserError
from deit_jax.storage.bucket import Bucket
from deit_jax.storage.checkpoints import (
    DAMAGED,
    FORMAT,
    FORMAT_CONTENT,
    MANIFEST,
    STATE,
    UNFINISHED,
    CheckpointPlaces,
    DamageError,
    manifest_content,
    manifest_text,
)
from deit_jax.storage.files import as_file, disk_faults
from deit_jax.storage.lease import Lease
from deit_jax.storage.store import ABSENT, ALGORITHMS, BucketError, ChangedError, Stored, checksum

_DISCARDED = MANIFEST + ".discarded"  # exists while a checkpoint is removed
_DIFFERS = "is not what was written (its checksum differs)"
# Parts of the modules and messages of errors of the libraries by which Orbax writes to a bucket.
_LIBRARIES = ("gcsfs", "aiohttp", "google.", "requests.")
_WORDS = ("gs://", "storage/v1/", "CURL error", "ocdbt")


class BucketCheckpoints(CheckpointPlaces, abc.ABC):
    """Like `CheckpointPlaces`. A manifest has the size of each object, and what the store or this process says of its content.

    A state is below a name of the run that writes it: what a run writes that was stopped and has lost its lock is then not among
    the objects of the run that has the lock now. Every change checks the lock.
    """

    def __init__(self, bucket: Bucket, lease: Lease) -> None:
        super().__init__(Path(bucket.address))
        self._bucket, self._lease = bucket, lease

    def __str__(self) -> str:
        return self._bucket.address

    def address(self, step: int) -> str:
        return f"{self._bucket.address}/{step}"

    @abc.abstractmethod
    def new_state(self, step: int) -> Path | str: ...

    @abc.abstractmethod
    def _stored_files(self, step: int, state: str) -> dict[str, dict[str, Any]]:
        """Stores the files of a state below this name, if Orbax has not; returns what the manifest says about each, by name."""

    def exist(self) -> bool:
        return self.have_manifests() or bool(self._bucket.list())

    def have_manifests(self) -> bool:
        return self._bucket.stat(FORMAT) is not None

    def steps(self) -> list[int]:
        names = {name.partition("/")[0] for name in self._bucket.list() if "/" in name}
        return sorted(int(name) for name in names if name.isdigit())

    def has(self, step: int) -> bool:
        return bool(self._bucket.list(f"{step}/"))

    def has_vanished(self, step: int) -> bool:
        return not self.is_sealed(step)  # a manifest is what is removed first

    def is_sealed(self, step: int) -> bool:
        return self._bucket.stat(f"{step}/{MANIFEST}") is not None

    def is_unfinished(self, step: int) -> bool:
        names = {name.removeprefix(f"{step}/") for name in self._bucket.list(f"{step}/")}
        if MANIFEST in names:
            return False
        return not names.isdisjoint({UNFINISHED, _DISCARDED}) or not any(name.startswith(STATE) for name in names)

    def facts(self, step: int) -> dict[str, Any]:
        return {name: value for name, value in super().facts(step).items() if name != "state"}

    def check(self, step: int) -> None:
        written, there = self._manifest(step)["files"], self._bucket.list(f"{step}/")
        for name, facts in written.items():
            where, stored = f"{self.address(step)}/{name}", there.get(f"{step}/{name}")
            if stored is not None and not _common(stored, facts):  # some stores say less in a list
                stored = self._bucket.stat(f"{step}/{name}")
            if stored is None:
                raise DamageError(f"{where} does not exist any more")
            if stored.size != facts["bytes"]:
                raise DamageError(f"{where} has {stored.size:,} bytes and was written with {facts['bytes']:,}")
            if not (common := _common(stored, facts)):
                with temporary_folder() as folder:
                    self._download(step, name, facts, folder / "file")
            # Many files of OCDBT end with their own CRC32C, so that all of them have the same one: MD5 is the better witness.
            elif any(stored.checksums[kind] != facts[kind] for kind in common):
                raise DamageError(f"{where} {_DIFFERS}")

    # --- The run that owns the workdir ----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        for name in self._bucket.list():
            step, _, rest = name.partition("/")
            if rest == _DISCARDED:
                self._remove(step)
        # Before any step is looked at: in a bucket no version has written checkpoints without manifests.
        if not self.have_manifests():
            self.mark_manifests()

    def mark_manifests(self) -> None:
        self._lease.check()
        self._bucket.write(FORMAT, as_file(FORMAT_CONTENT).encode())

    def begin(self, step: int) -> None:
        self._lease.check(ask=True)
        self._bucket.write(f"{step}/{UNFINISHED}", b"")

    def seal(self, step: int, facts: dict[str, Any]) -> None:
        self._lease.check(ask=True)
        state = f"{STATE}-{self._lease.holder()}"
        files = self._stored_files(step, state)
        content = manifest_text({**facts, "state": state, "files": files}).encode()
        self._lease.check(ask=True)
        version = ABSENT
        while True:
            try:
                self._bucket.write(f"{step}/{MANIFEST}", content, version=version)
                break
            except ChangedError:  # another run has written it, before it lost its lock, or after this one did
                self._lease.check(ask=True)
                there = self._bucket.stat(f"{step}/{MANIFEST}")
                version = ABSENT if there is None else there.version
        self._bucket.delete(f"{step}/{UNFINISHED}")

    def abandon(self, step: int) -> None:
        with contextlib.suppress(UserError):
            self.discard(step)

    def discard(self, step: int) -> None:
        self._lease.check(ask=True)
        self._bucket.write(f"{step}/{_DISCARDED}", b"")
        self._remove(str(step))

    def set_aside(self, step: int) -> str:
        """Copies a damaged checkpoint to another name and removes it; returns the name."""
        self._lease.check(ask=True)
        names, aside = self._bucket.list(f"{step}/"), f"{step}{DAMAGED}"
        while self._bucket.list(f"{aside}/"):
            aside += DAMAGED
        for name in names:
            self._bucket.copy(name, f"{aside}/{name.partition('/')[2]}")
        self.discard(step)
        return aside

    def _remove(self, step: str) -> None:
        """Removes a step that is marked as discarded: its manifest first, the mark last."""
        self._lease.check()
        there = self._bucket.list(f"{step}/")
        mark, manifest = f"{step}/{_DISCARDED}", f"{step}/{MANIFEST}"
        for name in (manifest, *(name for name in there if name not in (manifest, mark)), mark):
            self._bucket.delete(name)

    def _download(self, step: int, name: str, facts: dict[str, Any], path: Path) -> None:
        """Writes an object to a file. Raises DamageError if it is not what `facts` of the manifest say."""
        where = f"{self.address(step)}/{name}"
        algorithm = next((each for each in ALGORITHMS if facts.get(each)), None)
        if algorithm is None:
            raise DamageError(f"{where} cannot be compared with what was written (the manifest has no checksum)")
        with disk_faults(
            lambda reason: BucketError(
                f"{where} cannot be copied to {path.parent} ({reason}): make room, or set TMPDIR"
            )
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._bucket.download(f"{step}/{name}", path):
                raise DamageError(f"{where} does not exist any more")
            with path.open("rb") as file:
                same = checksum(algorithm, file) == facts[algorithm]
        if not same:
            raise DamageError(f"{where} {_DIFFERS}")

    def _manifest(self, step: int) -> dict[str, Any]:
        place = f"{step}/{MANIFEST}"
        if (text := self._bucket.read(place)) is None:
            raise DamageError(f"{self._bucket.address}/{place} does not exist")
        content = manifest_content(text, f"{self._bucket.address}/{place}")
        if "state" not in content:
            raise BucketError(
                f"{self._bucket.address}/{place} was written by a run in a folder, which cannot go on in a bucket: use the folder"
            )
        return content


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Gives a folder that is removed at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="deit_jax-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _common(stored: Stored, facts: dict[str, Any]) -> list[str]:
    """Returns the algorithms of the checksums that both the store and the manifest have."""
    return [kind for kind, said in stored.checksums.items() if said and facts.get(kind)]


class DirectCheckpoints(BucketCheckpoints):
    """The checkpoints of a bucket that Orbax reads and writes, from all processes."""

    @contextlib.contextmanager
    def state(self, step: int) -> Iterator[str]:
        yield f"{self.address(step)}/{self._manifest(step)['state']}"

    def new_state(self, step: int) -> str:
        return f"{self.address(step)}/{STATE}-{self._lease.holder()}"

    def fault(self, error: Exception) -> str | None:
        self._lease.check(ask=True)  # another run may have removed what this one was writing
        text, module = str(error), type(error).__module__
        words = (*_WORDS, self._bucket.address.removeprefix("gs://"))
        if not module.startswith(_LIBRARIES) and not any(word in text for word in words):
            return super().fault(error)
        self._bucket.list(FORMAT)  # raises what is wrong with the store, if it still is
        return f"the store has failed for a while: {' '.join(text.split())[:120]}"

    def _stored_files(self, step: int, state: str) -> dict[str, dict[str, Any]]:
        start, stored = len(f"{step}/"), sorted(self._bucket.list(f"{step}/{state}/").items())
        return {name[start:]: {"bytes": each.size, **each.checksums} for name, each in stored}
