"""Buckets of Amazon S3 and of stores that answer as it does, by boto3. The version of an object is its ETag.

Objects with the same content have the same ETag, so a version that is seen twice says that the content is the same, not that
nobody has written in between.
"""

from __future__ import annotations

import email.utils
import functools
import re
from pathlib import Path
from typing import Any, BinaryIO

from deit_jax.errors import shortened
from deit_jax.storage.store import (
    ABSENT,
    CONNECT_SECONDS,
    READ_SECONDS,
    BucketError,
    Failure,
    Stored,
    Version,
    checksum,
    one_line,
    require_package,
)

_LARGEST = 5 << 30  # bytes that S3 takes in one request
_CHUNK = 1 << 20  # bytes that are read at once
_AGAIN = ("SlowDown", "Throttling", "RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch",
          "ConditionalRequestConflict", "OperationAborted")  # fmt: skip
_DENIED = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")  # with status 400
_existing: set[str] = set()  # buckets that are known to exist


@functools.cache
def client() -> Any:
    """Returns the client of this process, with what boto3 finds: credentials, region, AWS_ENDPOINT_URL. Raises BucketError."""
    require_package("s3", "boto3", package="boto3")
    import boto3
    import botocore.config
    import botocore.exceptions

    config = botocore.config.Config(
        connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries={"total_max_attempts": 1}
    )
    try:
        return boto3.session.Session().client("s3", config=config)
    except (botocore.exceptions.BotoCoreError, ValueError) as error:  # e.g. an AWS_PROFILE that does not exist
        raise BucketError(f"s3:// cannot be used ({shortened(one_line(error), 120)}): see aws configure") from error


class AmazonStore:
    """See `Store`."""

    def __init__(self, bucket: str) -> None:
        self._bucket = bucket

    def read(self, key: str) -> bytes:
        """Returns the content of an object."""
        content: bytes = client().get_object(Bucket=self._bucket, Key=key)["Body"].read()
        return content

    def download(self, key: str, path: Path) -> None:
        """Writes the content of an object to a file."""
        body = client().get_object(Bucket=self._bucket, Key=key)["Body"]
        with path.open("wb") as file:
            for chunk in body.iter_chunks(_CHUNK):
                file.write(chunk)

    def stat(self, key: str) -> Stored:
        """Returns what the store says about an object. checksums: {} if it was not written with its SHA-256."""
        import botocore.exceptions

        try:
            answer = client().head_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED")
        except botocore.exceptions.ClientError as error:
            if _status(error) == 404:  # without words: of the object, or of the bucket
                self._require_bucket()
            raise
        return _stored(answer, answer["ContentLength"])

    def write(self, key: str, content: bytes, version: Version | None) -> Stored:
        """Writes an object whole, if it has this version (None: any)."""
        return self._put(key, content, len(content), checksum("sha256", content), version)

    def upload(self, key: str, path: Path) -> Stored:
        """Writes an object with the content of a file. Raises BucketError for one that S3 does not take in one request."""
        size = path.stat().st_size
        if size > _LARGEST:
            raise BucketError(
                f"s3://{self._bucket}/{key} would have {size:,} bytes, and S3 takes {_LARGEST:,} at most in one request: "
                "use a gs:// bucket or a folder as --workdir"
            )
        with path.open("rb") as file:
            sha256 = checksum("sha256", file)
            file.seek(0)
            return self._put(key, file, size, sha256)

    def copy(self, key: str, to: str) -> None:
        """Copies an object within the store."""
        source = {"Bucket": self._bucket, "Key": key}
        client().copy_object(Bucket=self._bucket, Key=to, CopySource=source)

    def delete(self, key: str, version: Version | None) -> None:
        """Removes an object, if it has this version (None: any)."""
        import botocore.exceptions

        if version is None:
            client().delete_object(Bucket=self._bucket, Key=key)
            return
        # A store may ignore the condition or not know it, so the object is looked at before. With such a store, another process
        # can replace the object between the look and the removal. Only the lock is removed under a condition. Its holder has
        # renewed it less than half a lease ago (`Lease.release` checks), so another process can have replaced it only if this one
        # was stopped for the other half between the two requests. That process then finds at its next renewal or check that its
        # lock is gone, and ends without a further write: two runs never write, but one may have to be started again.
        if self.stat(key).version != version:
            return
        try:
            client().delete_object(Bucket=self._bucket, Key=key, IfMatch=version)
        except botocore.exceptions.ClientError as error:
            if _code(error) != "NotImplemented":
                raise
            client().delete_object(Bucket=self._bucket, Key=key)

    def list(self, prefix: str) -> dict[str, Stored]:
        """Returns the objects whose keys start with `prefix`, by key, without checksums."""
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        return {entry["Key"]: _stored(entry, entry["Size"]) for page in pages for entry in page.get("Contents", ())}

    def failure(self, error: Exception) -> tuple[Failure, str] | None:
        """Returns why a request failed, and the store's words; None for an error that is not the store's."""
        import botocore.exceptions as boto

        text = _said(error)
        if isinstance(error, boto.ClientError):
            return _failure(error), text
        lost = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, boto.FlexibleChecksumError)
        if isinstance(error, lost):  # no connection, or a damaged transfer
            return Failure.AGAIN, text
        if isinstance(error, boto.BotoCoreError):
            credentials = (
                boto.NoCredentialsError,
                boto.PartialCredentialsError,
                boto.CredentialRetrievalError,
                boto.TokenRetrievalError,
                boto.SSOError,
            )
            return (Failure.DENIED if isinstance(error, credentials) else Failure.REFUSED), text
        return (Failure.AGAIN, text) if isinstance(error, ConnectionError | TimeoutError) else None

    def _put(self, key: str, body: bytes | BinaryIO, size: int, sha256: str, version: Version | None = None) -> Stored:
        condition = {} if version is None else {"IfNoneMatch": "*"} if version == ABSENT else {"IfMatch": version}
        # S3 refuses a content that arrives with another checksum.
        checksums = {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": sha256}
        answer = client().put_object(Bucket=self._bucket, Key=key, Body=body, **checksums, **condition)
        said = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        updated = self.stat(key).updated if said is None else email.utils.parsedate_to_datetime(said).timestamp()
        return Stored(size, answer["ETag"], updated, {"sha256": sha256})

    def _require_bucket(self) -> None:
        """Raises the error of a bucket that does not exist; asks once."""
        import botocore.exceptions

        if self._bucket in _existing:
            return
        try:
            client().head_bucket(Bucket=self._bucket)
        except botocore.exceptions.ClientError as error:
            if _status(error) == 404:
                raise
        _existing.add(self._bucket)


def _stored(answer: dict[str, Any], size: int) -> Stored:
    sha256 = answer.get("ChecksumSHA256", "")
    # An object in several parts has a checksum of checksums, e.g. "...-3".
    checksums = {"sha256": sha256} if sha256 and "-" not in sha256 else {}
    return Stored(size, answer["ETag"], answer["LastModified"].timestamp(), checksums)


def _failure(error: Any) -> Failure:
    status, code, operation = _status(error), _code(error), error.operation_name
    if code == "PreconditionFailed" or status == 412:
        return Failure.CHANGED
    if code == "NoSuchBucket" or (status == 404 and operation == "HeadBucket"):
        return Failure.NO_BUCKET
    if status == 404:
        return Failure.CHANGED if operation == "PutObject" else Failure.ABSENT  # IfMatch without an object
    if code in _AGAIN or status in (408, 429) or (status >= 500 and status != 501):
        return Failure.AGAIN
    return Failure.DENIED if status in (401, 403) or code in _DENIED else Failure.REFUSED


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _said(error: Any) -> str:
    answer = getattr(error, "response", None)
    said = answer.get("Error", {}) if isinstance(answer, dict) else {}
    text = one_line(said.get("Message") or said.get("Code") or error)
    text = re.sub(r': "https?://\S+"', "", text)  # after "Could not connect to the endpoint URL"
    return shortened(text or type(error).__name__, 120)
