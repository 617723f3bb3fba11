"""A trained network, and how it is loaded from a workdir, a weights file, published or random weights."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax

from deit_jax import console
from deit_jax.config import ConfigError
from deit_jax.config_record import recorded_config
from deit_jax.data.decoding import EvaluationCrop, Squash, evaluation_crop
from deit_jax.errors import shortened
from deit_jax.models.protocol import fixed_image_size
from deit_jax.network_sources import SOURCES, Wanted
from deit_jax.storage.workdir import Workdir, WorkdirLike
from deit_jax.training.checkpoint_folder import CheckpointError
from deit_jax.training.checkpointing import load_variables, load_weights_of_run
from deit_jax.training.network_identity import NetworkIdentity, weights_digest
from deit_jax.training.program import build_recorded_model
from deit_jax.training.record import read_config, scheduled_steps
from deit_jax.training.state import Variables
from deit_jax.weights.cards import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from deit_jax.weights.class_names import as_wordnet_ids
from deit_jax.weights.declared import Declared
from deit_jax.weights.errors import WeightsError
from deit_jax.weights.files import kind_of
from deit_jax.weights.loading import Fitted, fit_variables
from deit_jax.weights.program_file import read_program

RGB = tuple[float, float, float]
Check = Callable[[nn.Module], None]
_WITHOUT_EMA = {"program": "a program", "pretrained": "published weights", "random": "random weights"}


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network from any source. Unknown fields are None."""

    name: str  # the model's
    model: nn.Module
    variables: Variables
    where: str  # the source of the weights, for messages: "RUN after step 1,000", "weights of FILE"
    image_size: int  # pixels, of its input
    trained_image_size: int | None = None  # pixels
    mean: tuple[float, ...] | None = None  # channel means in training, RGB in [0, 1]
    std: tuple[float, ...] | None = None
    crop: EvaluationCrop | None = None  # the evaluation crop of the run, or the one declared next to the weights
    class_names: tuple[str, ...] | None = None  # in the order of the outputs
    which: str | None = None  # "raw" or "ema"
    step: int | None = None  # the checkpoint's
    finished: bool | None = None  # whether training was complete
    # Changes that were needed to fit the model:
    renewed: tuple[str, ...] = ()  # reinitialised heads
    resized: str = ""  # the position embedding: "14x14 to 24x24"
    note: str = ""  # prefix removed from the names of a file, and ignored tensors
    program: str = ""  # the digest of the file of a program, which contains its weights

    def with_weights(self, fitted: Fitted, which: str | None) -> Network:
        """Returns the network with these weights."""
        variables, renewed, resized, note = fitted
        trained = self.trained_image_size
        patch, side = getattr(self.model, "patch_size", None), resized.partition("x")[0]
        if patch and side.isdecimal():  # the position embedding tells, whatever is declared
            trained = int(side) * patch
        return dataclasses.replace(
            self,
            variables=variables,
            which=which,
            renewed=renewed,
            resized=resized,
            note=note,
            trained_image_size=trained,
        )

    @property
    def changes(self) -> tuple[str, ...]:
        """The changes that were needed to fit the model, for messages."""
        resized = f"position embedding resized from {self.resized}" if self.resized else ""
        return (*(f"{head} reinitialised" for head in self.renewed), *(it for it in (resized, self.note) if it))

    @property
    def origin(self) -> str:
        """Which weights these are, and how they were changed, for messages."""
        where = self.where if self.step is None else f"{self.which} weights of {self.where}"
        return "; ".join((where, *self.changes))

    @property
    def description(self) -> str:
        """The model's name and `origin`."""
        return f"{self.name}, {self.origin}"

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of its images; unknown values are the released code's."""
        crop_ratio = Preprocessing.crop_ratio if self.crop is None else self.crop.crop_ratio
        mean, std = cast(RGB, self.mean or IMAGENET_MEAN), cast(RGB, self.std or IMAGENET_STD)
        return Preprocessing(self.image_size, crop_ratio, mean, std, squash=isinstance(self.crop, Squash))

    def digest(self) -> str:
        """Returns `weights_digest` without reinitialised heads and resized position embeddings."""
        if self.program:
            return self.program
        return weights_digest(self.variables, without=[*self.renewed, *(["pos_embed"] if self.resized else [])])

    def identity(self) -> NetworkIdentity:
        """Returns what a run records about its teacher."""
        size = fixed_image_size(self.model) if self.step is None else self.trained_image_size
        return NetworkIdentity(self.name, self.digest(), self.which, self.step, self.finished, self.class_names, size)


def load_network(spec: WorkdirLike, wanted: Wanted | None = None, *, which: str = "raw", **options: Any) -> Network:
    """Loads one network; arguments and errors as in `load_networks`."""
    [network] = load_networks(spec, wanted, which=which, **options).values()
    return network


def load_networks(
    spec: WorkdirLike,
    wanted: Wanted | None = None,
    *,
    kind: str | None = None,
    which: str | None = None,
    checkpoint: str = "newest",
    image_size: int | None = None,
    heads: str = "keep",
    check: Check | None = None,
) -> dict[str, Network]:
    """Loads the networks that `spec` specifies, by "raw" and "ema".

    Args:
      spec: the --workdir of a run, a weights file, "embedded", "pretrained" (published weights), "hf:OWNER/NAME" or
        "hf:OWNER/NAME@REVISION" (a repository of the Hugging Face hub), or "random".
      wanted: the model to read weights into; None: a run's own.
      kind: the kind of `spec`; None: `kind_of` it.
      which: "raw" or "ema", if there are both; None: both of a run, else the raw ones.
      checkpoint: of a run: "newest", "best" or a step.
      image_size: pixels; position embeddings are resized to it. None: a run's own or the size declared next to the weights, else
        the wanted model's. Weights read into a wanted model that will be trained (`heads`) get the wanted model's.
      heads: as in `load_weights`. Except with "keep", a run's weights are also read into the wanted model.
      check: called with the model before its weights are fetched or read; may raise.

    Raises ConfigError if a folder is not a workdir, or of another model; CheckpointError if it does not hold such weights;
    WeightsError if a file cannot be fetched or read, or does not fit; each in one line.
    """
    if not isinstance(spec, str | os.PathLike | Workdir):
        raise WeightsError(f"a network comes from a path or a name, not from a {type(spec).__name__}")
    kind, check = kind or kind_of(str(spec)), check or (lambda model: None)
    if kind == "workdir":
        return _of_run(Workdir.at(spec), wanted, which, checkpoint, image_size, heads, check)
    if wanted is None:
        raise ValueError(f"{spec}: `wanted` is required unless `spec` is a workdir")
    if checkpoint != "newest":
        raise CheckpointError(
            f"--checkpoint={checkpoint} needs a --workdir; {wanted.section}.weights={spec} has no checkpoints"
        )
    if which == "ema" and kind in _WITHOUT_EMA:
        raise WeightsError(f"{spec}: there is no moving average of {_WITHOUT_EMA[kind]}: use the raw weights")
    if kind == "program":
        return {"raw": _of_program(str(spec), wanted, check)}
    source = SOURCES[kind](str(spec), wanted, "ema" if which == "ema" else None)
    size = image_size or wanted.size_for(source.declared, heads)
    model = wanted.build(source.num_classes, size)
    check(model)
    network = Network(wanted.name, model, {}, source.where, size, crop=source.crop(size), **source.fields)
    network = network.with_weights(source.read(model, size, wanted, heads), network.which)
    if heads == "keep":
        _warn_of_unlike_images(network, source.declared, wanted, sized=image_size is not None)
    return {network.which or "raw": network}


def _warn_of_unlike_images(network: Network, declared: Declared, wanted: Wanted, *, sized: bool) -> None:
    """Warns of images that differ from those of the training in ways that the caller did not choose.

    sized: whether the caller chose the image size.
    """
    advice = "--config.image_size=PIXELS" if wanted.section else "image_size=PIXELS"
    warn = console.warn if wanted.section else functools.partial(warnings.warn, stacklevel=5)  # a caller in Python
    if network.resized and not sized and not wanted.keeps_size:
        trained = f"{network.trained_image_size} pixels" if network.trained_image_size else "another size"
        warn(
            f"{network.where} were trained at {trained} but are used at {network.image_size}: position embedding resized from "
            f"{network.resized}; no other image size is declared next to them, so give {advice}"
        )
    if declared.interpolation not in ("", "bicubic"):
        warn(
            f"{network.where} declare {declared.interpolation} interpolation: images are resized by bicubic interpolation"
        )
    if declared.other_crop and not wanted.keeps_size:
        warn(
            f"{network.where} declare a crop that this package does not have ({shortened(declared.other_crop)}): the centre is "
            "used"
        )


def say_of_another_size(network: Network, wanted: int | None, what: str) -> None:
    """Prints the trained image size if the caller wanted another one. what: what is done at it, e.g. "evaluated"."""
    if wanted is None or network.trained_image_size in (None, network.image_size):
        return  # without a wish, `load_networks` has warned
    resized = ", position embeddings resized (bicubic)" if network.resized else ""
    console.say(f"trained at {network.trained_image_size} pixels, {what} at {network.image_size}{resized}")


def _of_run(
    folder: Workdir, wanted: Wanted | None, which: str | None, checkpoint: str, image_size: int | None, heads: str, check: Check
) -> dict[str, Network]:  # fmt: skip
    """Loads the networks of a run: its own model if `heads` is "keep", else the wanted model."""
    record = read_config(folder)
    trained, resolved = recorded_config(record), record["resolved"]
    name, trained_size = trained.model.name, resolved["image_size"]
    if heads == "keep":
        if wanted is not None and name != wanted.name:
            requested = f"{wanted.section}.name={wanted.name!r}" if wanted.section else f"{wanted.name} is requested"
            raise ConfigError(f"{requested}, but {folder} holds {name!r}")
        size = image_size or trained_size
        model = build_recorded_model(record, size)
    else:
        if wanted is None or wanted.num_classes is None:
            raise ValueError(f"{folder}: heads={heads} needs a wanted model and number of classes")
        size = image_size or wanted.image_size
        model = wanted.build(wanted.num_classes, size)
        if type(build_recorded_model(record)) is not type(model):
            raise ConfigError(
                f"{wanted.section}.weights={folder} holds {name}, which is not of the architecture of "
                f"{wanted.section}.name={wanted.name}"
            )
    check(model)
    if which is None:
        loaded, step = load_weights_of_run(folder, checkpoint)
    else:
        variables, step = load_variables(folder, which, checkpoint)
        loaded = {which: variables}
    network = Network(
        name, model, {}, f"{folder} after step {step:,}", size, trained_size,
        tuple(trained.augment.mean), tuple(trained.augment.std), evaluation_crop(trained.evaluation, size),
        tuple(resolved.get("class_names") or ()) or None, step=step, finished=step >= scheduled_steps(record),
    )  # fmt: skip
    networks = {}
    for each, variables in loaded.items():
        fitted = Fitted(variables, (), "")
        if heads != "keep" or size != trained_size:
            seed = 0 if wanted is None else wanted.seed
            fitted = fit_variables(variables, model, f"{each} weights of {network.where}", heads=heads, seed=seed)
        networks[each] = network.with_weights(fitted, each)
    return networks


def _of_program(spec: str | Path, wanted: Wanted, check: Callable[[nn.Module], None]) -> Network:
    if wanted.section != "config.teacher":
        given = f"{wanted.section}.weights={spec}" if wanted.section else spec
        raise ConfigError(
            f"{given} is a program, whose weights cannot be trained or read: only config.teacher.weights takes one"
        )
    network = program_network(spec, jax.default_backend())
    check(network.model)
    names = network.class_names
    if names is None:
        return network
    return dataclasses.replace(network, class_names=as_wordnet_ids(names, wanted.class_names))


def program_network(spec: str | Path, platform: str) -> Network:
    """Returns the network that a `jax.export` program computes on `platform`; see `read_program`."""
    read = read_program(spec, platform)
    return Network(
        "program",
        read.model,
        {},
        str(spec),
        read.model.image_size,
        mean=read.mean,
        std=read.std,
        class_names=read.class_names,
        program=read.model.program.digest,
    )


def warn_of_another_normalisation(network: Network, mean: Sequence[float], std: Sequence[float], section: str) -> None:
    """Warns if a network was trained with a normalisation other than `mean` and `std`, which `section` specifies."""
    for field, trained, given in (("mean", network.mean, tuple(mean)), ("std", network.std, tuple(std))):
        if trained is not None and trained != given:
            console.warn(f"{network.description}: trained with {field} {trained}, given {given}; see {section}.{field}")


def is_another_crop(network: Network, crop: EvaluationCrop) -> bool:
    """Whether a network's own evaluation crop is known and computes other pixels than `crop`, to the same size."""
    own = network.crop
    if own is None:
        return False
    return type(own) is not type(crop) or int(own.size / own.crop_ratio) != int(crop.size / crop.crop_ratio)
