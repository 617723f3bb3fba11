"""Evaluation of models on a configuration's evaluation images and extra sets, and its protocol."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.data.bad_images import BadImages
from deit_jax.data.classes import with_classes
from deit_jax.data.decoding import Squash, evaluation_crop
from deit_jax.data.loading import empty_eval_batch, eval_batches
from deit_jax.data.registry import open_extra_set
from deit_jax.data.shared_memory import SharedMemoryError
from deit_jax.data.sources import DataError, ImageSource, MissingDataError, notes_of
from deit_jax.evaluation.accuracy import EvalStep, Scores, make_eval_step, mean_scores, sum_scores
from deit_jax.models.protocol import on_mesh
from deit_jax.parallel.distributed import first_process_first, sum_over_processes
from deit_jax.parallel.host_rows import host_rows
from deit_jax.parallel.in_advance import sent_in_advance
from deit_jax.parallel.sharding import rounded_up

Weights = Mapping[str, Any]  # {"raw": variables, and "ema": variables or None}
Batches = Iterator[dict[str, np.ndarray]]


def protocol_of(config: ConfigDict, image_size: int) -> dict[str, Any]:
    """Returns the preprocessing of an evaluation, in JSON types, which belongs to every accuracy."""
    crop = evaluation_crop(config.evaluation, image_size)
    squashed = isinstance(crop, Squash)
    return {
        "protocol": config.evaluation.protocol,
        "resize": [image_size, image_size] if squashed else int(image_size / crop.crop_ratio),  # else: the shorter side
        "crop": image_size,
        "crop_ratio": crop.crop_ratio,
        "interpolation": "bicubic, antialiased",
        "mean": [float(value) for value in config.augment.mean],
        "std": [float(value) for value in config.augment.std],
    }


def protocol_line(protocol: Mapping[str, Any]) -> str:
    """Formats the protocol as one line."""
    size, resize = protocol["crop"], protocol["resize"]
    resized = (
        f"shorter side to {resize}, centre {size}" if isinstance(resize, int) else f"whole image to {size} x {size}"
    )
    mean, std = (", ".join(f"{value:g}" for value in protocol[name]) for name in ("mean", "std"))
    return f"{protocol['protocol']}: {resized} ({protocol['interpolation']}); mean {mean}, std {std}"


class Evaluator:
    """Scores models on all images of `source`, cropped by the configuration; compiles once per model and kind of labels.

    keep_images: keep this process's cropped images after the first evaluation, if they fit config.evaluation.memory_gib.

    Attributes: unreadable (number of images that the last evaluation of `source` skipped; config.data.on_bad_image).

    `config.evaluation.batch_size` is rounded up to a multiple of the number of devices, and batches are padded.
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
        """Returns scores by head; `variables` are on the mesh."""
        return self.weights(model, {"": variables})[""]

    def weights(self, model: nn.Module, weights: Weights) -> dict[str, Scores]:
        """Returns scores by head for each of `weights` that is not None, in one pass over the images."""
        before, reads = self._bad_images.count(), self._kept is None
        totals = sum_scores(self._eval_step(model), _present(weights), self._on_mesh(self._own_batches()))
        if reads:
            self.unreadable = sum_over_processes(self._bad_images.count() - before)
        counted = len(self._source) - self.unreadable
        return {name: mean_scores(sums, counted)[0] for name, sums in totals.items()}

    def score_extra(self, model: nn.Module, weights: Weights, source: ImageSource) -> dict[str, Any]:
        """Scores another source: {"images": number scored, "unreadable": number skipped, "scores": {"raw": scores, ...}}.

        Raises DataError if an image cannot be read, in all processes, so that none waits.
        """
        faults: list[DataError] = []
        bad_images = BadImages(console.warn, "left out of the scores")
        batches = self._batches(source, bad_images)
        if jax.process_count() > 1:
            batches = self._synchronized(batches, source, faults)
        totals = sum_scores(self._eval_step(model), _present(weights), self._on_mesh(batches))
        if sum_over_processes(len(faults)):
            raise faults[0] if faults else DataError("another process could not read its part of the images")
        unreadable = sum_over_processes(bad_images.count())
        results = {name: mean_scores(sums, len(source) - unreadable) for name, sums in totals.items()}
        images = next((labelled for _, labelled in results.values()), 0)
        scores = {name: scores for name, (scores, _) in results.items()}
        return {"images": images, "unreadable": unreadable, "scores": scores}

    def _eval_step(self, model: nn.Module) -> EvalStep:
        model = on_mesh(model, self._mesh)
        if model not in self._eval_steps:
            augment = self._config.augment
            self._eval_steps[model] = make_eval_step(model, mean=tuple(augment.mean), std=tuple(augment.std))
        return self._eval_steps[model]

    def _own_batches(self) -> Batches:
        """This process's batches of `source`, from memory if kept."""
        if self._kept is not None:
            yield from self._kept
            return
        kept = []
        for batch in self._batches(self._source, self._bad_images):
            if self._keeps:
                kept.append(batch)
            yield batch
        if self._keeps:
            self._kept = kept

    def _batches(self, source: ImageSource, bad_images: BadImages) -> Batches:
        try:
            return self._read(source, bad_images, self._num_workers)
        except SharedMemoryError as error:  # full of the training workers' batches: not a reason to end a run
            console.warn(f"evaluation reads in threads: {error}")
            self._num_workers = 0
            return self._read(source, bad_images, 0)

    def _read(self, source: ImageSource, bad_images: BadImages, num_workers: int | str) -> Batches:
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
        return sent_in_advance(self._mesh, batches, self._config.data.batches_ahead)

    def _synchronized(self, batches: Batches, source: ImageSource, faults: list[DataError]) -> Batches:
        """The same batches, replaced by empty ones after a fault, so that all processes compute equally many."""
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


def _present(weights: Weights) -> dict[str, Any]:
    return {name: variables for name, variables in weights.items() if variables is not None}


def open_extra_sets(
    config: ConfigDict, class_names: Sequence[str], *, strict: bool, index: str | None = None
) -> dict[str, ImageSource]:
    """Opens the available sets of `config.evaluation.extra`, by name. Warns about each unavailable set and says how to obtain it.

    config: validated. class_names: of the model, matched with the sets' classes. strict: a faulty set (damaged, or of other
    classes) is an error, not a warning. index: folder of the cached file lists; None: config.data.index.

    Raises DataError for a faulty set. All processes open the same sets, the first process before the others.
    """
    sources: dict[str, ImageSource] = {}
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
        _skip(name, fault or DataError("another process cannot use it"), strict=strict and bool(faulty))
    return sources


def score_extra_sets(
    evaluator: Evaluator, model: nn.Module, weights: Weights, sources: Mapping[str, ImageSource], *, strict: bool
) -> dict[str, Any]:
    """Returns `Evaluator.score_extra` by name; unless `strict`, an unreadable set is skipped with a warning."""
    results = {}
    for name, source in sources.items():
        try:
            results[name] = evaluator.score_extra(model, weights, source)
        except DataError as error:
            _skip(name, error, strict=strict)
    return results


def _skip(name: str, fault: DataError, *, strict: bool) -> None:
    if strict:
        raise DataError(f"config.evaluation.extra.{name}: {fault}") from fault
    console.warn(f"config.evaluation.extra.{name} is skipped: {fault}")
