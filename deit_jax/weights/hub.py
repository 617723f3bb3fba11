"""Published weights by model name, from the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import flax.linen as nn

from deit_jax.errors import errors_only
from deit_jax.models.registry import create_model, list_models, model_family
from deit_jax.weights.errors import WeightsError
from deit_jax.weights.hub_files import WEIGHTS_FILE, cause, check_hash, import_hub
from deit_jax.weights.loading import check_choices, load_weights

# The authors' weights in timm's repositories; the teacher is facebookresearch/deit's regnety_160-a5fe301d.
_REPOSITORIES = {name: f"timm/{name}.fb_in1k" for name in list_models() if model_family(name) == "vit"}
_REPOSITORIES["regnety_160"] = "timm/regnety_160.deit_in1k"


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
    hub = import_hub()
    try:
        with errors_only("huggingface_hub"):  # it logs each of its retries
            path = hub.hf_hub_download(repository, WEIGHTS_FILE, revision=revision, cache_dir=cache_dir)
    except Exception as error:  # from the hub, the connection or the disk
        address = hub.hf_hub_url(repository, WEIGHTS_FILE, revision=revision)
        raise WeightsError(
            f"{repository}/{WEIGHTS_FILE} is available neither from the hub nor from the cache ({cause(error)}): download "
            f"{address} elsewhere and give the file (--config.model.weights=FILE; load_weights in Python), or train from random "
            "weights (--config.model.weights=); HF_HUB_OFFLINE=1 skips the retries"
        ) from None
    check_hash(Path(path), repository, WEIGHTS_FILE, revision, sha256)
    return Path(path)
