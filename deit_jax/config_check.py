"""The check that refuses a configuration which cannot be run, before anything is opened or compiled."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deit_jax.config import ConfigError, listed_names, needs_teacher
from deit_jax.config_file import missing_field
from deit_jax.config_losses import complete_section, section_kinds
from deit_jax.config_model import check_heads, check_model, check_teachers
from deit_jax.config_values import Kind, kinds, will_do
from deit_jax.data.registry import source_names
from deit_jax.loss_kinds import kinds_with_teacher, loss_kinds
from deit_jax.plugins import import_configured

_CHOICES = {
    "compute_dtype": ("auto", "float32", "bfloat16"),
    "on_nonfinite": ("stop", "skip", "rollback"),
    "model.attention": ("xla", "dot_product", "cudnn"),
    "model.remat": ("none", "dots", "full"),
    "model.fusion": ("logits", "softmax", "class"),
    "model.drop_dtype": ("compute", "float32"),
    "model.residual_dtype": ("compute", "float32"),
    "model.regnet_init": ("timm_0.5", "timm_0.3"),
    "distillation.kl": ("released", "paper"),
    "distillation.kl_mean": ("elements", "batch"),
    "model.variables": ("raw", "ema"),
    "teacher.variables": ("raw", "ema"),
    "teacher.on_change": ("stop", "continue"),
    "data.train_crop": ("random_resized", "padded", "center"),
    "data.on_bad_image": ("stop", "replace"),
    "data.on_change": ("stop", "continue"),
    "evaluation.protocol": ("deit", "timm", "mmpretrain"),
    "optimizer.name": ("adamw", "sgd"),
    "schedule.kind": ("released", "plain"),
}  # the augmentation checks its own fields


def choices() -> dict[str, tuple[str, ...]]:
    """The values that fields may have, by dotted name, of the fields that have few; with what plugins have registered."""
    return _CHOICES | {"distillation.kind": loss_kinds(), "data.source": source_names()}


_TINY = 1e-12  # a lower bound: above 0
_BELOW_1 = 1 - 1e-6

# Inclusive bounds, of every element of a tuple; None: no bound.
_BOUNDS = {
    "seed": (0, 2**32 - 1),
    "num_classes": (1, None),
    "image_size": (1, None),
    "model.drop_path_rate": (0, 0.999),
    "model.dropout_rate": (0, 0.999),
    "distillation.alpha": (0, 1),
    "distillation.tau": (1e-6, None),
    "teacher.mean": (0, 1),
    "teacher.std": (_TINY, None),
    "teacher.classes": (0, None),
    "data.held_out": (0, 0.99),
    "data.images_per_class": (1, None),
    "data.repeats": (1, None),
    "data.crop_scale": (_TINY, 1),
    "data.crop_ratio": (1e-3, 1e3),
    "data.crop_padding": (0, None),
    "data.max_eval_images": (1, None),
    "data.num_threads": (0, None),
    "data.num_workers": (0, None),
    "data.prefetch_batches": (1, None),
    "augment.mean": (0, 1),
    "augment.std": (_TINY, None),
    "augment.erase_count": (1, None),
    "augment.group_size": (1, None),
    "augment.max_group_size": (1, None),
    "augment.groups_per_block": (1, None),
    "train.batch_size": (1, None),
    "train.epochs": (1, None),
    "train.max_steps": (1, None),
    "train.accumulation_steps": (1, None),
    "train.clip_norm": (_TINY, None),
    "optimizer.betas": (0, _BELOW_1),
    "optimizer.momentum": (0, _BELOW_1),
    "optimizer.eps": (0, None),
    "optimizer.weight_decay": (0, None),
    "schedule.base_learning_rate": (0, None),
    "schedule.base_batch_size": (1, None),
    "schedule.warmup_epochs": (0, None),
    "schedule.warmup_learning_rate": (0, None),
    "schedule.min_learning_rate": (0, None),
    "ema.decay": (0, 1),
    "evaluation.batch_size": (1, None),
    "evaluation.every_epochs": (0, None),
    "evaluation.crop_ratio": (0.01, 1),
    "evaluation.memory_gib": (0, None),
    "checkpoint.every_steps": (1, None),
    "checkpoint.keep": (1, None),
    "log.every_steps": (1, None),
    "log.peak_tflops": (_TINY, None),
    "log.profile_steps": (0, None),
    "log.profile_after": (1, None),
    "parallel.fsdp": (1, None),
    "parallel.heartbeat_seconds": (10, None),
    "parallel.join_seconds": (1, None),
    "parallel.fsdp_min_size": (0, None),
}

_LENGTHS = {
    "optimizer.betas": 2, "data.crop_scale": 2, "data.crop_ratio": 2, "augment.mean": 3, "augment.std": 3, "teacher.mean": 3,
    "teacher.std": 3,
}  # fmt: skip
_ORDERED = ("data.crop_scale", "data.crop_ratio")
_MOST = 2**32 - 1  # of whole numbers: what JAX's counters and NumPy's generators take


def validate(config: ConfigDict) -> None:
    """Refuse a configuration that cannot be run, before anything is opened or compiled.

    First config.plugins are imported. A registered loss that is picked gets its section, with the defaults of what is not set.

    Raises ConfigError: a plugin that cannot be imported, a field that is unknown or missing, a value that is of another type, not
    finite or outside its choices or bounds, an option that the model does not have, or values that do not go together.
    """
    missing = missing_field(config)
    if missing is not None:
        raise ConfigError(f"config has no field {missing!r}: start from default_config()")
    import_configured(config)
    complete_section(config)
    _refuse_wrong_fields(config)
    for name, known in choices().items():
        value = _get(config, name)
        if value not in known:
            raise ConfigError(f"config.{name}={value!r} is none of {', '.join(known)}")
    for name, (low, high) in _BOUNDS.items():
        value = _get(config, name)
        for number in () if value is None else value if isinstance(value, tuple | list) else (value,):
            if not (low <= number and (high is None or number <= high)):
                at_least = "above 0" if low == _TINY else f"at least {low}"
                at_most = "" if not high else " and below 1" if high == _BELOW_1 else f" and at most {high}"
                raise ConfigError(f"config.{name}={value!r} must be {at_least}{at_most}")
    known_fields = section_kinds(config)
    for name, value in _fields(config):
        if known_fields[name].base is int and value is not None and value > _MOST:
            raise ConfigError(f"config.{name}={value!r} must be at most {_MOST}")
    for name, length in _LENGTHS.items():
        value = _get(config, name)
        if value is not None and len(value) != length:
            raise ConfigError(f"config.{name}={value!r}: give {length} numbers, separated by commas")
        if name in _ORDERED and value[0] > value[1]:
            raise ConfigError(f"config.{name}={value!r}: give the smaller number first")
    _refuse_bad_patterns("optimizer.no_decay", config.optimizer.no_decay)
    _refuse_bad_patterns("optimizer.trainable", config.optimizer.trainable)
    for pattern, place in config.parallel.sharding_rules:
        if place not in ("fsdp", "replicate"):
            raise ConfigError(
                f"config.parallel.sharding_rules: {place!r} for {pattern!r} is neither 'fsdp' nor 'replicate'"
            )
    _refuse_bad_patterns("parallel.sharding_rules", [pattern for pattern, _ in config.parallel.sharding_rules])
    if config.model.weights == "pretrained" and config.model.variables == "ema":
        raise ConfigError("config.model.variables=ema: the published weights have no moving average; take raw")
    if config.data.source == "fashion_mnist_10k" and config.data.path:
        raise ConfigError(
            f"config.data.path={config.data.path}: config.data.source is fashion_mnist_10k, whose images come with the "
            "package; for your own set config.data.source=folder (or npz)"
        )
    check_model(config)
    _refuse_bad_extra_sets(config)
    _refuse_bad_teachers(config)


def _refuse_wrong_fields(config: ConfigDict) -> None:
    """Refuse fields that there are not, or that hold a value of another type or a number that is not finite."""
    known = section_kinds(config)
    for name, value in _fields(config):
        kind = known.get(name)
        if kind is None:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"config.{name}: there is no such field; the nearest is config.{near}")
        if not will_do(kind, value):
            raise ConfigError(f"config.{name}={value!r}: give {kind.wanted}")
    for name, value in config.published.items():
        if not will_do(Kind(float), value):
            raise ConfigError(f"config.published: {name!r} is {_plain(value)!r}: give {Kind(float).wanted}")


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the value of every field; a section whose fields are not fixed is one."""
    for key in config:
        name, value = prefix + key, config[key]
        if isinstance(value, ConfigDict) and name not in kinds():
            yield from _fields(value, f"{name}.")
        else:
            yield name, value


def _refuse_bad_extra_sets(config: ConfigDict) -> None:
    for name, entry in config.evaluation.extra.items():
        fields = set(entry) if isinstance(entry, ConfigDict) else set()
        if not {"source", "name", "path", "split"} <= fields <= {"source", "name", "path", "split", "labels"}:
            raise ConfigError(
                f"config.evaluation.extra.{name} has the fields {', '.join(sorted(fields)) or 'of no ConfigDict'}; give it "
                "source, name, path and split, and labels if they are ReaL's"
            )
        wrong = [field for field in sorted(fields) if not isinstance(entry[field], str)]
        if wrong:
            raise ConfigError(f"config.evaluation.extra.{name}.{wrong[0]}={_plain(entry[wrong[0]])!r}: give a text")
        if entry.source not in source_names():
            raise ConfigError(
                f"config.evaluation.extra.{name}.source={entry.source!r} is none of {', '.join(source_names())}"
            )


def _refuse_bad_teachers(config: ConfigDict) -> None:
    kind, teacher = config.distillation.kind, config.teacher
    names, weights = listed_names(teacher.name), listed_names(teacher.weights)
    if not needs_teacher(config):
        if teacher.weights or any(teacher[field] is not None for field in ("recipe", "mean", "std", "classes")):
            taught = kinds_with_teacher()
            raise ConfigError(
                f"config.teacher is given but config.distillation.kind is {kind}: set it to "
                f"{', '.join(taught[:-1])} or {taught[-1]}"
            )
    elif teacher.recipe is not None:
        if teacher.weights:
            raise ConfigError("config.teacher.weights and config.teacher.recipe exclude each other: keep one of them")
        _validate_recipe(teacher.recipe)
        if teacher.recipe.model.name != teacher.name:
            raise ConfigError(
                f"config.teacher.name={teacher.name!r}, but config.teacher.recipe trains {teacher.recipe.model.name!r}"
            )
    elif not teacher.weights:
        raise ConfigError(
            f"config.distillation.kind={kind} needs a teacher: set config.teacher.weights to "
            "the --workdir of a trained one, a weights file, or 'pretrained' (or to 'random', only to try a configuration)"
        )
    elif len(names) != len(weights) and not (len(names) == 1 and Path(teacher.weights).exists()):
        raise ConfigError(
            f"config.teacher.name has {len(names)} name(s), config.teacher.weights {len(weights)}: give as many, "
            "separated by commas"
        )
    elif not all(names) or not all(weights):
        raise ConfigError("config.teacher.name and config.teacher.weights: there is nothing between two commas")
    elif teacher.variables == "ema" and set(weights) <= {"pretrained", "random"}:
        raise ConfigError(
            f"config.teacher.variables=ema: {' and '.join(weights)} weights have no moving average; take raw"
        )
    check_teachers(config)


def _validate_recipe(recipe: ConfigDict) -> None:
    try:
        validate(recipe)
        check_heads(recipe)
    except ConfigError as error:
        raise ConfigError(re.sub(r"\bconfig\b", "config.teacher.recipe", str(error))) from error


def _refuse_bad_patterns(field: str, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"config.{field}: {pattern!r} is not a regular expression ({error})") from error


def _plain(value: Any) -> Any:
    """A value as a message shows it: the representation of a ConfigDict has several lines."""
    return value.to_dict() if isinstance(value, ConfigDict) else value


def _get(config: ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config
