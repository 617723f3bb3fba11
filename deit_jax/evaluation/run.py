"""Evaluation of models on a configuration's evaluation images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deit_jax.config import ConfigError
from deit_jax.data.decoding import evaluation_crop
from deit_jax.data.loading import empty_eval_batch, eval_batches
from deit_jax.data.sources import DataError, ImageSource
from deit_jax.evaluation.accuracy import EvalStep, Scores, make_eval_step, mean_scores, sum_scores
from deit_jax.models.grouped_conv import suited_to
from deit_jax.parallel.distributed import sum_over_processes
from deit_jax.parallel.sharding import put_batch

Weights = Mapping[str, Any]  # {"raw": variables, and where there is one "ema": variables}


class Evaluator:
    """Scores models on all images of `source`, cropped as the configuration says; compiles once a model and kind of labels.

    Raises ConfigError if the evaluation batch does not divide among the devices.
    """

    def __init__(self, config: ConfigDict, source: ImageSource, mesh: Mesh, *, image_size: int) -> None:
        if config.evaluation.batch_size % mesh.size:
            raise ConfigError(
                f"config.evaluation.batch_size={config.evaluation.batch_size} must be a multiple of the {mesh.size} devices"
            )
        self._config = config
        self._source = source
        self._mesh = mesh
        self._crop = evaluation_crop(config.evaluation, image_size)
        self._eval_steps: dict[nn.Module, EvalStep] = {}

    def __call__(self, model: nn.Module, variables: Any) -> Scores:
        """Scores by head; `variables` lie on the mesh."""
        totals = sum_scores(self._eval_step(model), variables, self._on_mesh(self._batches(self._source)))
        return mean_scores(totals, len(self._source))[0]

    def weights(self, model: nn.Module, raw: Any, ema: Any | None) -> dict[str, Scores]:
        """Scores of the raw weights and, where there is one, of their moving average."""
        return {
            name: self(model, variables) for name, variables in (("raw", raw), ("ema", ema)) if variables is not None
        }

    def further(self, model: nn.Module, weights: Weights, source: ImageSource) -> dict[str, Any]:
        """{"images": number of scored images of another source, "scores": {"raw": scores, ...}}.

        Raises DataError if an image cannot be read: of several processes in all, so that none is left waiting.
        """
        scores, images = {}, 0
        for name, variables in weights.items():
            if variables is None:
                continue
            faults: list[DataError] = []
            batches = self._batches(source)
            if jax.process_count() > 1:
                batches = self._in_step(batches, source, faults)
            totals = sum_scores(self._eval_step(model), variables, self._on_mesh(batches))
            if sum_over_processes(len(faults)):
                raise faults[0] if faults else DataError("another process could not read its part of the images")
            scores[name], images = mean_scores(totals, len(source))
        return {"images": images, "scores": scores}

    def _eval_step(self, model: nn.Module) -> EvalStep:
        model = suited_to(model, self._mesh)
        if model not in self._eval_steps:
            augment = self._config.augment
            self._eval_steps[model] = make_eval_step(model, mean=tuple(augment.mean), std=tuple(augment.std))
        return self._eval_steps[model]

    def _batches(self, source: ImageSource) -> Iterator[dict[str, np.ndarray]]:
        return eval_batches(
            source,
            self._crop,
            self._config.evaluation.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=self._config.data.num_threads,
        )

    def _on_mesh(self, batches: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, jax.Array]]:
        return (put_batch(self._mesh, batch) for batch in batches)

    def _in_step(
        self, batches: Iterator[dict[str, np.ndarray]], source: ImageSource, faults: list[DataError]
    ) -> Iterator[dict[str, np.ndarray]]:
        """The same batches, and after the first that cannot be read empty ones: the other processes compute as many."""
        size = self._config.evaluation.batch_size
        for _ in range(math.ceil(len(source) / size)):
            if not faults:
                try:
                    yield next(batches)
                    continue
                except DataError as error:
                    faults.append(error)
            yield empty_eval_batch(source, self._crop, size // jax.process_count())
