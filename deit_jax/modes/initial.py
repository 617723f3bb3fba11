"""The weights that a new run starts from, wherever they come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from deit_jax.config import ConfigError, recorded_config
from deit_jax.data.classes import difference
from deit_jax.data.registry import open_source
from deit_jax.inference.class_names import names_of_weights
from deit_jax.models import native_image_size
from deit_jax.parallel.distributed import from_main_process
from deit_jax.reporting import console
from deit_jax.training.checkpoint_folder import newest_step
from deit_jax.training.network_identity import check_initial, weights_digest
from deit_jax.training.program import Initial, build_model, build_recorded_model
from deit_jax.training.record import read_config
from deit_jax.training.trained_weights import load_variables
from deit_jax.weights.errors import TokenMisfitError
from deit_jax.weights.files import is_weights
from deit_jax.weights.hub import fetch_pretrained
from deit_jax.weights.loading import Fitted, fit_variables, fit_weights


def load_initial(
    config: ConfigDict,
    workdir: Path,
    record: dict[str, Any] | None = None,
    class_names: tuple[str, ...] | None = None,
) -> Initial | None:
    """The weights that config.model.weights names, fitted to the configured model; None for a random start.

    None, too, where `workdir` has a checkpoint: a resumed run reads that, and its first weights need not be there any more.
    Weights that config.model.weights names in another place than `record`, the workdir's, are read all the same and compared. As
    in the released code heads of another number of classes start from scratch (from config.seed) and position embeddings are
    resized; unlike there everything else must fit.

    class_names: of the training images; None: they are opened for them.

    Raises ConfigError if the weights are of another kind of model, CheckpointError if their workdir holds none, WeightsError if a
    file cannot be had, read or does not fit.
    """
    weights, name = config.model.weights, config.model.name
    if not weights:
        _warn_of_a_random_start(config)
        return None
    if Path(weights).absolute() == workdir.absolute():
        raise ConfigError(
            f"config.model.weights={weights} is this run's own --workdir: give another --workdir to start in"
        )
    resuming = from_main_process(lambda: newest_step(workdir)) is not None
    if resuming and (record is None or record["config"]["model"]["weights"] == weights):
        return None
    class_names = class_names or open_source(config.data, "train").class_names
    shape = {
        "num_classes": config.num_classes or len(class_names),
        "image_size": config.image_size or native_image_size(name),
    }
    model = build_model(config, **shape, compute_dtype="float32")
    heads = "reset" if config.model.reset_heads else "reset_if_needed"
    try:
        if weights == "pretrained":
            where = f"published weights of {name}"
            console.say(f"fetching the {where}, unless they are here already")
            fitted = fit_weights(fetch_pretrained(name), model, heads=heads, seed=config.seed)
        elif is_weights(Path(weights)):
            where = f"weights of {weights}"
            which = "ema" if config.model.variables == "ema" else None
            fitted = fit_weights(weights, model, heads=heads, which=which, seed=config.seed)
            _warn_of_other_classes(fitted, names_of_weights(weights, class_names), class_names, weights)
        else:
            where, fitted = _from_workdir(config, Path(weights), model, heads, class_names)
    except TokenMisfitError as error:
        one, other = ("no distillation token", "one") if error.wanted else ("a distillation token", "none")
        raise ConfigError(
            f"config.model.weights={weights} are of a model with {one}, config.model.name={name} has {other}: take "
            "weights and a model that are both distilled or both plain"
        ) from error
    changes = [f"{head} begins anew" for head in fitted.renewed]
    if fitted.resized:
        changes.append(f"position embedding resized from {fitted.resized}")
    if fitted.note:
        changes.append(fitted.note)
    variables = jax.tree.map(np.asarray, fitted.variables)
    # Heads and embeddings that were computed here are not part of what the weights are.
    found = weights_digest(variables, without=[*fitted.renewed, *(["pos_embed"] if fitted.resized else [])])
    check_initial(workdir, record, found)
    return None if resuming else Initial(variables, "; ".join([where, *changes]), found)


def _from_workdir(
    config: ConfigDict, folder: Path, model: nn.Module, heads: str, class_names: tuple[str, ...]
) -> tuple[str, Fitted]:
    """Where the weights come from, and those of a model that this project trained in `folder`."""
    record = read_config(folder)
    trained, resolved = recorded_config(record), record["resolved"]
    if type(build_recorded_model(record)) is not type(model):
        raise ConfigError(
            f"config.model.weights={folder} holds {trained.model.name}, no model like config.model.name={config.model.name}"
        )
    warn_of_another_normalisation(config, trained, f"the weights of {folder}", "config.augment")
    variables, step = load_variables(folder, config.model.variables)
    where = f"{folder}, {config.model.variables} weights after step {step:,}"
    fitted = fit_variables(variables, model, where, heads=heads, seed=config.seed)
    _warn_of_other_classes(fitted, resolved.get("class_names"), class_names, str(folder))
    return where, fitted


def _warn_of_other_classes(
    fitted: Fitted, own_names: Sequence[str] | None, class_names: Sequence[str], where: str
) -> None:
    """Warn of heads that are kept although they tell other classes apart than those of the data, as far as names are known."""
    if own_names and not fitted.renewed and tuple(own_names) != tuple(class_names):
        console.warn(
            f"the heads of {where} fit by their number of classes, but the classes are others "
            f"({difference(own_names, class_names)}): config.model.reset_heads=True starts them from scratch"
        )


def warn_of_another_normalisation(config: ConfigDict, trained: ConfigDict, what: str, section: str) -> None:
    """Warn if `what`, trained by the configuration `trained`, expects other images than it gets."""
    given = config.teacher if section == "config.teacher" else config.augment
    for field in ("mean", "std"):
        gets = tuple(given[field] or config.augment[field])
        if tuple(trained.augment[field]) != gets:
            expected = tuple(trained.augment[field])
            console.warn(f"{what}: trained with {field} {expected}, given {gets}; see {section}.{field}")


def _warn_of_a_random_start(config: ConfigDict) -> None:
    fields = {
        "config.optimizer.trainable": tuple(config.optimizer.trainable) != (".*",),
        "config.train.train_mode": not config.train.train_mode,
        "config.model.reset_heads": config.model.reset_heads,
    }
    odd = [name for name, is_set in fields.items() if is_set]
    if odd:
        console.warn(
            f"the model starts from RANDOM weights (config.model.weights is empty), although {' and '.join(odd)} "
            "are as for fine-tuning"
        )
