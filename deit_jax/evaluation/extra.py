"""The further evaluation sets of a configuration (`config.evaluation.extra`): scored if they are there."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.data.classes import with_classes
from deit_jax.data.registry import open_extra_set
from deit_jax.data.sources import DataError, ImageSource, MissingDataError, notes_of
from deit_jax.evaluation.run import Evaluator, Weights
from deit_jax.parallel.distributed import first_process_first, sum_over_processes

Sources = dict[str, ImageSource]


def open_extra_sets(
    config: ConfigDict, class_names: Sequence[str], *, strict: bool, index: str | None = None
) -> Sources:
    """The sets that are there, by name; a warning says of each of the others how to get it.

    Args:
      config: validated.
      class_names: of the model, with which the sets' classes are matched.
      strict: one that is there and faulty (damaged, or of other classes) is an error; else a warning, too.
      index: where the lists of folders are kept; None: config.data.index.

    Raises DataError for a faulty set. Of several processes all give the same sets, and the first one opens each first.
    """
    sources: Sources = {}
    for name, entry in sorted(config.evaluation.extra.items()):
        fault: DataError | None = None
        try:
            source = first_process_first(functools.partial(open_extra_set, entry, index or config.data.index))
            source = with_classes(source, class_names, what="its images", of="the model", numbers=True)
        except DataError as error:
            fault = error
        faulty = sum_over_processes(fault is not None and not isinstance(fault, MissingDataError))
        if not faulty and not sum_over_processes(fault is not None):
            sources[name] = source
            for note in notes_of(source):
                console.say(f"config.evaluation.extra.{name}: {note}")
            continue
        fault = fault or DataError("another process cannot use it")
        if strict and faulty:
            raise DataError(f"config.evaluation.extra.{name}: {fault}") from fault
        console.warn(f"config.evaluation.extra.{name} is left out: {fault}")
    return sources


def score_extra_sets(
    evaluator: Evaluator, model: nn.Module, weights: Weights, sources: Mapping[str, ImageSource], *, strict: bool
) -> dict[str, Any]:
    """By name what `Evaluator.further` gives; without `strict` a set that cannot be read is left out with a warning."""
    results = {}
    for name, source in sources.items():
        try:
            results[name] = evaluator.further(model, weights, source)
        except DataError as error:
            if strict:
                raise DataError(f"config.evaluation.extra.{name}: {error}") from error
            console.warn(f"config.evaluation.extra.{name} is left out: {error}")
    return results
