"""Repositories of the Hugging Face hub: their names, weights from them, and uploads to them."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deit_jax.errors import errors_only, shortened
from deit_jax.weights.errors import WeightsError

PREFIX = "hf:"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS = (WEIGHTS_FILE, "pytorch_model.bin")  # names that transformers and timm use
_CARD, _PROCESSOR = "config.json", "preprocessor_config.json"
_READ = (*WEIGHTS, _CARD, _PROCESSOR)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SHA256 = re.compile("[0-9a-f]{64}")


def is_on_hub(weights: str) -> bool:
    """Whether a specification of weights is a repository of the hub, "hf:OWNER/NAME" or "hf:OWNER/NAME@REVISION"."""
    return weights.startswith(PREFIX)


def is_name(repository: str) -> bool:
    """Whether a text has the form OWNER/NAME."""
    return _NAME.fullmatch(repository) is not None and ".." not in repository and "--" not in repository


def fetch_weights(spec: str) -> Path:
    """Returns the folder with the weights file of "hf:OWNER/NAME[@REVISION]", its config.json and its preprocessor_config.json.

    Cached files are used if the hub cannot be reached. Raises WeightsError if the name is invalid, or there are no such weights.
    """
    repository, at, revision = spec.removeprefix(PREFIX).partition("@")
    if not is_name(repository) or (at and not revision):
        raise WeightsError(
            f"{spec}: give hf:OWNER/NAME or hf:OWNER/NAME@REVISION, a repository of the Hugging Face hub"
        )
    path = next((found for file in WEIGHTS if (found := _fetch(repository, file, revision or None)) is not None), None)
    if path is None:
        raise WeightsError(f"{spec}: the repository has neither {' nor '.join(WEIGHTS)}: give another, or a file")
    check_hash(path, repository, path.name, revision or None)
    card = _fetch(repository, _CARD, revision or None)
    if card is not None and b'"model_type"' in card.read_bytes():  # transformers: the preprocessing has its own file
        _fetch(repository, _PROCESSOR, revision or None)
    return path.parent


def _fetch(repository: str, file: str, revision: str | None) -> Path | None:
    """Returns the path of a file of a repository; None if the repository does not have it.

    Offline, also None for a file that is not cached next to cached weights, with a warning if the repository may have it.
    """
    hub = import_hub()
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        with errors_only("huggingface_hub"):  # it logs each of its retries
            return Path(hub.hf_hub_download(repository, file, revision=revision))
    except EntryNotFoundError as error:
        if not isinstance(error, LocalEntryNotFoundError):
            return None
        cached = {name: hub.try_to_load_from_cache(repository, name, revision=revision or "main") for name in _READ}
        if not any(isinstance(cached[name], str) for name in WEIGHTS):
            raise _refused(error, repository, revision) from None
        if file not in WEIGHTS and cached[file] is not hub._CACHED_NO_EXIST:  # the repository may have it
            warnings.warn(
                f"{PREFIX}{repository}: {file} is not in the local cache, and the hub cannot be reached: what it declares of "
                "images and class names is not known",
                stacklevel=5,
            )
        return None
    except Exception as error:  # from the hub, the connection or the disk
        raise _refused(error, repository, revision) from None


def import_hub() -> Any:
    """Returns the module huggingface_hub. Raises WeightsError if it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.utils.logging  # sets its logger's level; imported later, it would undo `errors_only`
    except ImportError as error:
        raise WeightsError("the Hugging Face hub needs huggingface_hub: pip install huggingface_hub") from error
    return huggingface_hub


def push_files(
    folder: Path,
    files: Sequence[str],
    repository: str,
    *,
    private: bool,
    revision: str | None,
    message: str,
    removed: Sequence[str] = (),
) -> str:
    """Uploads files of a folder to a repository in one commit, and returns the commit's address.

    removed: files of earlier exports, which the commit deletes if the repository has them.
    A repository that does not exist is created, `private` or public; so is the branch `revision`, from the main one. Raises
    WeightsError if the hub refuses that or cannot be reached, and for `private` if the repository exists and is public.
    """
    hub = import_hub()
    try:
        with errors_only("huggingface_hub"):
            api = hub.HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            if private and not api.model_info(repository).private:
                raise WeightsError(
                    f"{PREFIX}{repository}: is public, and --private creates only new repositories: make it private in its "
                    "settings, or give another name"
                )
            if revision is not None:
                api.create_branch(repository, branch=revision, exist_ok=True)
            stale = [name for name in removed if api.file_exists(repository, name, revision=revision)]
            commit = api.create_commit(
                repository,
                [hub.CommitOperationAdd(name, str(folder / name)) for name in files]
                + [hub.CommitOperationDelete(name) for name in stale],
                commit_message=message,
                revision=revision,
            )
    except Exception as error:
        refused = error if isinstance(error, WeightsError) else _refused(error, repository, revision, writing=True)
        raise WeightsError(f"{refused}; the files are in {folder}, and the same command uploads them again") from None
    return str(commit.commit_url)


def _refused(error: Exception, repository: str, revision: str | None, *, writing: bool = False) -> WeightsError:
    """Returns the hub's error in one line, with what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{PREFIX}{repository}"
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    login = "log in (hf auth login, or the variable HF_TOKEN)"
    if isinstance(error, GatedRepoError):
        return WeightsError(f"{where}: needs your consent to its terms: accept them on its page, and {login}")
    if isinstance(error, RevisionNotFoundError):
        return WeightsError(f"{where}: has no revision {revision!r}: give a branch, tag or commit of it")
    if isinstance(error, LocalTokenNotFoundError) or (status == 401 and writing):
        return WeightsError(f"{where}: writing needs a token: {login}")
    if status == 403 and writing:
        return WeightsError(
            f"{where}: your token may not write there: use one with write access to {repository.split('/')[0]}"
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403, 404):
        return WeightsError(f"{where}: there is no such repository, or it is private: correct the name, or {login}")
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError) or _is_of_the_connection(error):
        what, advice = (
            ("", "check the connection and HF_HUB_OFFLINE")
            if writing
            else (
                "is not in the local cache, and ",
                "check the connection and HF_HUB_OFFLINE, or download the files elsewhere and give the folder; "
                "HF_HUB_OFFLINE=1 skips the retries",
            )
        )
        return WeightsError(f"{where}: {what}the hub cannot be reached ({cause(error)}): {advice}")
    if isinstance(error, OSError) and not isinstance(error, HfHubHTTPError):
        what = (
            "a file cannot be read" if writing else "the hub's cache cannot be written (HF_HOME selects another folder)"
        )
        return WeightsError(f"{where}: {what}: {cause(error)}")
    return WeightsError(f"{where}: the hub reports: {cause(error)}")


def _is_of_the_connection(error: BaseException) -> bool:
    """Whether an error comes from the network: the client libraries of the hub differ between its versions."""
    clients = {"httpx", "httpx2", "httpcore", "requests", "urllib3"}
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return (bool(modules & clients) and getattr(error, "response", None) is None) or isinstance(error, ConnectionError)


def cause(error: BaseException) -> str:
    """Returns what an error of the hub's client goes back to, in one line: a failed connection, else its first sentence."""
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    named = next((it for it in chain if _is_of_the_connection(it)), error)
    text = re.split(r"(?<=[.!?]) ", " ".join(str(named).split()))[0]
    return shortened(f"{type(named).__name__}: {text}" if text else type(named).__name__, 200)


def check_hash(path: Path, repository: str, file: str, revision: str | None, sha256: str | None = None) -> None:
    """Compares a file with the caller's SHA-256, or the hub's. Raises WeightsError if they differ."""
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    expected = sha256 or _declared_hash(path, repository, file, revision)
    if expected is None:
        warnings.warn(f"{repository}/{file}: this hub declares no SHA-256, so the file is not checked", stacklevel=5)
    elif not digest.startswith(expected.lower()):
        raise WeightsError(
            f"{path.resolve()} is damaged or another file: its SHA-256 is {digest[:16]}..., not {expected[:16]}...; "
            "delete it and try again"
        )


def _declared_hash(path: Path, repository: str, file: str, revision: str | None) -> str | None:
    if _SHA256.fullmatch(name := path.resolve().name):
        return name  # the cache stores large files by hash
    # A cache without symbolic links does not: ask the hub once, and store the hash next to the file.
    stored = path.with_name(f"{path.name}.sha256")
    if stored.is_file():
        return stored.read_text(encoding="utf-8").strip()
    hub = import_hub()
    try:
        etag = str(hub.get_hf_file_metadata(hub.hf_hub_url(repository, file, revision=revision)).etag)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{path}: cannot check its hash: the hub does not respond ({reason})") from error
    if not _SHA256.fullmatch(etag):
        return None
    stored.write_text(etag + "\n", encoding="utf-8")
    return etag
