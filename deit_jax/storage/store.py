"""What a store of buckets provides, and its errors. `google_store.py` and `amazon_store.py` are the stores."""

from __future__ import annotations

import base64
import dataclasses
import enum
import hashlib
import importlib.util
import io
from pathlib import Path
from typing import Any, Protocol

from deit_jax.errors import UserError

Version = int | str
ABSENT: Version = 0  # the version of an object that does not exist
CONNECT_SECONDS, READ_SECONDS = 20, 120  # until a connection is made; between two bytes
ALGORITHMS = ("sha256", "md5")  # checksums that this process can compute, the best one first


class BucketError(UserError):
    """A bucket that does not exist or refuses access. The message is one line."""


class UnreachableError(BucketError):
    """A bucket that did not answer for minutes. The same command resumes a run once it does."""

    exit_status = 75


class ChangedError(Exception):
    """An object does not have the version that a request requires."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a store says about an object.

    version: of the content. A write of other content changes it.
    updated: seconds since 1970, by the store's clock.
    checksums: of the content, in base64, by algorithm ("md5", "crc32c", "sha256"); {} if the store did not say.
    """

    size: int  # bytes
    version: Version
    updated: float
    checksums: dict[str, str]


class Failure(enum.Enum):
    """Why a request has failed."""

    ABSENT = "the object does not exist"
    NO_BUCKET = "the bucket does not exist"
    CHANGED = "the object does not have the required version"
    AGAIN = "the store does not answer, is busy or fails: repeat the request"
    DENIED = "access is denied"
    REFUSED = "another answer"


class Store(Protocol):
    """Single requests to one bucket. The methods raise errors of a client library, which `failure` explains."""

    def read(self, key: str) -> bytes:
        """Returns the content of an object."""

    def download(self, key: str, path: Path) -> None:
        """Writes the content of an object to a file."""

    def stat(self, key: str) -> Stored:
        """Returns what the store says about an object, with checksums."""

    def write(self, key: str, content: bytes, version: Version | None) -> Stored:
        """Writes an object whole, if it has this version (None: any)."""

    def upload(self, key: str, path: Path) -> Stored:
        """Writes an object with the content of a file."""

    def copy(self, key: str, to: str) -> None:
        """Copies an object."""

    def delete(self, key: str, version: Version | None) -> None:
        """Removes an object, if it has this version (None: any)."""

    def list(self, prefix: str) -> dict[str, Stored]:
        """Returns the objects whose keys start with `prefix`, by key; the checksums may be {}."""

    def failure(self, error: Exception) -> tuple[Failure, str] | None:
        """Returns why a request failed, and the store's words in one line; None for an error that is not the store's."""


def checksum(algorithm: str, content: bytes | io.BufferedReader) -> str:
    """Returns a checksum of a content or of the rest of a file, one of ALGORITHMS, as in `Stored`."""
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    return base64.b64encode(hashlib.file_digest(file, algorithm).digest()).decode()


def require_package(scheme: str, *modules: str, package: str) -> None:
    """Raises BucketError if modules, of which the last ones come with `package`, are not installed."""
    if not all(map(_is_installed, modules)):
        raise BucketError(f"{scheme}:// needs the package {package}: pip install {package}")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def one_line(text: Any) -> str:
    """Returns a message without its line breaks."""
    return " ".join(str(text).split())
