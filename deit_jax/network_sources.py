"""Where weights come from other than a training run: a file, the Hugging Face hub, published or random ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.config import ConfigError
from deit_jax.data.decoding import CenterCrop, EvaluationCrop, Squash
from deit_jax.models import native_image_size
from deit_jax.models.protocol import initial_variables
from deit_jax.training.plan import compute_dtype
from deit_jax.training.program import build_model
from deit_jax.weights import hub
from deit_jax.weights.cards import IMAGENET_MEAN, IMAGENET_STD
from deit_jax.weights.class_names import imagenet_class_names, names_of_weights
from deit_jax.weights.declared import Declared, read_declared
from deit_jax.weights.errors import WeightsError
from deit_jax.weights.hub_files import fetch_weights
from deit_jax.weights.loading import Fitted, count_classes, fit_weights

IMAGENET_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The model to read weights into. A run's own record overrides it."""

    name: str
    build: Callable[[int, int], nn.Module]  # (num_classes, image_size in pixels) -> model
    image_size: int  # default, in pixels
    num_classes: int | None = None  # None: as the weights have
    likely_classes: int | None = None  # used if that cannot be determined
    class_names: Sequence[str] = ()  # the data's
    section: str = ""  # section of the configuration that specifies the weights, for messages; "": none
    seed: int = 0  # for random values
    position: int = 0  # among random networks of one seed
    keeps_size: bool = False  # whether `image_size` applies although another size is declared next to the weights

    def size_for(self, declared: Declared, heads: str) -> int:
        """Returns the image size in pixels for weights with this declaration; heads: as in `load_networks`."""
        takes = heads == "keep" and not self.keeps_size
        return (declared.image_size if takes else None) or self.image_size


def wanted_by(
    config: ConfigDict, class_names: Sequence[str] = (), *, dtype: str | None = None, **fields: Any
) -> Wanted:
    """Returns `Wanted` for `config.model`. Raises ConfigError for an unknown name.

    dtype: compute dtype; None: as configured. **fields: of `Wanted`.
    """
    try:
        size = native_image_size(config.model.name)
    except ValueError as error:
        raise ConfigError(f"config.model: {error}") from error
    dtype = dtype or compute_dtype(config)

    def build(num_classes: int, image_size: int) -> nn.Module:
        return build_model(config, num_classes=num_classes, image_size=image_size, compute_dtype=dtype)

    own = {"num_classes": config.num_classes, "section": "config.model", "seed": config.seed}
    return Wanted(config.model.name, build, size, class_names=class_names, **own | fields)


@dataclasses.dataclass(frozen=True)
class Source:
    """What is known about weights before they are fetched and read."""

    where: str  # for messages
    num_classes: int
    fetch: Callable[[], str | Path] | None = None  # returns the file; None: random weights
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # values for `Network`
    declared: Declared = dataclasses.field(default_factory=Declared)

    def crop(self, image_size: int) -> EvaluationCrop | None:
        """Returns the declared evaluation crop to `image_size` pixels; None: none is declared."""
        if self.declared.squash:
            return Squash(image_size)
        return None if self.declared.crop_ratio is None else CenterCrop(image_size, self.declared.crop_ratio)

    def read(self, model: nn.Module, image_size: int, wanted: Wanted, heads: str) -> Fitted:
        """Returns the weights for `model`, or draws random ones; errors and `heads` as in `fit_weights`."""
        if self.fetch is None:
            key = jax.random.key(wanted.seed)
            key = jax.random.fold_in(key, wanted.position) if wanted.position else key
            images = jnp.zeros((1, image_size, image_size, 3))
            return Fitted(jax.jit(functools.partial(initial_variables, model))(key, images), (), "")
        return fit_weights(self.fetch(), model, heads=heads, which=self.fields.get("which"), seed=wanted.seed)


def _random(spec: str, wanted: Wanted, which: str | None) -> Source:
    classes = wanted.num_classes or wanted.likely_classes
    if classes is None:
        raise ConfigError(f"{wanted.section}.weights=random: set the number of classes, config.num_classes")
    return Source("RANDOM weights", classes)


def _published(spec: str, wanted: Wanted, which: str | None) -> Source:
    def fetch() -> Path:
        if wanted.section:
            console.say(f"fetching the published weights of {wanted.name}, unless they are cached")
        return hub.fetch_pretrained(wanted.name)

    names = names_of_weights(spec, wanted.class_names) if wanted.class_names else imagenet_class_names()
    fields = {"trained_image_size": native_image_size(wanted.name), "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    classes = wanted.num_classes or IMAGENET_CLASSES
    return Source("published weights", classes, fetch, fields | {"class_names": names})


def _file(spec: str, wanted: Wanted, which: str | None) -> Source:
    names, classes = names_of_weights(spec, wanted.class_names), wanted.num_classes
    if classes is None:
        try:
            classes = count_classes(spec, which, wanted.build(2, wanted.image_size))  # 2: any number of classes
        except WeightsError:  # one of several sets of weights may fit; an unreadable file is reported later
            classes = len(names or ()) or wanted.likely_classes
            if classes is None:
                raise
    names = names if names and len(names) == classes else None
    declared = read_declared(spec)
    fields: dict[str, Any] = {"class_names": names, "which": which, "mean": declared.mean, "std": declared.std}
    fields |= {"trained_image_size": declared.image_size}
    return Source(f"weights of {spec}", classes, lambda: spec, fields, declared)


def _hub(spec: str, wanted: Wanted, which: str | None) -> Source:
    if wanted.section:
        console.say(f"fetching {spec} from the Hugging Face hub, unless it is cached")
    folder = fetch_weights(spec)
    commit = f" (commit {folder.name[:8]})" if len(folder.name) == 40 else ""
    return dataclasses.replace(_file(str(folder), wanted, which), where=f"weights of {spec}{commit}")


SOURCES = {"random": _random, "pretrained": _published, "file": _file, "hub": _hub}
