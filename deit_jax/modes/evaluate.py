"""--mode=eval: a checkpoint of a workdir, or weights from elsewhere, on the evaluation images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from deit_jax.cache_folder import shared_cache_folder
from deit_jax.config import MUST_BE_GIVEN, ConfigError, default_config, recorded_config
from deit_jax.config_check import validate
from deit_jax.config_losses import forget_sections
from deit_jax.data.classes import with_classes
from deit_jax.data.identity import Images
from deit_jax.data.registry import open_source
from deit_jax.data.sources import ImageSource, notes_of
from deit_jax.evaluation.extra import open_extra_sets, score_extra_sets
from deit_jax.evaluation.protocol import protocol_of
from deit_jax.evaluation.run import Evaluator
from deit_jax.inference.class_names import names_of_weights
from deit_jax.models import native_image_size
from deit_jax.models.position_embedding import resize_position_embedding
from deit_jax.models.vit import VisionTransformer
from deit_jax.parallel.agreement import agree
from deit_jax.parallel.compilation_cache import share_compiled_programs
from deit_jax.parallel.distributed import first_process_first, is_main_process
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import replicated
from deit_jax.reporting import console
from deit_jax.storage.files import as_file, write_file
from deit_jax.storage.workdir import EVALUATION, Workdir
from deit_jax.training.checkpoint_folder import CheckpointError, has_checkpoints
from deit_jax.training.plan import compute_dtype
from deit_jax.training.preparation import common_facts, with_shared_index
from deit_jax.training.program import build_model, build_recorded_model
from deit_jax.training.record import read_config, show_results
from deit_jax.training.state import Variables
from deit_jax.training.trained_weights import load_weights_of_run
from deit_jax.weights import load_pretrained, load_weights
from deit_jax.weights.files import is_weights


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is evaluated."""

    model: nn.Module
    weights: dict[str, Variables]  # by "raw", "ema"
    origin: str  # where they come from, for people
    step: int | None  # None: of weights that this project did not train
    image_size: int
    trained_image_size: int | None  # None: not known
    class_names: tuple[str, ...] | None  # in the order of the outputs; None: not known, labels are taken as they are


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
    subject = load_subject(config, workdir, source.class_names, checkpoint)
    source = as_labelled(source, subject.class_names, subject.model.num_classes, subject.origin)
    extra = open_extra_sets(config, source.class_names, strict=True, index=_data(config, shared).index)
    for note in notes_of(source):
        console.say(note)
    protocol = protocol_of(config, subject.image_size)
    if subject.trained_image_size not in (None, subject.image_size):
        resized = ", position embeddings resized (bicubic)" if isinstance(subject.model, VisionTransformer) else ""
        console.say(f"trained at {subject.trained_image_size} pixels, evaluated at {subject.image_size}{resized}")

    mesh = make_mesh()
    evaluator = Evaluator(config, source, mesh, image_size=subject.image_size)
    weights = {name: jax.device_put(variables, replicated(mesh)) for name, variables in subject.weights.items()}
    results = {
        "model": config.model.name,
        "weights": subject.origin,
        "step": subject.step,
        "image_size": subject.image_size,
        "trained_image_size": subject.trained_image_size,
        "protocol": protocol,
        "scores": evaluator.weights(subject.model, weights),
        "eval_images": len(source) - evaluator.unreadable,
        "unreadable_images": evaluator.unreadable,
        "teacher": None,
        "extra": score_extra_sets(evaluator, subject.model, weights, extra, strict=True),
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


def load_subject(config: ConfigDict, workdir: Path | None, data_names: Sequence[str], checkpoint: str) -> Subject:
    """The weights that `evaluate` scores, and their model. data_names: the data's classes, for weights that know no names."""
    weights = config.model.weights
    if workdir is not None and (has_checkpoints(workdir) or not weights):
        return _of_run(config, workdir, checkpoint)
    if weights != "pretrained" and not is_weights(Path(weights)):
        return _of_run(config, Path(weights), checkpoint)
    if checkpoint != "newest":
        raise CheckpointError(
            f"--checkpoint={checkpoint} is of a --workdir; config.model.weights={weights} has no such"
        )
    class_names = names_of_weights(weights, data_names)
    num_classes = config.num_classes or len(class_names or data_names)
    if class_names is not None and len(class_names) != num_classes:
        class_names = None
    try:
        native = native_image_size(config.model.name)
    except ValueError as error:
        raise ConfigError(f"config.model: {error}") from error
    size = config.image_size or native
    model = build_model(config, num_classes=num_classes, image_size=size, compute_dtype=compute_dtype(config))
    if weights == "pretrained":
        origin, trained = "published weights", native
        overrides = dict(config.model.overrides)
        model, variables = load_pretrained(config.model.name, num_classes, size, dtype=model.dtype, **overrides)
        which = "raw"
    else:
        origin, trained, which = f"weights of {weights}", None, config.model.variables
        variables = load_weights(weights, model, which="ema" if which == "ema" else None, report=console.say)
    return Subject(model, {which: variables}, origin, None, size, trained, class_names)


def _of_run(config: ConfigDict, folder: Path, checkpoint: str) -> Subject:
    record = read_config(folder)
    resolved, trained = record["resolved"], recorded_config(record)
    if trained.model.name != config.model.name:
        raise ConfigError(f"config.model.name={config.model.name!r}, but {folder} holds {trained.model.name!r}")
    size = config.image_size or resolved["image_size"]
    model = build_recorded_model(record, image_size=size)
    weights, step = load_weights_of_run(folder, checkpoint)
    weights = {name: _at_image_size(model, variables) for name, variables in weights.items()}
    names = tuple(resolved.get("class_names") or ()) or None
    return Subject(model, weights, f"{folder} after step {step}", step, size, resolved["image_size"], names)


def _at_image_size(model: nn.Module, variables: Variables) -> Variables:
    """Variables with the position embedding of the model's image size."""
    if not isinstance(model, VisionTransformer):
        return variables
    side = model.image_size // model.patch_size
    resized = resize_position_embedding(
        jnp.asarray(variables["params"]["pos_embed"]), (side, side), num_prefix_tokens=1 + model.distilled
    )
    return variables | {"params": variables["params"] | {"pos_embed": np.asarray(resized)}}


def without_teacher(config: ConfigDict) -> ConfigDict:
    """A configuration that distils from none: a finished student needs no teacher's weights, nor those it began with."""
    config = config.copy_and_resolve_references()
    if config.model.weights == MUST_BE_GIVEN:
        config.model.weights = ""
    for section in ("distillation", "teacher"):
        config[section] = default_config()[section]
    forget_sections(config)
    return config
