"""A workdir in a bucket."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from deit_jax import console
from deit_jax.cache_folder import cache_folder
from deit_jax.errors import UserError
from deit_jax.storage.bucket import Bucket
from deit_jax.storage.bucket_checkpoints import BucketCheckpoints, DirectCheckpoints
from deit_jax.storage.copied_checkpoints import CopiedCheckpoints
from deit_jax.storage.files import GrowingFile, UnreadableError
from deit_jax.storage.lease import HeldError, Lease
from deit_jax.storage.store import ABSENT, ChangedError, Version
from deit_jax.storage.workdir import CONFIG, LOCK, TENSORBOARD, Workdir, WorkdirError


class BucketWorkdir(Workdir):
    """A run below an address of a bucket.

    Files that are written whole are objects. Files that grow, and folders of libraries, are in a temporary folder of this
    process, and `upload` writes them whole. Each write checks the lock, if this process has taken it, and requires that nobody
    else has changed the object meanwhile.

    path: a local folder of this run, for caches beside it; it may not exist.
    """

    in_bucket = True

    def __init__(self, address: str) -> None:
        key = hashlib.sha256(address.encode()).hexdigest()[:16]
        root = cache_folder() or Path(tempfile.gettempdir())
        super().__init__(root / "runs" / key / address.rpartition("/")[2])
        self._bucket = Bucket(address)
        self._lease = Lease(self._bucket, LOCK)
        self.checkpoints = self._places(self._bucket.within("checkpoints"))
        self._versions: dict[str, Version] = {}  # of the objects that this process has written
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._growing: set[str] = set()
        self._folders: set[str] = set()
        self._uploaded: dict[str, tuple[int, int]] = {}  # size and time of change of the files of the temporary folder

    def __str__(self) -> str:
        return self._bucket.address

    @property
    def teacher(self) -> Workdir:
        return BucketWorkdir(f"{self}/teacher")

    @property
    def name(self) -> str:
        return str(self).rpartition("/")[2]

    def address(self, name: str) -> str:
        return f"{self}/{name}"

    def folder(self, name: str) -> Path:
        self._folders.add(name)
        return self._local / name

    def is_there(self) -> bool:
        return self.has(CONFIG) or bool(self._bucket.list())

    def has(self, name: str) -> bool:
        return name in self._growing or self._bucket.stat(name) is not None

    def read(self, name: str, errors: str = "strict") -> str | None:
        content = (self._local / name).read_bytes() if name in self._growing else self._bucket.read(name)
        try:
            return None if content is None else content.decode(errors=errors)
        except UnicodeDecodeError as error:
            raise UnreadableError(f"{self.address(name)} cannot be read ({error})") from error

    def write(
        self, name: str, text: str, *, error: Callable[[str], UserError] = WorkdirError, then: str = "fix that"
    ) -> None:
        self._put(name, text.encode())

    def growing(self, name: str) -> GrowingFile:
        return _GrowingCopy(self._local / name, self._lease, lambda: self._growing.add(name))

    def upload(self) -> None:
        local = self._local
        files = [local / name for name in self._growing]
        files += [path for name in self._folders for path in sorted((local / name).rglob("*")) if path.is_file()]
        for path in files:
            name, status = path.relative_to(local).as_posix(), path.stat()
            if self._uploaded.get(name) != (state := (status.st_size, status.st_mtime_ns)):
                self._put(name, path.read_bytes())
                self._uploaded[name] = state

    @contextlib.contextmanager
    def locked(self, warn: Callable[[str], None]) -> Iterator[None]:
        try:
            self._lease.take(console.say)
        except HeldError as holder:
            raise WorkdirError(
                f"--workdir={self} is in use by another run ({holder}); wait for it, stop it or use another"
            ) from None
        try:
            self._list_events()
            yield
        finally:
            self._lease.release()

    def holder(self) -> str:
        return self._lease.holder()

    def _places(self, bucket: Bucket) -> BucketCheckpoints:
        if bucket.scheme == "gs":
            return DirectCheckpoints(bucket, self._lease)
        # Orbax hands other addresses to TensorStore's driver for files.
        return CopiedCheckpoints(bucket, self._lease, lambda: self._local / "checkpoints")

    @property
    def _local(self) -> Path:
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="deit_jax-", ignore_cleanup_errors=True)
        return Path(self._temporary.name)

    def _list_events(self) -> None:
        """Creates empty files for TensorBoard's files of earlier starts, by whose names it sees that there are some."""
        prefix = f"{TENSORBOARD}/"
        for name in self._bucket.list(prefix):
            if "/" in name.removeprefix(prefix):
                continue
            path = self._local / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._uploaded[name] = (path.stat().st_size, path.stat().st_mtime_ns)

    def _put(self, name: str, content: bytes) -> None:
        self._lease.check()
        if name not in self._versions:
            self._versions[name] = self._version(name)
        while True:
            try:
                self._versions[name] = self._bucket.write(name, content, version=self._versions[name]).version
                return
            except ChangedError:
                self._lease.check(ask=True)
                self._versions[name] = self._version(name)

    def _version(self, name: str) -> Version:
        there = self._bucket.stat(name)
        return ABSENT if there is None else there.version


class _GrowingCopy(GrowingFile):
    """A local file; lines are refused once the workdir belongs to another run."""

    def __init__(self, path: Path, lease: Lease, begun: Callable[[], None]) -> None:
        super().__init__(path)
        self._lease, self._begun = lease, begun

    def begin(self, text: str) -> None:
        super().begin(text)
        self._begun()

    def append(self, line: str) -> None:
        self._lease.check_noticed()
        super().append(line)
