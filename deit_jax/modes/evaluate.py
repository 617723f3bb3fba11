"""--mode=eval: scores a checkpoint of a workdir, or weights from elsewhere, on the evaluation images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.cache_folder import shared_cache_folder
from deit_jax.config import MUST_BE_GIVEN, ConfigError, default_config
from deit_jax.config_check import validate
from deit_jax.config_losses import forget_sections
from deit_jax.config_record import recorded_config
from deit_jax.data.classes import with_classes
from deit_jax.data.decoding import evaluation_crop
from deit_jax.data.identity import Images
from deit_jax.data.registry import open_source
from deit_jax.data.sources import ImageSource, notes_of
from deit_jax.evaluation.run import Evaluator, open_extra_sets, protocol_of, score_extra_sets
from deit_jax.network import (
    Network,
    is_another_crop,
    load_networks,
    say_of_another_size,
    warn_of_another_normalisation,
)
from deit_jax.network_sources import wanted_by
from deit_jax.parallel.agreement import agree
from deit_jax.parallel.compilation_cache import share_compiled_programs
from deit_jax.parallel.distributed import first_process_first, is_main_process
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import replicated
from deit_jax.storage.files import as_file, write_file
from deit_jax.storage.workdir import EVALUATION, Workdir, WorkdirLike
from deit_jax.training.checkpoint_folder import has_checkpoints
from deit_jax.training.preparation import common_facts, with_shared_index
from deit_jax.training.record import read_config
from deit_jax.training.results import show_results
from deit_jax.weights.files import kind_of

_NOTHING = "nothing to evaluate: give the --workdir of a training run, or --config.model.weights=FILE (or =pretrained)"


def evaluate(
    config: ConfigDict | None, workdir: WorkdirLike | None, *, checkpoint: str = "newest", output: Path | None = None
) -> dict[str, Any]:
    """Scores weights on the evaluation images of `config`, and on the available ones of `config.evaluation.extra`.

    The weights are those of `workdir` if it has checkpoints, else `config.model.weights`. If `config.image_size` is not the size
    they were trained at, position embeddings are resized.

    Args:
      config: needs no teacher, even if it distils. None: the configuration that `workdir` records, with its data.
      workdir: a run; None: `config.model.weights` is evaluated.
      checkpoint: "newest", "best" or a step number.
      output: the JSON file to write; None: `workdir`/evaluation.json, or no file without a workdir.

    Returns the content of the file: {"scores": {"raw": scores by head, "ema": ...}, "extra": by name, "protocol": ...,
    "data": {"images", "digest"}, ...}.
    Raises ConfigError, DataError, CheckpointError or WeightsError, each with a one-line message.
    """
    if config is None:
        if workdir is None:
            raise ConfigError(_NOTHING)
        config = recorded_config(read_config(workdir))
    config = without_teacher(config)
    shared = None if workdir is None else shared_cache_folder(Workdir.at(workdir).path)
    source = agree(lambda: first_process_first(lambda: _open(config, shared)), lambda source: _facts(config, source))
    if shared is not None and (unsafe := share_compiled_programs(config.parallel.compilation_cache, shared)):
        console.warn(unsafe)
    networks = evaluated_networks(config, workdir, source.class_names, checkpoint)
    network = next(iter(networks.values()))  # the networks differ only in their weights
    origin = network.origin if network.step is None else network.where
    source = as_labelled(source, network.class_names, network.model.num_classes, origin)
    extra = open_extra_sets(config, source.class_names, strict=True, index=_data(config, shared).index)
    for note in notes_of(source):
        console.say(note)
    protocol = protocol_of(config, network.image_size)
    say_of_another_size(network, config.image_size, "evaluated")
    warn_of_another_normalisation(network, config.augment.mean, config.augment.std, "config.augment")
    if is_another_crop(network, crop := evaluation_crop(config.evaluation, network.image_size)):
        console.warn(f"{network.description}: its own crop is {network.crop}, given {crop}; see config.evaluation")

    mesh = make_mesh()
    evaluator = Evaluator(config, source, mesh, image_size=network.image_size)
    weights = {name: jax.device_put(each.variables, replicated(mesh)) for name, each in networks.items()}
    results = {
        "model": config.model.name,
        "weights": origin,
        "step": network.step,
        "image_size": network.image_size,
        "trained_image_size": network.trained_image_size,
        "protocol": protocol,
        "data": dataclasses.asdict(Images.of(source)),
        "scores": evaluator.weights(network.model, weights),
        "eval_images": len(source) - evaluator.unreadable,
        "unreadable_images": evaluator.unreadable,
        "teacher": None,
        "extra": score_extra_sets(evaluator, network.model, weights, extra, strict=True),
    }
    if output is not None and is_main_process():
        write_file(output, as_file(results), ConfigError)
    elif workdir is not None and is_main_process():
        Workdir.at(workdir).write_json(EVALUATION, results, error=ConfigError)
    if config.num_classes not in (None, network.model.num_classes):  # a configuration of other classes than the run's
        config.published = ConfigDict()
    show_results(config, results)
    return results


def _open(config: ConfigDict, shared: Path | None) -> ImageSource:
    validate(config)
    if shared is None and not config.model.weights:
        raise ConfigError(_NOTHING)
    return open_source(_data(config, shared), "eval")


def _data(config: ConfigDict, shared: Path | None) -> ConfigDict:
    return config.data if shared is None else with_shared_index(config.data, shared)


def _facts(config: ConfigDict, source: ImageSource) -> dict[str, Any]:
    images = Images.of(source)
    facts = {"class names": list(source.class_names), "images": images.images, "digest of the images": images.digest}
    return common_facts(config) | facts


def as_labelled(source: ImageSource, class_names: Sequence[str] | None, num_classes: int, origin: str) -> ImageSource:
    """Returns the evaluation images with labels that count in the model's classes, matched by name. A subset of them will do.

    class_names, num_classes: the model's; names that are None are not known. origin: describes the model in messages.

    Raises DataError for a class that the model does not have, ConfigError for more classes than a model with unknown names has.
    """
    num_data_classes = len(source.class_names)
    if class_names is None:
        if num_data_classes > num_classes:
            raise ConfigError(
                f"the evaluation images have {num_data_classes} classes, the model {num_classes}: set config.data to images "
                "of the model's classes"
            )
        return source
    source = with_classes(source, class_names, what="the evaluation images", of=origin, numbers=True)
    if num_data_classes < len(class_names):
        console.say(f"the evaluation images are of {num_data_classes} of the {len(class_names)} classes")
    return source


def evaluated_networks(
    config: ConfigDict, workdir: WorkdirLike | None, class_names: Sequence[str], checkpoint: str
) -> dict[str, Network]:
    """The networks that `evaluate` scores, by "raw" and "ema". class_names: the data's, for weights without class names."""
    weights, size = config.model.weights, config.image_size
    wanted = wanted_by(config, class_names, likely_classes=len(class_names))
    if workdir is not None and (has_checkpoints(workdir) or not weights):
        return load_networks(workdir, wanted, kind="workdir", checkpoint=checkpoint, image_size=size)
    which = None if kind_of(weights) == "workdir" else config.model.variables
    networks = load_networks(weights, wanted, which=which, checkpoint=checkpoint, image_size=size)
    for network in networks.values():
        classes = network.model.num_classes
        known = network.step is not None or network.class_names is not None or config.num_classes is not None
        if not known and classes > len(class_names):
            raise ConfigError(
                f"the {network.where} have {classes} classes without names, the evaluation images {len(class_names)}: set "
                f"config.num_classes={classes} if the labels of the images are numbers of the model's classes"
            )
    return networks


def without_teacher(config: ConfigDict) -> ConfigDict:
    """Returns a copy without what only a teacher is for: a finished student needs neither that nor its initial weights."""
    config = config.copy_and_resolve_references()
    if config.model.weights == MUST_BE_GIVEN:
        config.model.weights = ""
    for section in ("distillation", "teacher", "features", "unlabelled"):
        config[section] = default_config()[section]
    forget_sections(config)
    return config
