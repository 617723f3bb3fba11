"""The networks that --mode=analyze compares, by label: the run's, its teacher's, and others that the user names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp

from deit_jax import console
from deit_jax.config import ConfigError, needs_teacher
from deit_jax.config_record import recorded_config
from deit_jax.data.classes import difference
from deit_jax.models import create_model, list_models, native_image_size
from deit_jax.models.protocol import with_dtype
from deit_jax.network import Network, load_network
from deit_jax.network_sources import Wanted
from deit_jax.storage.workdir import CONFIG, Workdir, WorkdirLike
from deit_jax.training.record import read_config
from deit_jax.weights.files import EMBEDDED, kind_of


def compared_networks(
    workdir: WorkdirLike, others: Sequence[str], *, which: str, image_size: int | None = None
) -> dict[str, Network]:
    """Loads the networks under unique labels: first that of `workdir`, then `others`.

    Between them, if the run had one, the teacher that was trained in it, or the embedded one.

    Args:
      others: workdirs; weights files of the model of `workdir`; MODEL:FILE or MODEL:pretrained with a model's name. What a file
        does not specify (classes, dtype, normalisation) comes from the first network.
      which: "raw" or "ema", for workdirs.
      image_size: pixels, of the first network; None: as trained.

    Raises ConfigError if the networks do not have the same classes, and the errors of `load_network`.
    """
    workdir = Workdir.at(workdir)
    first = load_network(workdir, kind="workdir", which=which, image_size=image_size)
    name = workdir.name or str(workdir)
    loaded = [(name, first)]
    if (teacher := workdir.teacher).has(CONFIG):
        network = load_network(teacher, kind="workdir", which=which, check=_same_class_count(str(teacher), first))
        loaded.append((f"{name}/teacher", network))
    elif (embedded := _embedded_teacher(workdir, first)) is not None:
        loaded.append((f"{name}'s teacher", embedded))
    loaded += [_other(entry, first, which) for entry in others]
    networks: dict[str, Network] = {}
    for name, network in loaded:
        _check_names(network, first)
        label, count = name, 2
        while label in networks:
            label, count = f"{name} ({count})", count + 1
        networks[label] = network
    return networks


def _embedded_teacher(workdir: Workdir, first: Network) -> Network | None:
    """Returns the package's own teacher if the run learned from it."""
    record = read_config(workdir)
    teacher = record["config"]["teacher"]
    if teacher["weights"] != EMBEDDED or teacher.get("answers") or not needs_teacher(recorded_config(record)):
        return None
    name, overrides = teacher["name"], teacher["overrides"]
    dtype = getattr(first.model, "dtype", jnp.float32)

    def build(num_classes: int, image_size: int) -> nn.Module:
        return with_dtype(create_model(name, num_classes, image_size, **overrides), dtype)

    wanted = Wanted(name, build, first.image_size, class_names=first.class_names or ())
    network = load_network(EMBEDDED, wanted, check=_same_class_count(EMBEDDED, first))
    return dataclasses.replace(network, mean=network.mean or first.mean, std=network.std or first.std)


def _other(entry: str, first: Network, which: str) -> tuple[str, Network]:
    """The label and the network of one entry of --compare."""
    check = _same_class_count(entry, first)
    name, _, spec = entry.partition(":")
    named = bool(spec) and name in list_models()
    if named:
        label, dtype = name, getattr(first.model, "dtype", jnp.float32)

        def build(num_classes: int, image_size: int) -> nn.Module:
            return with_dtype(create_model(name, num_classes, image_size), dtype)

        wanted = Wanted(name, build, native_image_size(name), likely_classes=first.model.num_classes)
    else:
        spec, label = entry, Path(entry).name or entry
        classes = first.model.num_classes
        wanted = Wanted(first.name, lambda *_: first.model, first.image_size, keeps_size=True, num_classes=classes)
    if kind_of(spec) == "workdir":
        return label, load_network(spec, wanted if named else None, which=which, check=check)
    network = load_network(spec, dataclasses.replace(wanted, class_names=first.class_names or ()), check=check)
    for change in network.changes:
        console.say(f"{spec}: {change}")
    return label, dataclasses.replace(network, mean=network.mean or first.mean, std=network.std or first.std)


def _same_class_count(what: str, first: Network) -> Callable[[nn.Module], None]:
    """A check, run before weights are downloaded or read, that a model has as many classes as `first`."""

    def check(model: nn.Module) -> None:
        if model.num_classes != first.model.num_classes:
            raise ConfigError(
                f"{what} has {model.num_classes} classes, {first.description} has {first.model.num_classes}: their "
                "decisions cannot be compared"
            )

    return check


def _check_names(network: Network, first: Network) -> None:
    if network.class_names and first.class_names and network.class_names != first.class_names:
        raise ConfigError(
            f"{network.description} has other classes than {first.description} "
            f"({difference(network.class_names, first.class_names)}): their decisions cannot be compared"
        )
