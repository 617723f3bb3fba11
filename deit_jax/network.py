"""A trained network as every mode holds it, and the one way to it from what a user types."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.config import ConfigError, recorded_config
from deit_jax.data.decoding import EvaluationCrop, evaluation_crop
from deit_jax.models import native_image_size
from deit_jax.models.protocol import are_alike, fixed_image_size, initial_variables
from deit_jax.training.checkpoint_folder import CheckpointError
from deit_jax.training.network_identity import NetworkIdentity, weights_digest
from deit_jax.training.plan import compute_dtype
from deit_jax.training.program import build_model, build_recorded_model
from deit_jax.training.record import read_config, scheduled_steps
from deit_jax.training.state import Variables
from deit_jax.training.trained_weights import load_variables, load_weights_of_run
from deit_jax.weights import hub
from deit_jax.weights.class_names import imagenet_class_names, names_of_weights
from deit_jax.weights.errors import WeightsError
from deit_jax.weights.files import kind_of
from deit_jax.weights.loading import Fitted, count_classes, fit_variables, fit_weights
from deit_jax.weights.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

IMAGENET_CLASSES = 1000
RGB = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network, wherever it comes from. What is not known is None."""

    name: str  # of the model
    model: nn.Module
    variables: Variables
    where: str  # the weights come from, for people: "RUN after step 1,000", "weights of FILE"
    image_size: int  # pixels, of the images that it takes here
    trained_image_size: int | None = None
    mean: tuple[float, ...] | None = None  # of RGB in [0, 1], in training
    std: tuple[float, ...] | None = None
    crop: EvaluationCrop | None = None  # of the evaluation of the run that trained it
    class_names: tuple[str, ...] | None = None  # in the order of the outputs
    which: str | None = None  # "raw" or "ema"
    step: int | None = None  # after which it was saved
    finished: bool | None = None  # whether its training was
    # What had to be changed to fit the model:
    renewed: tuple[str, ...] = ()  # heads that start from scratch
    resized: str = ""  # of the position embedding: "14x14 to 24x24"
    note: str = ""  # what was removed from the names of a file, and which tensors were left aside

    def with_weights(self, fitted: Fitted, which: str | None) -> Network:
        """The network with these weights of its place."""
        variables, renewed, resized, note = fitted
        return dataclasses.replace(self, variables=variables, which=which, renewed=renewed, resized=resized, note=note)

    @property
    def changes(self) -> tuple[str, ...]:
        """What had to be changed, for people."""
        resized = f"position embedding resized from {self.resized}" if self.resized else ""
        return (*(f"{head} begins anew" for head in self.renewed), *(it for it in (resized, self.note) if it))

    @property
    def origin(self) -> str:
        """Which weights of which place these are, and what was changed about them, for people."""
        where = self.where if self.step is None else f"{self.which} weights of {self.where}"
        return "; ".join((where, *self.changes))

    @property
    def description(self) -> str:
        """The model's name and the `origin`."""
        return f"{self.name}, {self.origin}"

    @property
    def preprocessing(self) -> Preprocessing:
        """How its images are made ready; what is not known is as in the released code."""
        crop_ratio = Preprocessing.crop_ratio if self.crop is None else self.crop.crop_ratio
        mean, std = self.mean or IMAGENET_MEAN, self.std or IMAGENET_STD
        return Preprocessing(self.image_size, crop_ratio, cast(RGB, mean), cast(RGB, std))

    def digest(self) -> str:
        """`weights_digest` of the weights, without heads and position embeddings that were computed here."""
        return weights_digest(self.variables, without=[*self.renewed, *(["pos_embed"] if self.resized else [])])

    def identity(self) -> NetworkIdentity:
        """What a run records of its teacher."""
        size = fixed_image_size(self.model) if self.step is None else self.trained_image_size
        return NetworkIdentity(self.name, self.digest(), self.which, self.step, self.finished, self.class_names, size)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The model that weights are to be read into, as far as they do not say it themselves: a run says all of it."""

    name: str
    build: Callable[[int, int], nn.Module]  # the model of that many classes, for images of that many pixels
    image_size: int  # pixels, unless another size is asked for
    num_classes: int | None = None  # None: as many as the weights have
    likely_classes: int | None = None  # where these cannot be counted
    class_names: Sequence[str] = ()  # of the data, as far as that matters
    section: str = ""  # of the configuration that names the weights, for messages; "": none does
    seed: int = 0  # of what is drawn
    position: int = 0  # among random networks of one seed


def wanted_by(
    config: ConfigDict, class_names: Sequence[str] = (), *, dtype: str | None = None, **fields: Any
) -> Wanted:
    """The model of `config.model`. Raises ConfigError for an unknown name.

    dtype: to compute in; None: as configured. **fields: of `Wanted`.
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


def load_network(spec: str | Path, wanted: Wanted | None = None, *, which: str = "raw", **options: Any) -> Network:
    """The network that `spec` names; everything as of `load_networks`."""
    [network] = load_networks(spec, wanted, which=which, **options).values()
    return network


def load_networks(
    spec: str | Path,
    wanted: Wanted | None = None,
    *,
    kind: str | None = None,
    which: str | None = None,
    checkpoint: str = "newest",
    image_size: int | None = None,
    heads: str = "keep",
    check: Callable[[nn.Module], None] | None = None,
) -> dict[str, Network]:
    """The networks that `spec` names, by "raw" and "ema".

    Args:
      spec: the --workdir of a run, a weights file, "embedded", "pretrained" (published weights) or "random".
      wanted: the model that weights are read into; None: a run's own.
      kind: what `spec` is; None: `kind_of` it.
      which: "raw" or "ema", where there are both; None: both of a run, else the raw ones.
      checkpoint: of a run: "newest", "best" or a step's number.
      image_size: pixels; position embeddings are resized to it. None: a run's own, else the wanted model's.
      heads: as of `load_weights`. With another value than "keep" a run's weights, too, are read into the wanted model.
      check: is given the model before its weights are fetched or read, and may raise.

    Raises ConfigError if this is not a workdir, or of another model; CheckpointError if it holds no such weights; WeightsError if
    a file cannot be had, read or does not fit; each with one clear line.
    """
    if not isinstance(spec, str | os.PathLike):
        raise WeightsError(f"a network comes from a path or a name, not from a {type(spec).__name__}")
    kind, check = kind or kind_of(str(spec)), check or (lambda model: None)
    if kind == "workdir":
        return _of_run(Path(spec), wanted, which, checkpoint, image_size, heads, check)
    if wanted is None:
        raise ValueError(f"{spec}: only a run knows its own model")
    if checkpoint != "newest":
        raise CheckpointError(
            f"--checkpoint={checkpoint} is of a --workdir; {wanted.section}.weights={spec} has no such"
        )
    place = _PLACES[kind](str(spec), wanted, "ema" if which == "ema" else None)
    size = image_size or wanted.image_size
    model = wanted.build(place.num_classes, size)
    check(model)
    return {place.which or "raw": place.read(model, size, wanted, heads)}


def _of_run(
    folder: Path,
    wanted: Wanted | None,
    which: str | None,
    checkpoint: str,
    image_size: int | None,
    heads: str,
    check: Callable[[nn.Module], None],
) -> dict[str, Network]:
    """The networks of a run of this project. Only with other `heads` than "keep" are they read into the wanted model."""
    record = read_config(folder)
    trained, resolved = recorded_config(record), record["resolved"]
    name, trained_size = trained.model.name, resolved["image_size"]
    if heads == "keep":
        if wanted is not None and name != wanted.name:
            asked = f"{wanted.section}.name={wanted.name!r}" if wanted.section else f"{wanted.name} is asked for"
            raise ConfigError(f"{asked}, but {folder} holds {name!r}")
        size = image_size or trained_size
        model = build_recorded_model(record, size)
    else:
        if wanted is None or wanted.num_classes is None:
            raise ValueError(f"{folder}: heads={heads} is for a wanted model and number of classes")
        size = image_size or wanted.image_size
        model = wanted.build(wanted.num_classes, size)
        if not are_alike(build_recorded_model(record), model):
            raise ConfigError(
                f"{wanted.section}.weights={folder} holds {name}, no model like {wanted.section}.name={wanted.name}"
            )
    check(model)
    if which is None:
        found, step = load_weights_of_run(folder, checkpoint)
    else:
        variables, step = load_variables(folder, which, checkpoint)
        found = {which: variables}
    network = Network(
        name,
        model,
        {},
        f"{folder} after step {step:,}",
        size,
        trained_size,
        tuple(trained.augment.mean),
        tuple(trained.augment.std),
        evaluation_crop(trained.evaluation, size),
        tuple(resolved.get("class_names") or ()) or None,
        step=step,
        finished=step >= scheduled_steps(record),
    )
    networks = {}
    for each, variables in found.items():
        fitted = Fitted(variables, (), "")
        if heads != "keep" or size != trained_size:
            seed = 0 if wanted is None else wanted.seed
            fitted = fit_variables(variables, model, f"{each} weights of {network.where}", heads=heads, seed=seed)
        networks[each] = network.with_weights(fitted, each)
    return networks


# --- Weights from elsewhere: one function for each kind of place ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Place:
    """What is known of weights before they are fetched and read."""

    where: str  # for people
    num_classes: int
    class_names: tuple[str, ...] | None = None
    fetch: Callable[[], str | Path] | None = None  # gives the file; None: the weights are drawn
    which: str | None = None
    trained_image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def read(self, model: nn.Module, image_size: int, wanted: Wanted, heads: str) -> Network:
        if self.fetch is None:
            key = jax.random.key(wanted.seed)
            key = jax.random.fold_in(key, wanted.position) if wanted.position else key
            drawn = jax.jit(functools.partial(initial_variables, model))(key, jnp.zeros((1, image_size, image_size, 3)))
            fitted = Fitted(drawn, (), "")
        else:
            fitted = fit_weights(self.fetch(), model, heads=heads, which=self.which, seed=wanted.seed)
        network = Network(
            wanted.name,
            model,
            {},
            self.where,
            image_size,
            self.trained_image_size,
            self.mean,
            self.std,
            class_names=self.class_names,
        )
        return network.with_weights(fitted, self.which)


def _random(spec: str, wanted: Wanted, which: str | None) -> _Place:
    classes = wanted.num_classes or wanted.likely_classes
    if classes is None:
        raise ConfigError(f"{wanted.section}.weights=random: give the number of classes, config.num_classes")
    return _Place("RANDOM weights", classes)


def _published(spec: str, wanted: Wanted, which: str | None) -> _Place:
    def fetch() -> Path:
        if wanted.section:
            console.say(f"fetching the published weights of {wanted.name}, unless they are here already")
        return hub.fetch_pretrained(wanted.name)

    names = names_of_weights(spec, wanted.class_names) if wanted.class_names else imagenet_class_names()
    return _Place(
        "published weights", wanted.num_classes or IMAGENET_CLASSES, names, fetch,
        trained_image_size=native_image_size(wanted.name), mean=IMAGENET_MEAN, std=IMAGENET_STD,
    )  # fmt: skip


def _file(spec: str, wanted: Wanted, which: str | None) -> _Place:
    names, classes = names_of_weights(spec, wanted.class_names), wanted.num_classes
    if classes is None:
        try:
            classes = count_classes(spec, which, wanted.build(2, wanted.image_size))  # of any number of classes
        except WeightsError:  # of several sets of weights one may fit, and what cannot be read is said again
            classes = len(names or ()) or wanted.likely_classes
            if classes is None:
                raise
    return _Place(
        f"weights of {spec}", classes, names if names and len(names) == classes else None, lambda: spec, which
    )


_PLACES = {"random": _random, "pretrained": _published, "file": _file}


def warn_of_another_normalisation(network: Network, mean: Sequence[float], std: Sequence[float], section: str) -> None:
    """Warn if a network was trained on images normalised otherwise than by `mean` and `std`, which `section` gives it."""
    for field, expected, gets in (("mean", network.mean, tuple(mean)), ("std", network.std, tuple(std))):
        if expected is not None and expected != gets:
            console.warn(f"{network.description}: trained with {field} {expected}, given {gets}; see {section}.{field}")
