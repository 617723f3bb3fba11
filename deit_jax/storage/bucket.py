"""Objects below an address of a bucket: read, written under a condition, listed; with retries and one-line errors.

Nothing is appended or renamed: a bucket has neither. An object is complete or absent, and its version names its content.
"""

from __future__ import annotations

import contextlib
import errno
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, TypeVar

from deit_jax import console
from deit_jax.errors import UserError, shortened
from deit_jax.storage.amazon_store import AmazonStore
from deit_jax.storage.google_store import GoogleStore
from deit_jax.storage.store import (
    ABSENT,
    ALGORITHMS,
    BucketError,
    ChangedError,
    Failure,
    Store,
    Stored,
    UnreachableError,
    Version,
    checksum,
)

_Value = TypeVar("_Value")
_STORES: dict[str, Callable[[str], Store]] = {"gs": GoogleStore, "s3": AmazonStore}
_PATIENCE = 300.0  # seconds for which a request is repeated while the store does not answer
_SILENT = 10.0  # seconds after which that is printed
_PAUSES = (0.5, 16.0)  # seconds between two requests, the first and the longest; each is twice the one before
# Errors of this machine's disk, which a request to copy a file may raise.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.ENOENT)


def bucket_address(place: str | Path) -> str | None:
    """Returns "gs://BUCKET/PREFIX" or "s3://BUCKET/PREFIX" if a place of a workdir is in a bucket, without a slash at its end;
    None for a local path.

    pathlib makes one slash of two; a path that it has changed so means the same. Raises BucketError for other addresses.
    """
    match = re.match(r"([a-zA-Z][\w+.-]+):/(/?)", str(place))
    if match is None or not (match[2] or match[1].lower() in _STORES):
        return None
    scheme, rest = match[1].lower(), str(place)[match.end() :].strip("/")
    if scheme not in _STORES:
        raise BucketError(
            f"{shortened(str(place))} is an address: give a folder, or a bucket's gs://BUCKET/RUN or s3://BUCKET/RUN"
        )
    bucket, _, prefix = rest.partition("/")
    if not bucket or not prefix or "//" in prefix or {".", ".."} & set(prefix.split("/")):
        raise BucketError(
            f"{shortened(str(place))}: a run in a bucket is {scheme}://BUCKET/RUN, with a name for the run"
        )
    if re.fullmatch(r"[A-Za-z0-9](.*[A-Za-z0-9])?", bucket) is None:  # Google's client raises ValueError
        raise BucketError(f"{shortened(str(place))}: the name of a bucket starts and ends with a letter or a digit")
    return f"{scheme}://{bucket}/{prefix}"


class Bucket:
    """The objects below an address, by their names relative to it. Requests may come from several threads.

    A request is repeated for some minutes while the store does not answer, says that it is busy or fails. The methods raise
    BucketError, UnreachableError, and ChangedError where a condition is given.
    """

    # Buckets that did not answer for so long: they are asked once, until they answer.
    _given_up: ClassVar[set[str]] = set()

    def __init__(self, address: str) -> None:
        self.address = address
        self.scheme, _, rest = address.partition("://")
        bucket, _, prefix = rest.partition("/")
        self._bucket, self._prefix = f"{self.scheme}://{bucket}", prefix + "/"
        self._store = _STORES[self.scheme](bucket)

    def within(self, folder: str) -> Bucket:
        """Returns the objects below a folder."""
        return Bucket(f"{self.address}/{folder}")

    def read(self, name: str) -> bytes | None:
        """Returns the content of an object; None if it does not exist."""
        return self._try(lambda: self._store.read(self._prefix + name), absent=lambda: None)

    def download(self, name: str, path: Path) -> bool:
        """Writes the content of an object to a file; returns whether it exists. Raises OSError on disk errors."""

        def get() -> bool:
            self._store.download(self._prefix + name, path)
            return True

        return self._try(get, absent=lambda: False)

    def stat(self, name: str) -> Stored | None:
        """Returns what the store says about an object, with checksums; None if it does not exist."""
        return self._try(lambda: self._store.stat(self._prefix + name), absent=lambda: None)

    def write(self, name: str, content: bytes, *, version: Version | None = None) -> Stored:
        """Writes an object whole.

        version: what it must have now, ABSENT for one that must not exist; None: any. Raises ChangedError otherwise.
        """
        attempts = 0

        def put() -> Stored:
            nonlocal attempts
            attempts += 1
            return self._store.write(self._prefix + name, content, version)

        try:
            return self._try(put)
        except ChangedError:
            # An earlier attempt whose answer was lost may have changed it.
            there = self.stat(name) if attempts > 1 else None
            if there is None or not self._has_content(name, there, content):
                raise
            return there

    def require_conditions(self, name: str) -> None:
        """Raises BucketError if the store ignores the versions given to `write`. Writes and removes an object.

        Some stores with S3's protocol do, and two runs could then take one lock.
        """
        first = self.write(name, b"first")
        self.write(name, b"second")
        ignored = []
        for header, version in (("If-None-Match", ABSENT), ("If-Match", first.version)):
            with contextlib.suppress(ChangedError):
                self.write(name, b"third", version=version)
                ignored.append(header)
        self.delete(name)
        if ignored:
            raise BucketError(
                f"{self._bucket} ignores {' and '.join(ignored)}, so that two runs could write here at the same time: use "
                "another store or a folder"
            )

    def upload(self, name: str, path: Path) -> Stored:
        """Writes an object with the content of a file. Raises OSError on disk errors."""
        return self._try(lambda: self._store.upload(self._prefix + name, path))

    def copy(self, name: str, to: str) -> None:
        """Copies an object within the store."""
        self._try(lambda: self._store.copy(self._prefix + name, self._prefix + to), absent=lambda: None)

    def delete(self, name: str, *, version: Version | None = None) -> None:
        """Removes an object, if it exists and has this version."""
        try:
            self._try(lambda: self._store.delete(self._prefix + name, version), absent=lambda: None)
        except ChangedError:
            return

    def list(self, folder: str = "") -> dict[str, Stored]:
        """Returns all objects whose names start with `folder`, at any depth; {} if there are none.

        The stores say different things in a list: s3:// gives no checksums.
        """
        there = self._try(lambda: self._store.list(self._prefix + folder))
        return {key.removeprefix(self._prefix): stored for key, stored in there.items()}

    def _has_content(self, name: str, there: Stored, content: bytes) -> bool:
        for algorithm in ALGORITHMS:
            if said := there.checksums.get(algorithm):
                return said == checksum(algorithm, content)
        return self.read(name) == content

    def _try(self, request: Callable[[], _Value], absent: Callable[[], _Value] | None = None) -> _Value:
        """Returns the answer to a request, repeated while the store gives none. absent: the answer if it does not exist."""
        began, pause, said = time.monotonic(), _PAUSES[0], False
        while True:
            try:
                answer = request()
                self._given_up.discard(self._bucket)
                return answer
            except UserError:
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno in _DISK:
                    raise
                if (explained := self._store.failure(error)) is None:
                    raise
                failure, reason = explained
                if failure is Failure.ABSENT and absent is not None:
                    return absent()
                if failure is not Failure.AGAIN:
                    raise self._final(failure, reason) from error
                waited = time.monotonic() - began
                if waited > _PATIENCE or self._bucket in self._given_up:
                    self._given_up.add(self._bucket)
                    raise UnreachableError(
                        f"{self.address} does not answer ({reason}); what it holds is intact, rerun the command when it does"
                    ) from error
                if waited > _SILENT and not said:
                    console.warn(f"{self.address} does not answer ({reason}); trying for {_PATIENCE / 60:.0f} minutes")
                    said = True
                time.sleep(pause)
                pause = min(2 * pause, _PAUSES[1])

    def _final(self, failure: Failure, reason: str) -> Exception:
        """Returns the error for a request that is not repeated."""
        if failure is Failure.CHANGED:
            return ChangedError()
        if failure is Failure.DENIED:
            return BucketError(f"{self.address}: access is denied ({reason}); what it holds is intact")
        if failure is Failure.REFUSED:
            return BucketError(f"{self.address}: the store refuses a request ({reason}); what it holds is intact")
        return BucketError(f"{self._bucket} does not exist: create the bucket, or use another")
