"""--mode=analyze: disagreement of trained networks, similarity of their tokens, position embeddings and attention."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.augment.pipeline import prepare_for_evaluation
from deit_jax.config import ConfigError
from deit_jax.config_check import validate
from deit_jax.config_record import recorded_config
from deit_jax.data.bad_images import BadImages
from deit_jax.data.decoding import decode, evaluation_crop
from deit_jax.data.loading import eval_batches
from deit_jax.data.registry import open_source
from deit_jax.data.sources import DataError, ImageSource
from deit_jax.evaluation.accuracy import evaluate, make_eval_step
from deit_jax.evaluation.heads import answer_of
from deit_jax.evaluation.predictions import decide, disagreement, make_decide_step
from deit_jax.evaluation.tokens import at_resolution, attention_maps, can_inspect, position_norms, token_cosines
from deit_jax.models.protocol import is_distilled, on_mesh
from deit_jax.modes import analysis_output as analysis
from deit_jax.modes.compared import compared_networks
from deit_jax.modes.evaluate import as_labelled, without_teacher
from deit_jax.network import Network
from deit_jax.parallel.in_advance import sent_in_advance
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import replicated, rounded_up
from deit_jax.storage.files import disk_faults
from deit_jax.storage.workdir import ANALYSIS, Workdir, WorkdirLike
from deit_jax.training.record import read_config

GROUND_TRUTH = "ground truth"
FIRST_IMAGES = 4  # images for the attention maps if no files are given


@dataclasses.dataclass
class EvaluationImages:
    """The evaluation images of a configuration, always in the same order, at any image size.

    `unreadable` counts the images that the last pass left out (config.data.on_bad_image).
    """

    config: ConfigDict
    source: ImageSource
    mesh: Mesh
    unreadable: int = 0

    def batches(self, image_size: int) -> Iterator[dict[str, jax.Array]]:
        """Yields all images once, as `eval_batches` does, on the mesh."""
        config, data = self.config, self.config.data
        bad_images = BadImages(lambda line: None if self.unreadable else console.warn(line), "left out")  # warn once
        batches = eval_batches(
            self.source,
            evaluation_crop(config.evaluation, image_size),
            rounded_up(config.evaluation.batch_size, self.mesh),
            num_threads=data.num_threads,
            num_workers=data.num_workers,
            on_bad_image=data.on_bad_image,
            bad_images=bad_images,
        )
        yield from sent_in_advance(self.mesh, batches, data.batches_ahead)
        self.unreadable = bad_images.count()

    def first(self, count: int) -> list[np.ndarray]:
        """Returns the pixels of the first readable images."""
        images: list[np.ndarray] = []
        for index in range(len(self.source)):
            if len(images) == count:
                break
            try:
                images.append(decode(self.source[index].image))
            except DataError:
                if self.config.data.on_bad_image == "stop":
                    raise
        return images


def analyze(
    workdir: WorkdirLike,
    *,
    config: ConfigDict | None = None,
    others: Sequence[str] = (),
    which: str = "raw",
    image_files: Sequence[str] = (),
    image_size: int | None = None,
    output: Path | None = None,
) -> dict[str, Any]:
    """Compares the network of `workdir`, its teacher and `others`, inspects it, and writes tables and pictures.

    Args:
      workdir: a training run.
      config: specifies the evaluation images; None: the run's own configuration.
      others: workdirs or weights files, as in `compared_networks`.
      which: "raw" or "ema" weights of the workdirs.
      image_files: images for the attention maps; empty: the first evaluation images.
      image_size: pixels at which position embeddings are compared; None: 384/224 of the network's size, as in the paper.
      output: the folder to write to; None: WORKDIR/analysis. Files with the same names are replaced.

    Returns {"disagreement", "tokens", "position_embedding"} as in the JSON files; None for parts that do not apply. Raises
    ConfigError, DataError, CheckpointError or WeightsError, each with a one-line message.
    """
    if jax.process_count() > 1:
        raise ConfigError("--mode=analyze runs in one process: start it without --num_processes")
    workdir = Workdir.at(workdir)
    if config is None:
        config = recorded_config(read_config(workdir))
    else:
        config = without_teacher(config)
        validate(config)
    folder = workdir.folder(ANALYSIS) if output is None else output
    mesh = make_mesh()
    networks = compared_networks(workdir, others, which=which, image_size=config.image_size)
    label, first = next(iter(networks.items()))
    other_size = _other_size(label, first, image_size)
    files = [(Path(file).stem, _read_image(Path(file))) for file in image_files]  # fail early
    source = as_labelled(
        open_source(config.data, "eval"), first.class_names, first.model.num_classes, first.description
    )
    images = EvaluationImages(config, source, mesh)
    with disk_faults(lambda reason: ConfigError(f"{folder} cannot be made ({reason}): give another --output")):
        folder.mkdir(parents=True, exist_ok=True)
    report = analysis.Report(folder, facts=_facts(config, images, networks))

    result = {"disagreement": _compare(images, networks, report), "tokens": _tokens(images, networks, report)}
    result["position_embedding"] = None
    if can_inspect(first.model):
        result["position_embedding"] = _position_embedding(images, first, other_size, report)
        if not files:
            files = [(f"eval_{i}", pixels) for i, pixels in enumerate(images.first(FIRST_IMAGES))]
        _attention(config, first, files, report)
    else:
        console.say(f"{label} is not a transformer: it has no position embedding and no attention maps")
    workdir.upload()
    console.say(f"tables and pictures are in {workdir.address(ANALYSIS) if output is None else folder}")
    return result


def _facts(config: ConfigDict, images: EvaluationImages, networks: Mapping[str, Network]) -> dict[str, Any]:
    first = next(iter(networks.values()))
    where = config.data.name if config.data.source == "tfds" else config.data.path or config.data.source
    return {
        "data": f"{where}, {config.data.eval_split}",
        "images": len(images.source),
        "protocol": str(evaluation_crop(config.evaluation, first.image_size)),
        "classifiers": {label: network.description for label, network in networks.items()},
    }


def _on_mesh(network: Network, mesh: Mesh) -> tuple[nn.Module, Any]:
    return on_mesh(network.model, mesh), jax.device_put(network.variables, replicated(mesh))


def _compare(images: EvaluationImages, networks: Mapping[str, Network], report: analysis.Report) -> dict[str, Any]:
    """The disagreement matrix of these networks, as in Table 4."""
    columns: dict[str, np.ndarray] = {}
    for label, network in networks.items():
        model, variables = _on_mesh(network, images.mesh)
        step = make_decide_step(model, mean=network.preprocessing.mean, std=network.preprocessing.std)
        by_head, labels = decide(step, variables, images.batches(network.image_size))
        columns[GROUND_TRUTH] = labels
        for head, classes in by_head.items():
            columns[label if len(by_head) == 1 else f"{label}, {head}"] = classes
    return report.disagreement(list(columns), disagreement(columns))


def _tokens(
    images: EvaluationImages, networks: Mapping[str, Network], report: analysis.Report
) -> dict[str, Any] | None:
    """The cosine of class and distillation token in every distilled transformer."""
    curves = {}
    for label, network in networks.items():
        if not (can_inspect(network.model) and is_distilled(network.model)):
            continue
        _, variables = _on_mesh(network, images.mesh)
        batches = images.batches(network.image_size)
        ready = network.preprocessing
        curves[label] = token_cosines(network.model, variables, batches, mean=ready.mean, std=ready.std)
    if not curves:
        console.say("none of these networks has a distillation token, so there is no cosine to the class token")
        return None
    return report.tokens(curves)


def _other_size(label: str, network: Network, image_size: int | None) -> int:
    """The image size at which position embeddings are compared. Raises ConfigError if it is not a multiple of the patch size."""
    model = network.model
    if not can_inspect(model):
        if image_size is not None:
            raise ConfigError(f"--image_size={image_size}: {label} has no position embedding to resize")
        return network.image_size
    if image_size is None:
        side = model.image_size // model.patch_size
        return max(round(side * 384 / 224), side + 1) * model.patch_size
    if image_size < 1 or image_size % model.patch_size:
        raise ConfigError(f"--image_size={image_size} is not a multiple of {label}'s patches of {model.patch_size}")
    return image_size


def _position_embedding(
    images: EvaluationImages, network: Network, image_size: int, report: analysis.Report
) -> dict[str, Any]:
    """Norms and accuracy at the trained size, and at another size without fine-tuning, by either interpolation."""
    own = network.model
    native = f"as trained, {network.image_size} px"
    versions = {native: (own, network.variables)}
    for method in ("bicubic", "bilinear"):
        label = f"{method}, {image_size} px"
        versions[label] = at_resolution(own, network.variables, image_size, method=method)
    table, norms, steps = {}, {}, {}
    for label, (model, variables) in versions.items():
        if model not in steps:  # compile once for the two interpolations
            steps[model] = make_eval_step(model, mean=network.preprocessing.mean, std=network.preprocessing.std)
        on_mesh = jax.device_put(variables, replicated(images.mesh))
        counted = len(images.source) - images.unreadable  # as in the passes before
        scores = evaluate(steps[model], on_mesh, images.batches(model.image_size), counted)
        norms[label] = position_norms(model, variables)
        table[label] = {
            "image_size": model.image_size,
            "norm_mean": float(norms[label].mean()),
            "norm_min": float(norms[label].min()),
            "norm_max": float(norms[label].max()),
            "top1": answer_of(scores, model.fusion)["top1"],
            "scores": scores,
        }
    return report.position_embedding(table, norms)


def _read_image(path: Path) -> np.ndarray:
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise DataError(f"--images: {path} cannot be read ({error.strerror})") from error
    except DataError as error:
        raise DataError(f"--images: {path}: {error}") from error


def _attention(
    config: ConfigDict, network: Network, pictures: Sequence[tuple[str, np.ndarray]], report: analysis.Report
) -> None:
    """Attention maps of the prefix tokens on each picture, cropped as in evaluation."""
    crop = evaluation_crop(config.evaluation, network.image_size)
    cropped = np.stack([crop(pixels, None) for _, pixels in pictures])
    prepared = prepare_for_evaluation(cropped, network.preprocessing.mean, network.preprocessing.std)
    attention = attention_maps(network.model, network.variables, prepared)
    names = [f"{i}_{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}" for i, (name, _) in enumerate(pictures)]
    report.attention(names, cropped, np.asarray(attention.maps), np.asarray(attention.rollout))
