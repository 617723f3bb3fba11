"""The weights that a new run starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.config import ConfigError
from deit_jax.data.classes import difference
from deit_jax.data.registry import open_source
from deit_jax.network import Network, load_network, warn_of_another_normalisation
from deit_jax.network_sources import wanted_by
from deit_jax.parallel.distributed import from_main_process
from deit_jax.storage.workdir import Workdir, WorkdirLike
from deit_jax.training.checkpoint_folder import newest_step
from deit_jax.training.network_identity import check_initial
from deit_jax.training.program import Initial
from deit_jax.weights.errors import TokenMisfitError
from deit_jax.weights.files import kind_of


def load_initial(
    config: ConfigDict,
    workdir: WorkdirLike,
    record: dict[str, Any] | None = None,
    class_names: tuple[str, ...] | None = None,
) -> Initial | None:
    """Loads config.model.weights into the configured model; returns None for a random start.

    Also returns None if `workdir` has a checkpoint: a resumed run reads that, and its initial weights may be gone. If
    config.model.weights now names another place than in `record` (the workdir's), the weights are still read and compared. As in
    the released code, heads with another number of classes start from scratch (from config.seed) and position embeddings are
    resized; unlike there, everything else must fit.

    class_names: of the training images; None: they are opened to find out.

    Raises ConfigError if the weights are of another kind of model, CheckpointError if their workdir has no checkpoint, and
    WeightsError if a file cannot be downloaded or read, or does not fit.
    """
    weights, name = config.model.weights, config.model.name
    if not weights:
        _warn_of_a_random_start(config)
        return None
    workdir = Workdir.at(workdir)
    if kind_of(weights) == "workdir" and Workdir.at(weights).path.absolute() == workdir.path.absolute():
        raise ConfigError(f"config.model.weights={weights} is this run's own --workdir: give another --workdir")
    resuming = from_main_process(lambda: newest_step(workdir)) is not None
    if resuming and (record is None or record["config"]["model"]["weights"] == weights):
        return None
    class_names = class_names or open_source(config.data, "train").class_names
    num_classes = config.num_classes or len(class_names)
    wanted = wanted_by(config, class_names, num_classes=num_classes, dtype="float32")
    heads = "reset" if config.model.reset_heads else "reset_if_needed"
    try:
        network = load_network(weights, wanted, which=config.model.variables, image_size=config.image_size, heads=heads)
    except TokenMisfitError as error:
        theirs, ours = ("no distillation token", "one") if error.wanted else ("a distillation token", "none")
        raise ConfigError(
            f"config.model.weights={weights} are of a model with {theirs}, config.model.name={name} has {ours}: take "
            "weights and a model that are both distilled or both plain"
        ) from error
    warn_of_another_normalisation(network, config.augment.mean, config.augment.std, "config.augment")
    _warn_of_other_classes(network, class_names)
    variables, digest = jax.tree.map(np.asarray, network.variables), network.digest()
    check_initial(workdir, record, digest)
    return None if resuming else Initial(variables, network.description, digest)


def _warn_of_other_classes(network: Network, class_names: Sequence[str]) -> None:
    """Warns if kept heads were trained on other classes than those of the data, as far as names are known."""
    own_names = network.class_names
    if own_names and not network.renewed and own_names != tuple(class_names):
        console.warn(
            f"the heads of {network.where} fit by their number of classes, but their classes differ "
            f"({difference(own_names, class_names)}): config.model.reset_heads=True starts them from scratch"
        )


def _warn_of_a_random_start(config: ConfigDict) -> None:
    fields = {
        "config.optimizer.trainable": tuple(config.optimizer.trainable) != (".*",),
        "config.train.train_mode": not config.train.train_mode,
        "config.model.reset_heads": config.model.reset_heads,
    }
    set_fields = [name for name, is_set in fields.items() if is_set]
    if set_fields:
        console.warn(
            f"the model starts from RANDOM weights (config.model.weights is empty), although {' and '.join(set_fields)} "
            f"{'is' if len(set_fields) == 1 else 'are'} set as for fine-tuning"
        )
