"""Objects below an address of a bucket: read, written under a condition, listed; with retries and one-line errors.

Nothing is appended or renamed: a bucket has neither. An object is complete or absent, and its generation names its content.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import importlib.util
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from deit_jax import console
from deit_jax.errors import UserError, first_line, shortened

_Value = TypeVar("_Value")
ABSENT = 0  # the generation of an object that does not exist
_PATIENCE = 300.0  # seconds for which a request is repeated while the store does not answer
_SILENT = 10.0  # seconds after which that is printed
_PAUSES = (0.5, 16.0)  # seconds between two requests, the first and the longest; each is twice the one before
_TIMEOUT = (20, 120)  # seconds to connect, and between two bytes


class BucketError(UserError):
    """A bucket that does not exist or refuses access. The message is one line."""


class UnreachableError(BucketError):
    """A bucket that did not answer for minutes. The same command resumes a run once it does."""

    exit_status = 75


class ChangedError(Exception):
    """An object does not have the generation that a request requires."""


def bucket_address(place: str | Path) -> str | None:
    """Returns "gs://BUCKET/PREFIX" if a place of a workdir is in a bucket, without a slash at its end; None for a local path.

    pathlib makes one slash of two; a path that it has changed so means the same. Raises BucketError for other addresses.
    """
    match = re.match(r"([a-zA-Z][\w+.-]+):/(/?)", str(place))
    if match is None or not (match[2] or match[1].lower() == "gs"):
        return None
    scheme, rest = match[1].lower(), str(place)[match.end() :].strip("/")
    if scheme == "s3":
        raise BucketError(
            f"{shortened(str(place))}: runs are kept in gs:// buckets or in folders, not in s3://, where Orbax does not write "
            "checkpoints: use one of them"
        )
    if scheme != "gs":
        raise BucketError(f"{shortened(str(place))} is an address: give a folder, or a bucket's gs://BUCKET/RUN")
    bucket, _, prefix = rest.partition("/")
    if not bucket or not prefix or "//" in prefix or {".", ".."} & set(prefix.split("/")):
        raise BucketError(f"{shortened(str(place))}: a run in a bucket is gs://BUCKET/RUN, with a name for the run")
    return f"gs://{bucket}/{prefix}"


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a store says about an object."""

    size: int  # bytes
    crc32c: str  # base64
    md5: str  # base64; "" for an object that was composed of others
    generation: int
    updated: float  # seconds since 1970, by the store's clock


@functools.cache
def _client() -> Any:
    """Returns the client of this process, with the credentials that Google's libraries find."""
    if not _is_installed("gcsfs") or not _is_installed(
        "google.cloud.storage"
    ):  # Orbax needs the first, which brings the second
        raise BucketError("gs:// needs the package gcsfs: pip install gcsfs")
    import fsspec.config
    import google.auth.exceptions
    from google.cloud import storage

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # logs tracebacks of errors that it also raises
    # Orbax looks for files by gcsfs, which would not see what other processes have written since it looked before.
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
    try:
        return storage.Client()
    except google.auth.exceptions.DefaultCredentialsError as error:
        raise BucketError(
            f"gs:// needs credentials ({first_line(error)[:120]}): gcloud auth application-default login"
        ) from error
    except OSError:  # google-auth knows no project; objects do not need one
        return storage.Client(project="none")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


class Bucket:
    """The objects below an address, by their names relative to it. Requests may come from several threads.

    A request is repeated for some minutes while the store does not answer, says that it is busy or fails. The methods raise
    BucketError, UnreachableError, and ChangedError where a condition is given.
    """

    # Buckets that did not answer for so long: they are asked once, until they answer.
    _given_up: ClassVar[set[str]] = set()

    def __init__(self, address: str) -> None:
        self.address = address
        self._bucket_name, _, prefix = address.removeprefix("gs://").partition("/")
        self._prefix = prefix + "/"

    def within(self, folder: str) -> Bucket:
        """Returns the objects below a folder."""
        return Bucket(f"{self.address}/{folder}")

    def read(self, name: str) -> bytes | None:
        """Returns the content of an object; None if it does not exist."""
        return self._try(lambda: self._blob(name).download_as_bytes(retry=None, timeout=_TIMEOUT), absent=lambda: None)

    def stat(self, name: str) -> Stored | None:
        """Returns what the store says about an object; None if it does not exist."""

        def ask() -> Stored | None:
            blob = self._blob(name)
            blob.reload(retry=None, timeout=_TIMEOUT)
            return _stored(blob)

        return self._try(ask, absent=lambda: None)

    def write(self, name: str, content: bytes, *, generation: int | None = None) -> Stored:
        """Writes an object whole.

        generation: what it must have now, ABSENT for one that must not exist; None: any. Raises ChangedError otherwise.
        """
        condition = {} if generation is None else {"if_generation_match": generation}
        attempts = 0

        def put() -> Stored:
            nonlocal attempts
            attempts += 1
            blob = self._blob(name)
            blob.upload_from_string(content, retry=None, timeout=_TIMEOUT, **condition)
            return _stored(blob)

        try:
            return self._try(put)
        except ChangedError:
            # An earlier attempt whose answer was lost may have changed it.
            there = self.stat(name) if attempts > 1 else None
            if there is None or there.md5 != base64.b64encode(hashlib.md5(content).digest()).decode():
                raise
            return there

    def copy(self, name: str, to: str) -> None:
        """Copies an object within the store."""

        def rewrite() -> None:
            token, source = None, self._blob(name)
            while True:
                token, *_ = self._blob(to).rewrite(source, token=token, retry=None, timeout=_TIMEOUT)
                if token is None:
                    return

        self._try(rewrite, absent=lambda: None)

    def delete(self, name: str, *, generation: int | None = None) -> None:
        """Removes an object, if it exists and has this generation."""
        condition = {} if generation is None else {"if_generation_match": generation}
        try:
            self._try(lambda: self._blob(name).delete(retry=None, timeout=_TIMEOUT, **condition), absent=lambda: None)
        except ChangedError:
            return

    def list(self, folder: str = "") -> dict[str, Stored]:
        """Returns all objects whose names start with `folder`, at any depth; {} if there are none."""

        def ask() -> dict[str, Stored]:
            blobs = _client().list_blobs(self._bucket_name, prefix=self._prefix + folder, retry=None, timeout=_TIMEOUT)
            return {blob.name.removeprefix(self._prefix): _stored(blob) for blob in blobs}

        return self._try(ask)

    def _blob(self, name: str) -> Any:
        return _client().bucket(self._bucket_name).blob(self._prefix + name)

    def _try(self, request: Callable[[], _Value], absent: Callable[[], _Value] | None = None) -> _Value:
        """Returns the answer to a request, repeated while the store gives none. absent: the answer if it does not exist."""
        began, pause, said = time.monotonic(), _PAUSES[0], False
        while True:
            try:
                answer = request()
                self._given_up.discard(self._bucket_name)
                return answer
            except UserError:
                raise
            except Exception as error:
                reason = self._reason(error, absent is not None)
                if reason is None:
                    assert absent is not None
                    return absent()
                waited = time.monotonic() - began
                if waited > _PATIENCE or self._bucket_name in self._given_up:
                    self._given_up.add(self._bucket_name)
                    raise UnreachableError(
                        f"{self.address} does not answer ({reason}); what it holds is intact, rerun the command when it does"
                    ) from error
                if waited > _SILENT and not said:
                    console.warn(f"{self.address} does not answer ({reason}); trying for {_PATIENCE / 60:.0f} minutes")
                    said = True
                time.sleep(pause)
                pause = min(2 * pause, _PAUSES[1])

    def _reason(self, error: Exception, may_be_absent: bool) -> str | None:
        """Returns why a request that can be repeated has failed; None if the object does not exist. Raises for other errors."""
        import google.auth.exceptions
        import requests
        from google.api_core import exceptions as api

        if isinstance(error, api.PreconditionFailed):
            raise ChangedError from error
        if isinstance(error, api.NotFound):
            if may_be_absent and "bucket does not exist" not in str(error):
                return None
            raise BucketError(f"gs://{self._bucket_name} does not exist: create the bucket, or use another") from error
        text = _said(error)
        if isinstance(error, api.ServerError | api.TooManyRequests | google.auth.exceptions.TransportError | OSError):
            return text  # requests' errors are OSErrors, as is a damaged transfer
        if isinstance(error, api.GoogleAPICallError) and error.code == 408:
            return text
        if isinstance(error, api.Forbidden | api.Unauthorized | google.auth.exceptions.GoogleAuthError):
            raise BucketError(f"{self.address}: access is denied ({text}); what it holds is intact") from error
        if isinstance(error, api.GoogleAPICallError | requests.RequestException):
            raise BucketError(
                f"{self.address}: the store refuses a request ({text}); what it holds is intact"
            ) from error
        raise error


def _said(error: Exception) -> str:
    """Returns the store's own words, in one line."""
    text = str(getattr(error, "message", "") or error)
    text = re.sub(r"^(GET|POST|PUT|DELETE) \S+: ", "", " ".join(text.split()))
    if (quoted := re.search(r'"message": ?"([^"]+)"', text)) is not None:  # an answer to an upload
        text = quoted[1]
    if isinstance(error, OSError):  # the words of requests are long
        text = re.sub(r".*(Connection refused|timed out|Name or service not known|reset by peer).*", r"\1", text)
    return shortened(text or type(error).__name__, 120)


def _stored(blob: Any) -> Stored:
    updated = blob.updated.timestamp()
    return Stored(int(blob.size), blob.crc32c or "", blob.md5_hash or "", int(blob.generation), updated)
