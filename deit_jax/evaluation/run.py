"""Evaluation of models on a configuration's evaluation images."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deit_jax.config import ConfigError
from deit_jax.data.decoding import evaluation_crop
from deit_jax.data.loading import eval_batches
from deit_jax.data.sources import ImageSource
from deit_jax.evaluation.accuracy import EvalStep, Scores, evaluate, make_eval_step
from deit_jax.models.grouped_conv import suited_to
from deit_jax.parallel.sharding import put_batch


class Evaluator:
    """Scores models on all images of `source`, cropped as the configuration says; compiles once a model.

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
        model = suited_to(model, self._mesh)
        if model not in self._eval_steps:
            augment = self._config.augment
            self._eval_steps[model] = make_eval_step(model, mean=tuple(augment.mean), std=tuple(augment.std))
        batches = eval_batches(
            self._source,
            self._crop,
            self._config.evaluation.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=self._config.data.num_threads,
        )
        on_mesh = (put_batch(self._mesh, batch) for batch in batches)
        return evaluate(self._eval_steps[model], variables, on_mesh, len(self._source))

    def weights(self, model: nn.Module, raw: Any, ema: Any | None) -> dict[str, Scores]:
        """Scores of the raw weights and, where there is one, of their moving average."""
        return {
            name: self(model, variables) for name, variables in (("raw", raw), ("ema", ema)) if variables is not None
        }
