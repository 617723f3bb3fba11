"""Buckets of Google Cloud Storage, by google-cloud-storage. The version of an object is its generation."""

from __future__ import annotations

import functools
import logging
import re
from pathlib import Path
from typing import Any

from deit_jax.errors import first_line, shortened
from deit_jax.storage.store import (
    CONNECT_SECONDS,
    READ_SECONDS,
    BucketError,
    Failure,
    Stored,
    Version,
    one_line,
    require_package,
)

_ONCE: dict[str, Any] = {"retry": None, "timeout": (CONNECT_SECONDS, READ_SECONDS)}


@functools.cache
def client() -> Any:
    """Returns the client of this process, with the credentials that Google's libraries find. Raises BucketError."""
    # Orbax needs gcsfs, which brings the other.
    require_package("gs", "gcsfs", "google.cloud.storage", package="gcsfs")
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


class GoogleStore:
    """See `Store`."""

    def __init__(self, bucket: str) -> None:
        self._bucket = bucket

    def read(self, key: str) -> bytes:
        """Returns the content of an object."""
        content: bytes = self._blob(key).download_as_bytes(**_ONCE)
        return content

    def download(self, key: str, path: Path) -> None:
        """Writes the content of an object to a file."""
        self._blob(key).download_to_filename(str(path), **_ONCE)

    def stat(self, key: str) -> Stored:
        """Returns what the store says about an object."""
        blob = self._blob(key)
        blob.reload(**_ONCE)
        return _stored(blob)

    def write(self, key: str, content: bytes, version: Version | None) -> Stored:
        """Writes an object whole, if it has this version (None: any)."""
        blob = self._blob(key)
        blob.upload_from_string(content, if_generation_match=version, **_ONCE)
        return _stored(blob)

    def upload(self, key: str, path: Path) -> Stored:
        """Writes an object with the content of a file."""
        blob = self._blob(key)
        blob.upload_from_filename(str(path), **_ONCE)
        return _stored(blob)

    def copy(self, key: str, to: str) -> None:
        """Copies an object within the store."""
        token, source = None, self._blob(key)
        while True:
            token, *_ = self._blob(to).rewrite(source, token=token, **_ONCE)
            if token is None:
                return

    def delete(self, key: str, version: Version | None) -> None:
        """Removes an object, if it has this version (None: any)."""
        self._blob(key).delete(if_generation_match=version, **_ONCE)

    def list(self, prefix: str) -> dict[str, Stored]:
        """Returns the objects whose keys start with `prefix`, by key."""
        return {blob.name: _stored(blob) for blob in client().list_blobs(self._bucket, prefix=prefix, **_ONCE)}

    def failure(self, error: Exception) -> tuple[Failure, str] | None:
        """Returns why a request failed, and the store's words; None for an error that is not the store's."""
        import google.auth.exceptions
        import requests
        from google.api_core import exceptions as api

        text = _said(error)
        lost = google.auth.exceptions.TransportError | OSError  # OSErrors are also those of requests
        if isinstance(error, api.ServerError | api.TooManyRequests | lost) or _is_damaged(error, text):
            return Failure.AGAIN, text
        if isinstance(error, api.PreconditionFailed):
            return Failure.CHANGED, text
        if isinstance(error, api.NotFound):
            return (Failure.NO_BUCKET if "bucket does not exist" in str(error) else Failure.ABSENT), text
        if isinstance(error, api.GoogleAPICallError) and error.code == 408:
            return Failure.AGAIN, text
        if isinstance(error, google.auth.exceptions.GoogleAuthError):
            # The server that gives the credentials, e.g. of the machine, did not answer.
            again = error.retryable or isinstance(error.__cause__, lost)
            return (Failure.AGAIN if again else Failure.DENIED), text
        if isinstance(error, api.Forbidden | api.Unauthorized):
            return Failure.DENIED, text
        if isinstance(error, api.GoogleAPICallError | requests.RequestException):
            return Failure.REFUSED, text
        return None

    def _blob(self, key: str) -> Any:
        return client().bucket(self._bucket).blob(key)


def _is_damaged(error: Exception, text: str) -> bool:
    """Whether an error is about a damaged transfer, which the client found in what it received, or the store."""
    if type(error).__name__ == "DataCorruption":  # of google.cloud.storage, before its version 3.0 of resumable_media
        return True
    return getattr(error, "code", None) == 400 and any(kind in text.lower() for kind in ("crc32c", "md5"))


def _said(error: Exception) -> str:
    text = one_line(getattr(error, "message", "") or error)
    text = re.sub(r"^(GET|POST|PUT|DELETE) \S+: ", "", text)
    if (quoted := re.search(r'"message": ?"([^"]+)"', text)) is not None:  # an answer to an upload
        text = quoted[1]
    if isinstance(error, OSError):  # the words of requests are long
        text = re.sub(r".*(Connection refused|timed out|Name or service not known|reset by peer).*", r"\1", text)
    return shortened(text or type(error).__name__, 120)


def _stored(blob: Any) -> Stored:
    checksums = {"crc32c": blob.crc32c or "", "md5": blob.md5_hash or ""}  # a composed object has no MD5
    return Stored(int(blob.size), int(blob.generation), blob.updated.timestamp(), checksums)
