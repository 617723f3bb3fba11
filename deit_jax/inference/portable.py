"""Exports a classifier as a `jax.export` program, a file that runs with JAX, without this package."""

from __future__ import annotations

import datetime
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from deit_jax.data.decoding import Squash
from deit_jax.errors import UserError, refuse_address
from deit_jax.evaluation.heads import outputs_of
from deit_jax.inference.classifier import Classifier
from deit_jax.models.protocol import classify, portable_form
from deit_jax.version import __version__
from deit_jax.weights.files import write_files
from deit_jax.weights.program_file import MODEL_FILE, PREPROCESSING_FILE

FORMAT = 1  # version of preprocessing.json; additional fields do not increase it
PLATFORMS = ("cpu", "cuda", "tpu")
_FILE_SUFFIXES = (".jax", ".json", ".onnx", ".safetensors", ".pth")  # indicate a file rather than a folder


class PortableError(UserError):
    """A program cannot be created or written. The message is one line."""


def export_jax(classifier: Classifier, folder: str | Path, *, normalised: bool = False) -> Path:
    """Writes `folder`/model.jax, for `jax.export.deserialize`, and `folder`/preprocessing.json; returns the path of the former.

    The program is `portable_function` for any B >= 0, with its weights, for CPU, CUDA GPUs and TPUs. Replaces existing files,
    both or neither. Raises PortableError for a path that looks like a file, WeightsError if the files cannot be written.

    normalised: the program takes normalised float32 images, as config.teacher.weights requires of a program.
    """
    refuse_address("folder", folder, PortableError)
    folder = Path(os.path.expanduser(folder))
    if folder.suffix in _FILE_SUFFIXES:
        raise PortableError(f"{folder}: layout=jax writes {MODEL_FILE} and {PREPROCESSING_FILE}: give a folder")
    # jax.export assumes that a dimension variable is at least 1; this form allows 0 images.
    (batch,) = jax_export.symbolic_shape("batch_plus_1 - 1")
    dtype = jnp.float32 if normalised else jnp.uint8
    images = jax.ShapeDtypeStruct((batch, classifier.crop.size, classifier.crop.size, 3), dtype)
    program = jax_export.export(jax.jit(portable_function(classifier, normalised)), platforms=PLATFORMS)(images)
    path = folder / MODEL_FILE
    preprocessing = json.dumps(preprocessing_of(classifier, normalised), indent=2) + "\n"
    try:
        serialized = bytes(program.serialize())
    except ImportError as error:
        raise PortableError("layout=jax needs flatbuffers, which jax.export uses: pip install flatbuffers") from error
    write_files({path: serialized, folder / PREPROCESSING_FILE: preprocessing.encode()})
    return path


def portable_function(classifier: Classifier, normalised: bool = False) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Returns the function from cropped RGB uint8[B, size, size, 3] to {"logits", "probabilities"}, float32[B, K], heads fused.

    It uses operations of every platform (XLA's attention and grouped convolution, separate blocks), float32 throughout, so that
    the result does not depend on the machine.
    """
    model, variables = portable_form(classifier.model, dict(classifier.variables))
    outputs = outputs_of(model, classifier.mean, classifier.std)
    if normalised:
        outputs = functools.partial(classify, model)

    def function(images: jax.Array) -> dict[str, jax.Array]:
        logits = outputs(variables, images).logits
        return {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    return function


def preprocessing_of(classifier: Classifier, normalised: bool = False) -> dict[str, Any]:
    """Returns, in JSON types, an image's preprocessing, the class names, and the date and versions of the export."""
    crop, names = classifier.crop, classifier.class_names
    if not normalised:  # a teacher's classes are matched by name, so no name is made up for it
        names = tuple(classifier.label(index) for index in range(classifier.model.num_classes))
    return {
        "format": FORMAT,
        "model": classifier.description,
        # JAX supports a program only for a limited time (docs/inference.md).
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "jax_version": jax.__version__,
        "deit_jax_version": __version__,
        # A number: pixels of the shorter side; the longer one is truncated. A pair: height and width.
        "resize": [crop.size, crop.size] if isinstance(crop, Squash) else int(crop.size / crop.crop_ratio),
        "crop": crop.size,  # the centre
        "interpolation": "bicubic",  # antialiased, as Pillow's
        "channels": "RGB",
        "dtype": "float32" if normalised else "uint8",
        "mean": list(classifier.mean),  # see "normalised_by_the_program"
        "std": list(classifier.std),
        "normalised_by_the_program": not normalised,
        "outputs": ["logits", "probabilities"],
        "class_names": None if names is None else list(names),
    }
