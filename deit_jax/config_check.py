"""The check that refuses a configuration which cannot be run, before anything is opened or compiled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deit_jax.config import ConfigError, listed_names, needs_teacher

_CHOICES = {
    "compute_dtype": ("auto", "float32", "bfloat16"),
    "on_nonfinite": ("stop", "skip", "rollback"),
    "model.attention": ("xla", "dot_product", "cudnn"),
    "model.remat": ("none", "dots", "full"),
    "model.fusion": ("logits", "softmax"),
    "distillation.kind": ("none", "soft", "hard", "labels"),
    "distillation.kl": ("released", "paper"),
    "distillation.kl_mean": ("elements", "batch"),
    "model.variables": ("raw", "ema"),
    "teacher.variables": ("raw", "ema"),
    "data.source": ("fashion_mnist_10k", "npz", "folder", "tfds"),
    "data.train_crop": ("random_resized", "padded", "center"),
    "data.on_bad_image": ("stop", "replace"),
    "data.on_change": ("stop", "continue"),
    "evaluation.protocol": ("deit", "timm", "mmpretrain"),
    "optimizer.name": ("adamw", "sgd"),
    "schedule.kind": ("released", "plain"),
}  # the augmentation checks its own fields

# Inclusive bounds; None: no bound.
_BOUNDS = {
    "seed": (0, 2**32 - 1),
    "num_classes": (1, None),
    "image_size": (1, None),
    "model.drop_path_rate": (0, 0.999),
    "model.dropout_rate": (0, 0.999),
    "distillation.alpha": (0, 1),
    "distillation.tau": (1e-6, None),
    "data.held_out": (0, 0.99),
    "data.repeats": (1, None),
    "data.crop_padding": (0, None),
    "data.max_eval_images": (1, None),
    "data.num_threads": (0, None),
    "data.num_workers": (0, None),
    "data.prefetch_batches": (1, None),
    "train.batch_size": (1, None),
    "train.epochs": (1, None),
    "train.max_steps": (1, None),
    "train.accumulation_steps": (1, None),
    "train.clip_norm": (1e-12, None),
    "optimizer.eps": (0, None),
    "optimizer.weight_decay": (0, None),
    "schedule.base_learning_rate": (0, None),
    "schedule.base_batch_size": (1, None),
    "schedule.warmup_epochs": (0, None),
    "ema.decay": (0, 1),
    "evaluation.batch_size": (1, None),
    "evaluation.every_epochs": (0, None),
    "evaluation.crop_ratio": (0.01, 1),
    "evaluation.memory_gib": (0, None),
    "checkpoint.every_steps": (1, None),
    "checkpoint.keep": (1, None),
    "log.every_steps": (1, None),
    "log.peak_tflops": (1e-12, None),
    "log.profile_steps": (0, None),
    "log.profile_after": (1, None),
    "parallel.fsdp": (1, None),
    "parallel.heartbeat_seconds": (10, None),
    "parallel.fsdp_min_size": (0, None),
}

_LENGTHS = {"optimizer.betas": 2, "data.crop_scale": 2, "data.crop_ratio": 2, "augment.mean": 3, "augment.std": 3}


def validate(config: ConfigDict) -> None:
    """Refuse a configuration that cannot be run, before anything is opened or compiled.

    Raises ConfigError: a value outside its choices or bounds, or values that do not go together.
    """
    for name, choices in _CHOICES.items():
        value = _get(config, name)
        if value not in choices:
            raise ConfigError(f"config.{name}={value!r} is none of {', '.join(choices)}")
    for name, (low, high) in _BOUNDS.items():
        value = _get(config, name)
        if value is None:
            continue
        if not (low <= value and (high is None or value <= high)):  # also false for nan
            raise ConfigError(
                f"config.{name}={value!r} must be at least {low}" + (f" and at most {high}" if high else "")
            )
    for name, length in _LENGTHS.items():
        if len(_get(config, name)) != length:
            raise ConfigError(f"config.{name}={_get(config, name)!r}: give {length} numbers, separated by commas")
    _refuse_bad_patterns("optimizer.no_decay", config.optimizer.no_decay)
    _refuse_bad_patterns("optimizer.trainable", config.optimizer.trainable)
    for pattern, place in config.parallel.sharding_rules:
        if place not in ("fsdp", "replicate"):
            raise ConfigError(
                f"config.parallel.sharding_rules: {place!r} for {pattern!r} is neither 'fsdp' nor 'replicate'"
            )
    _refuse_bad_patterns("parallel.sharding_rules", [pattern for pattern, _ in config.parallel.sharding_rules])
    if config.model.weights == "pretrained" and config.model.variables == "ema":
        raise ConfigError("config.model.variables=ema: of the published weights there is no moving average, take raw")
    _refuse_bad_extra_sets(config)
    _refuse_bad_teachers(config)


def _refuse_bad_extra_sets(config: ConfigDict) -> None:
    for name, entry in config.evaluation.extra.items():
        fields = set(entry) if isinstance(entry, ConfigDict) else set()
        if not {"source", "name", "path", "split"} <= fields <= {"source", "name", "path", "split", "labels"}:
            raise ConfigError(
                f"config.evaluation.extra.{name} has the fields {', '.join(sorted(fields)) or 'of no ConfigDict'}; give it "
                "source, name, path and split, and labels if they are ReaL's"
            )
        if entry.source not in _CHOICES["data.source"]:
            raise ConfigError(
                f"config.evaluation.extra.{name}.source={entry.source!r} is none of {', '.join(_CHOICES['data.source'])}"
            )


def _refuse_bad_teachers(config: ConfigDict) -> None:
    kind, teacher = config.distillation.kind, config.teacher
    names, weights = listed_names(teacher.name), listed_names(teacher.weights)
    if not needs_teacher(config):
        if teacher.weights or any(teacher[field] is not None for field in ("recipe", "mean", "std", "classes")):
            raise ConfigError(f"config.teacher is given but config.distillation.kind is {kind}: set it to soft or hard")
    elif teacher.recipe is not None:
        if teacher.weights:
            raise ConfigError("config.teacher.weights and config.teacher.recipe exclude each other: keep one of them")
        if teacher.recipe.model.name != teacher.name:
            raise ConfigError(
                f"config.teacher.name={teacher.name!r}, but config.teacher.recipe trains {teacher.recipe.model.name!r}"
            )
        validate(teacher.recipe)
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
    for field in ("mean", "std"):
        values = teacher[field]
        if values is not None and (len(values) != 3 or (field == "std" and min(values) <= 0)):
            raise ConfigError(f"config.teacher.{field}={tuple(values)}: give three numbers (RGB), std above 0")


def _refuse_bad_patterns(field: str, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"config.{field}: {pattern!r} is no regular expression ({error})") from error


def _get(config: ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config
