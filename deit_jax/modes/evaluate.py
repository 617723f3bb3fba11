"""--mode=eval: a checkpoint of a workdir, or weights from elsewhere, on the evaluation images."""

from __future__ import annotations

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
from deit_jax.data.classes import with_classes
from deit_jax.data.identity import Images
from deit_jax.data.registry import open_source
from deit_jax.data.sources import ImageSource, notes_of
from deit_jax.evaluation.run import Evaluator, open_extra_sets, protocol_of, score_extra_sets
from deit_jax.network import Network, load_networks, wanted_by, warn_of_another_normalisation
from deit_jax.parallel.agreement import agree
from deit_jax.parallel.compilation_cache import share_compiled_programs
from deit_jax.parallel.distributed import first_process_first, is_main_process
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import replicated
from deit_jax.storage.files import as_file, write_file
from deit_jax.storage.workdir import EVALUATION, Workdir
from deit_jax.training.checkpoint_folder import has_checkpoints
from deit_jax.training.preparation import common_facts, with_shared_index
from deit_jax.training.record import show_results
from deit_jax.weights.files import kind_of


def evaluate(
    config: ConfigDict, workdir: Path | None, *, checkpoint: str = "newest", output: Path | None = None
) -> dict[str, Any]:
    """Score weights on the evaluation images that `config` names, and on those of `config.evaluation.extra` that are there.

    The weights are those of `workdir` if it has checkpoints, else those that `config.model.weights` names. At another image size
    than they were trained at (`config.image_size`) position embeddings are resized.

    Args:
      config: needs no teacher, whatever it distils from.
      workdir: of a run; None: `config.model.weights` is evaluated.
      checkpoint: "newest", "best" or a step's number.
      output: the JSON file to write; None: `workdir`/evaluation.json, and without a workdir none.

    Returns what is written: {"scores": {"raw": scores by head, "ema": ...}, "extra": by name, "protocol": ..., and more}. Raises
    ConfigError, DataError, CheckpointError or WeightsError, each with one clear line.
    """
    config = without_teacher(config)
    shared = None if workdir is None else shared_cache_folder(workdir)
    source = agree(lambda: first_process_first(lambda: _open(config, shared)), lambda source: _facts(config, source))
    if shared is not None and (unsafe := share_compiled_programs(config.parallel.compilation_cache, shared)):
        console.warn(unsafe)
    networks = evaluated_networks(config, workdir, source.class_names, checkpoint)
    network = next(iter(networks.values()))  # they differ in their weights
    origin = network.origin if network.step is None else network.where
    source = as_labelled(source, network.class_names, network.model.num_classes, origin)
    extra = open_extra_sets(config, source.class_names, strict=True, index=_data(config, shared).index)
    for note in notes_of(source):
        console.say(note)
    protocol = protocol_of(config, network.image_size)
    if network.trained_image_size not in (None, network.image_size):
        resized = ", position embeddings resized (bicubic)" if network.resized else ""
        console.say(f"trained at {network.trained_image_size} pixels, evaluated at {network.image_size}{resized}")
    warn_of_another_normalisation(network, config.augment.mean, config.augment.std, "config.augment")

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
    show_results(config, results)
    return results


def _open(config: ConfigDict, shared: Path | None) -> ImageSource:
    validate(config)
    if shared is None and not config.model.weights:
        raise ConfigError(
            "there is nothing to evaluate: give the --workdir of a training run, or --config.model.weights=FILE "
            "(or =pretrained) without one"
        )
    return open_source(_data(config, shared), "eval")


def _data(config: ConfigDict, shared: Path | None) -> ConfigDict:
    return config.data if shared is None else with_shared_index(config.data, shared)


def _facts(config: ConfigDict, source: ImageSource) -> dict[str, Any]:
    images = Images.of(source)
    found = {"class names": list(source.class_names), "images": images.images, "digest of the images": images.digest}
    return common_facts(config) | found


def as_labelled(source: ImageSource, class_names: Sequence[str] | None, num_classes: int, origin: str) -> ImageSource:
    """Evaluation images with labels that count in the model's classes, matched by name. They may be of some of the classes only.

    class_names, num_classes: the model's; None: names that nothing tells. origin: whose model it is, for messages.

    Raises DataError for a class that the model does not know, ConfigError for too many where names are not known.
    """
    there = len(source.class_names)
    if class_names is None:
        if there > num_classes:
            raise ConfigError(
                f"the evaluation images have {there} classes, the model {num_classes}: set config.data to images of its own"
            )
        return source
    source = with_classes(source, class_names, what="the evaluation images", of=origin, numbers=True)
    if there < len(class_names):
        console.say(f"the evaluation images are of {there} of the {len(class_names)} classes")
    return source


def evaluated_networks(
    config: ConfigDict, workdir: Path | None, class_names: Sequence[str], checkpoint: str
) -> dict[str, Network]:
    """What `evaluate` scores, by "raw" and "ema". class_names: the data's, for weights that know no names."""
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
    """A configuration that distils from none: a finished student needs no teacher's weights, nor those it began with."""
    config = config.copy_and_resolve_references()
    if config.model.weights == MUST_BE_GIVEN:
        config.model.weights = ""
    for section in ("distillation", "teacher"):
        config[section] = default_config()[section]
    forget_sections(config)
    return config
