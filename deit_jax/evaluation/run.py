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

from deit_jax import console
from deit_jax.data.bad_images import BadImages
from deit_jax.data.decoding import evaluation_crop
from deit_jax.data.loading import empty_eval_batch, eval_batches
from deit_jax.data.shared_memory import SharedMemoryError
from deit_jax.data.sources import DataError, ImageSource
from deit_jax.evaluation.accuracy import EvalStep, Scores, make_eval_step, mean_scores, sum_scores
from deit_jax.models.protocol import on_mesh
from deit_jax.parallel.distributed import sum_over_processes
from deit_jax.parallel.host_rows import host_rows
from deit_jax.parallel.sharding import put_batch, rounded_up

Weights = Mapping[str, Any]  # {"raw": variables, and "ema": variables or None}
Batches = Iterator[dict[str, np.ndarray]]


class Evaluator:
    """Scores models on all images of `source`, cropped as the configuration says; compiles once a model and kind of labels.

    keep_images: this process keeps its cropped images from the first evaluation on, if they fit config.evaluation.memory_gib.

    Attributes: unreadable (images that the last evaluation of `source` left out; config.data.on_bad_image).

    A batch of `config.evaluation.batch_size` is rounded up to a multiple of the devices, and padded.
    """

    def __init__(
        self, config: ConfigDict, source: ImageSource, mesh: Mesh, *, image_size: int, keep_images: bool = False
    ) -> None:
        self._config = config
        self._source = source
        self._mesh = mesh
        self._batch_size = rounded_up(config.evaluation.batch_size, mesh)
        self._rows = host_rows(mesh, self._batch_size)[jax.process_index()]
        self._crop = evaluation_crop(config.evaluation, image_size)
        self._eval_steps: dict[nn.Module, EvalStep] = {}
        self._bad_images = BadImages(console.warn, "left out of the scores")
        self._keeps = (
            keep_images and self._batch_bytes() * self._num_batches(source) <= config.evaluation.memory_gib * 2**30
        )
        self._num_workers = config.data.num_workers
        self._kept: list[dict[str, np.ndarray]] | None = None
        self.unreadable = 0

    def __call__(self, model: nn.Module, variables: Any) -> Scores:
        """Scores by head; `variables` lie on the mesh."""
        return self.weights(model, {"": variables})[""]

    def weights(self, model: nn.Module, weights: Weights) -> dict[str, Scores]:
        """Scores by head of each of `weights` that is not None, all in one pass over the images."""
        totals = sum_scores(self._eval_step(model), _there(weights), self._on_mesh(self._own_batches()))
        counted = len(self._source) - self.unreadable
        return {name: mean_scores(sums, counted)[0] for name, sums in totals.items()}

    def further(self, model: nn.Module, weights: Weights, source: ImageSource) -> dict[str, Any]:
        """{"images": number of scored images of another source, "unreadable": left out, "scores": {"raw": scores, ...}}.

        Raises DataError if an image cannot be read: of several processes in all, so that none is left waiting.
        """
        faults: list[DataError] = []
        bad_images = BadImages(console.warn, "left out of the scores")
        batches = self._batches(source, bad_images)
        if jax.process_count() > 1:
            batches = self._in_step(batches, source, faults)
        totals = sum_scores(self._eval_step(model), _there(weights), self._on_mesh(batches))
        if sum_over_processes(len(faults)):
            raise faults[0] if faults else DataError("another process could not read its part of the images")
        unreadable = sum_over_processes(bad_images.count())
        found = {name: mean_scores(sums, len(source) - unreadable) for name, sums in totals.items()}
        images = next((labelled for _, labelled in found.values()), 0)
        return {
            "images": images,
            "unreadable": unreadable,
            "scores": {name: scores for name, (scores, _) in found.items()},
        }

    def _eval_step(self, model: nn.Module) -> EvalStep:
        model = on_mesh(model, self._mesh)
        if model not in self._eval_steps:
            augment = self._config.augment
            self._eval_steps[model] = make_eval_step(model, mean=tuple(augment.mean), std=tuple(augment.std))
        return self._eval_steps[model]

    def _own_batches(self) -> Batches:
        """This process's batches of `source`, from memory if they are there; counts the unreadable images once they are read."""
        if self._kept is not None:
            yield from self._kept
            return
        kept, before = [], self._bad_images.count()
        for batch in self._batches(self._source, self._bad_images):
            if self._keeps:
                kept.append(batch)
            yield batch
        self.unreadable = sum_over_processes(self._bad_images.count() - before)
        if self._keeps:
            self._kept = kept

    def _batches(self, source: ImageSource, bad_images: BadImages) -> Batches:
        try:
            return self._read(source, bad_images, self._num_workers)
        except SharedMemoryError as error:  # which the workers of training may have filled: a run must not end for that
            console.warn(f"evaluation reads in threads: {error}")
            self._num_workers = 0
            return self._read(source, bad_images, 0)

    def _read(self, source: ImageSource, bad_images: BadImages, num_workers: int) -> Batches:
        data = self._config.data
        return eval_batches(
            source,
            self._crop,
            self._batch_size,
            stretches=self._rows.stretches,
            num_threads=data.num_threads,
            num_workers=num_workers,
            prefetch_batches=data.prefetch_batches,
            on_bad_image=data.on_bad_image,
            bad_images=bad_images,
        )

    def _on_mesh(self, batches: Batches) -> Iterator[dict[str, jax.Array]]:
        return (put_batch(self._mesh, batch) for batch in batches)

    def _in_step(self, batches: Batches, source: ImageSource, faults: list[DataError]) -> Batches:
        """The same batches, and after the first that cannot be read empty ones: the other processes compute as many."""
        for _ in range(self._num_batches(source)):
            if not faults:
                try:
                    yield next(batches)
                    continue
                except DataError as error:
                    faults.append(error)
            yield empty_eval_batch(source, self._crop, self._rows.count)

    def _batch_bytes(self) -> int:
        return self._rows.count * self._crop.size**2 * 3

    def _num_batches(self, source: ImageSource) -> int:
        return math.ceil(len(source) / self._batch_size)


def _there(weights: Weights) -> dict[str, Any]:
    return {name: variables for name, variables in weights.items() if variables is not None}
