"""A classifier as a `jax.export` program: a file that runs with JAX alone, without this package."""

from __future__ import annotations

import datetime
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
from deit_jax.models.protocol import portable_form
from deit_jax.version import __version__
from deit_jax.weights.files import write_files

FORMAT = 1  # of preprocessing.json; a field more does not count it up
PLATFORMS = ("cpu", "cuda", "tpu")
MODEL_FILE, PREPROCESSING_FILE = "model.jax", "preprocessing.json"
_FILE_SUFFIXES = (".jax", ".json", ".onnx", ".safetensors", ".pth")  # what people type for a file


class PortableError(UserError):
    """A program that cannot be made or written. The message is one line."""


def export_jax(classifier: Classifier, folder: str | Path) -> Path:
    """Write `folder`/model.jax, for `jax.export.deserialize`, and `folder`/preprocessing.json; returns the path of the former.

    The program takes uint8[B, size, size, 3], cropped RGB, B from 0 on, normalises it and returns what `portable_answer` does. It
    holds its weights and runs on CPU, CUDA GPUs and TPUs. Files of these names are replaced, both or neither. Raises
    PortableError for a path that looks like a file's, WeightsError if the disk does not take them.
    """
    refuse_address("folder", folder, PortableError)
    folder = Path(os.path.expanduser(folder))
    if folder.suffix in _FILE_SUFFIXES:
        raise PortableError(
            f"{folder}: layout=jax writes {MODEL_FILE} and {PREPROCESSING_FILE} into a folder: name that"
        )
    # A dimension's variable is at least 1 to jax.export: so written, there may be no images as well.
    (batch,) = jax_export.symbolic_shape("batch_plus_1 - 1")
    images = jax.ShapeDtypeStruct((batch, classifier.crop.size, classifier.crop.size, 3), jnp.uint8)
    program = jax_export.export(jax.jit(portable_answer(classifier)), platforms=PLATFORMS)(images)
    path = folder / MODEL_FILE
    described = json.dumps(preprocessing_of(classifier), indent=2) + "\n"
    try:
        serialized = bytes(program.serialize())
    except ImportError as error:
        raise PortableError(
            "layout=jax needs flatbuffers, by which jax.export writes: pip install flatbuffers"
        ) from error
    write_files({path: serialized, folder / PREPROCESSING_FILE: described.encode()})
    return path


def portable_answer(classifier: Classifier) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """uint8[B, size, size, 3] to {"logits", "probabilities"}, float32[B, K]: the model's own answer, heads fused.

    In the form that every platform has: XLA's own attention and grouped convolution, one block after the other, float32
    throughout, so that another machine than the one it was trained on gives the same answer.
    """
    model, variables = portable_form(classifier.model, dict(classifier.variables))
    outputs = outputs_of(model, classifier.mean, classifier.std)

    def answer(images: jax.Array) -> dict[str, jax.Array]:
        logits = outputs(variables, images).logits
        return {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    return answer


def preprocessing_of(classifier: Classifier) -> dict[str, Any]:
    """In JSON's types: what to do to an image before the program, what its answer means, when and by what it was made."""
    crop = classifier.crop
    return {
        "format": FORMAT,
        "model": classifier.description,
        # JAX reads a program for a limited time after the version that made it (docs/inference.md).
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "jax_version": jax.__version__,
        "deit_jax_version": __version__,
        # A number: pixels of the shorter side, the longer one being truncated. A pair: height and width, whatever the ratio.
        "resize": [crop.size, crop.size] if isinstance(crop, Squash) else int(crop.size / crop.crop_ratio),
        "crop": crop.size,  # the centre
        "interpolation": "bicubic",  # antialiased, as Pillow's is
        "channels": "RGB",
        "dtype": "uint8",
        "mean": list(classifier.mean),  # these two for information: the program normalises
        "std": list(classifier.std),
        "normalised_by_the_program": True,
        "outputs": ["logits", "probabilities"],
        "class_names": [classifier.label(index) for index in range(classifier.model.num_classes)],
    }
