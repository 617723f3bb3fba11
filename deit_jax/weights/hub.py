"""Published weights by model name, from the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
import warnings
from pathlib import Path
from typing import Any

import flax.linen as nn

from deit_jax.errors import errors_only
from deit_jax.models.registry import create_model, list_models, model_family
from deit_jax.weights.errors import WeightsError
from deit_jax.weights.loading import check_choices, load_weights

# The authors' weights in timm's repositories; the teacher is facebookresearch/deit's regnety_160-a5fe301d.
_REPOSITORIES = {name: f"timm/{name}.fb_in1k" for name in list_models() if model_family(name) == "vit"}
_REPOSITORIES["regnety_160"] = "timm/regnety_160.deit_in1k"
_FILE = "model.safetensors"
_SHA256 = re.compile("[0-9a-f]{64}")


def list_pretrained() -> list[str]:
    """Returns the names that `load_pretrained` accepts."""
    return list(_REPOSITORIES)


def load_pretrained(
    name: str,
    num_classes: int = 1000,
    image_size: int | None = None,
    *,
    heads: str = "keep",
    distillation_token: str = "keep",
    revision: str | None = None,
    sha256: str | None = None,
    cache_dir: str | Path | None = None,
    **overrides: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a model and its published ImageNet weights: the eight DeiT models and the RegNetY-16GF teacher.

    Needs huggingface_hub (pip install huggingface_hub) and respects its settings: HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN.
    Uses the cached file if the hub cannot be reached. Compares the file's SHA-256 with the hub's every time.

    Args:
      name: one of `list_pretrained()`.
      num_classes: as in `create_model`.
      image_size: as in `create_model`; the position embedding is resized if the published size differs.
      heads: as in `load_weights`; "reset" for other classes than ImageNet's.
      distillation_token: as in `load_weights`.
      revision: branch, tag or commit of the repository.
      sha256: the file's expected hash, or its first digits, instead of the hub's.
      cache_dir: instead of the hub's own cache.
      **overrides: as in `create_model`.

    Returns:
      (model, variables): `model.apply(variables, images)`.

    Raises:
      ValueError: the name or an override is unknown.
      WeightsError: huggingface_hub is not installed, or the file is not available, damaged, or does not fit.
    """
    model = create_model(name, num_classes, image_size, **overrides)
    check_choices(heads, distillation_token)
    return model, load_weights(
        fetch_pretrained(name, revision=revision, sha256=sha256, cache_dir=cache_dir),
        model,
        heads=heads,
        distillation_token=distillation_token,
    )


def fetch_pretrained(
    name: str, *, revision: str | None = None, sha256: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """Returns the file of a model's published weights; errors as in `load_pretrained`."""
    if name not in _REPOSITORIES:
        raise WeightsError(f"no published weights of {name}; available: {', '.join(_REPOSITORIES)}")
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{1,64}", sha256):
        raise WeightsError(f"sha256={sha256!r}: give the hexadecimal digits of the file's SHA-256")
    repository = _REPOSITORIES[name]
    try:
        import huggingface_hub
    except ImportError as error:
        raise WeightsError("load_pretrained needs huggingface_hub: pip install huggingface_hub") from error
    try:
        # It logs each of its retries twice.
        with errors_only("huggingface_hub"):
            path = huggingface_hub.hf_hub_download(repository, _FILE, revision=revision, cache_dir=cache_dir)
    except Exception as error:  # from the hub, the connection or the disk
        address = huggingface_hub.hf_hub_url(repository, _FILE, revision=revision)
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{repository}/{_FILE} is available neither from the hub nor from the cache: download {address} elsewhere and give "
            f"the file (--config.model.weights=FILE; load_weights in Python). The hub reports: {reason}"
        ) from None
    _check_hash(Path(path), huggingface_hub, repository, revision, sha256)
    return Path(path)


def _check_hash(path: Path, hub: Any, repository: str, revision: str | None, sha256: str | None) -> None:
    """Compares the file with the caller's SHA-256, or the hub's."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expected = sha256 or _declared_hash(path, hub, repository, revision)
    if expected is None:
        warnings.warn(f"{repository}/{_FILE}: this hub declares no SHA-256, so the file is not checked", stacklevel=5)
    elif not digest.startswith(expected.lower()):
        raise WeightsError(
            f"{path.resolve()} is damaged or another file: its SHA-256 is {digest[:16]}..., not {expected[:16]}...; "
            "delete it and try again"
        )


def _declared_hash(path: Path, hub: Any, repository: str, revision: str | None) -> str | None:
    if _SHA256.fullmatch(name := path.resolve().name):
        return name  # the cache stores large files by hash
    # A cache without symbolic links does not: ask the hub once, and store the hash next to the file.
    stored = path.with_name(f"{path.name}.sha256")
    if stored.is_file():
        return stored.read_text(encoding="utf-8").strip()
    try:
        etag = str(hub.get_hf_file_metadata(hub.hf_hub_url(repository, _FILE, revision=revision)).etag)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{path}: cannot check its hash: the hub does not respond ({reason})") from error
    if not _SHA256.fullmatch(etag):
        return None
    stored.write_text(etag + "\n", encoding="utf-8")
    return etag
