"""--mode=preview: the data as a training finds it, and a picture of the first training images after each stage."""

from __future__ import annotations

import copy
import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.augment.operations import OPERATIONS, SKIP
from deit_jax.augment.pipeline import TrainAugmentation
from deit_jax.config import ConfigError
from deit_jax.config_check import validate
from deit_jax.data.registry import open_source
from deit_jax.data.sources import DataError, ImageSource, name_of, path_of
from deit_jax.data.unlabelled import open_training_images
from deit_jax.parallel.distributed import is_main_process
from deit_jax.reporting.plots import image_grid, undrawable
from deit_jax.storage.files import disk_faults, replace_bytes
from deit_jax.training.announcement import describe_data
from deit_jax.training.first_images import as_pixels, first_of_batch, read_first_rows
from deit_jax.training.plan import Plan, plan_of
from deit_jax.training.preparation import open_evaluation_images

_NAMED = 20  # classes that are named on the console if the picture shows only their numbers
# Fields disabled in the picture of each stage. Every stage draws its own random numbers, so disabling a later one changes nothing
# before it: each picture is exactly what the first training step sees at that point.
_MIXING_OFF = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0}
_STAGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("flip", {**_MIXING_OFF, "erase_probability": 0.0, "rand_augment": "", "auto_augment": "", "color_jitter": 0.0}),
    ("operations", {**_MIXING_OFF, "erase_probability": 0.0}),
    ("erasing", _MIXING_OFF),
    ("mixing, as trained on", {}),
)


def preview(config: ConfigDict, output: Path, *, rows: int = 8, held_out_list: Path | None = None) -> Path:
    """Writes a grid of the first `rows` images of the first step to `output`: a column per stage, captioned with what was drawn.

    Prints the numbers of images and classes, and the notes on the data, as a training does at its start.

    held_out_list: a file for the paths of the evaluation images, see `evaluation_paths`; None: none.

    Raises ConfigError or DataError with a one-line message.
    """
    validate(config)
    if output.suffix.lower() not in (".png", ".jpg", ".jpeg", ".pdf", ".svg"):
        raise ConfigError(f"--output={output}: a preview must end in .png, .jpg, .pdf or .svg")
    source = open_training_images(config)
    plan = plan_of(config, source)
    _announce(config, plan, source)
    if held_out_list is not None:
        _list_held_out(config, held_out_list)
    seen = first_of_batch(config, plan, source.class_names, read_first_rows(config, plan, source, rows), rows)
    shown = seen.shown(rows)
    rows = len(shown)

    pictures, targets = stages(seen.augment, seen.key, seen.images, seen.labels)
    operations = operation_names(seen.augment, seen.key, len(seen.images))
    captions = [[seen.class_of(row), "", operations[row], "", seen.mixture(targets[row])] for row in shown]
    columns = ["crop (host)", *(name for name, _ in _STAGES)]
    image_grid(output, columns, pictures[shown], captions, class_names=seen.class_names)
    if unwritten := undrawable(seen.class_names):
        numbered = ", ".join(f"{number} {name}" for number, name in sorted(unwritten.items())[:_NAMED])
        more = ", ..." if len(unwritten) > _NAMED else ""
        console.say(f"no installed font can draw the names of some classes; the picture numbers them: {numbered}{more}")
    console.say(f"the first {rows} images of the first step are in {output}")
    return output


def _announce(config: ConfigDict, plan: Plan, source: ImageSource) -> None:
    """Prints what a training prints of its data. Evaluation images that cannot be opened, which it needs, are a warning."""
    try:
        evaluation = open_evaluation_images(config.data, source.class_names)
    except DataError as error:
        evaluation = None
        console.warn(f"a training would stop here: {error}")
    console.announce("Data", describe_data(config, plan, source, evaluation))


def _list_held_out(config: ConfigDict, file: Path) -> None:
    """Writes the paths of the evaluation images. UTF-8, but names that are not keep their bytes."""
    paths = evaluation_paths(config)
    if is_main_process():
        with disk_faults(lambda reason: ConfigError(f"--held_out_list={file} cannot be written ({reason}); fix that")):
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_bytes(file, "".join(f"{path}\n" for path in paths).encode("utf-8", "surrogateescape"))
    console.say(f"the paths of {len(paths):,} evaluation images are in {file}")


def evaluation_paths(config: ConfigDict) -> list[str]:
    """Returns the paths of all images of the evaluation split, in its order, also those that data.max_eval_images leaves out.

    Relative to config.data.path; for images in shards the paths within these.

    Raises DataError if the images cannot be opened, and ConfigError if they have no paths.
    """
    data = copy.deepcopy(config.data)
    data.max_eval_images = None
    source = open_source(data, "eval")
    paths = []
    for index in range(len(source)):
        own = path_of(source, index)
        path = os.path.relpath(own, data.path).replace(os.sep, "/") if own else name_of(source, index)
        if not path:
            raise ConfigError(
                f"--held_out_list: the images of config.data.source={data.source} have no paths: leave the flag out, or use a "
                "source whose images are files, such as folder or tar"
            )
        if "\n" in path:
            raise ConfigError(
                f"--held_out_list: the name of {source.describe(index)} has a line break: rename the file"
            )
        paths.append(path)
    return paths


def stages(
    augment: TrainAugmentation, key: jax.Array, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images before and after each of _STAGES, uint8[B, 1 + stages, H, W, 3], and the targets float32[B, K].

    images: uint8[B, H, W, 3]; labels: int32[B]; B must be a multiple of the group size if the recipe mixes.
    """
    pictures, targets = [images], None
    for _, off in _STAGES:
        seen, targets = jax.jit(dataclasses.replace(augment, **off))(key, images, labels)
        pictures.append(as_pixels(np.asarray(seen), augment))
    return np.stack(pictures, axis=1), np.asarray(targets)


def operation_names(augment: TrainAugmentation, key: jax.Array, count: int) -> list[str]:
    """Returns the operations that were drawn for each of the first `count` rows, e.g. "Rotate -27, Posterize 1"."""
    drawn = augment.draw_operations(key, jnp.arange(count))
    if drawn is None:
        return [""] * count
    numbers, arguments = (np.asarray(array) for array in drawn)
    texts = []
    for row_numbers, row_arguments in zip(numbers, arguments, strict=True):
        pairs = [(OPERATIONS[n], a) for n, a in zip(row_numbers, row_arguments, strict=True) if n != SKIP]
        without = ("AutoContrast", "Equalize", "Invert")
        texts.append(", ".join(name if name in without else f"{name} {a:.3g}" for name, a in pairs) or "none")
    return texts
