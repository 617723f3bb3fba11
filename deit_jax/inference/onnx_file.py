"""A classifier as an ONNX file, by jax2onnx."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from PIL import Image

from deit_jax.inference.classifier import Classifier
from deit_jax.inference.portable import PortableError, portable_answer, preprocessing_of
from deit_jax.weights.files import write_files

_LARGEST = 2**31  # bytes of a protocol buffer
_TOLERANCE = 1e-3  # of logits, relative to the largest or 1; float32 networks differ by some 1e-6 to 1e-5
PREPROCESSING_KEY = "preprocessing"  # of the file's metadata


def export_onnx(classifier: Classifier, path: str | Path) -> Path:
    """Write one .onnx file with weights and preprocessing; returns its path. Needs jax2onnx (docs/inference.md).

    Input `images`: uint8[B, size, size, 3], cropped RGB, any B; outputs `logits` and `probabilities`, float32[B, K], as of
    `portable_answer`. What preprocessing.json says is JSON in the file's metadata, under "preprocessing". A file of this name is
    replaced. Raises PortableError: jax2onnx is missing, the path has another suffix, or the model is too large; WeightsError: the
    disk does not take it.
    """
    path = Path(os.path.expanduser(path))
    if path.suffix.lower() != ".onnx":
        raise PortableError(f"{path}: layout=onnx writes one file, whose name ends in .onnx")
    # It imports a plugin for every library that it knows, and reports each that is not installed with a traceback.
    logging.getLogger("jax2onnx").setLevel(logging.ERROR)
    try:
        with _restored(jnp):
            import jax2onnx
    except ImportError as error:
        raise PortableError(
            "layout=onnx needs jax2onnx: pip install onnx onnx-ir onnxruntime, then pip install --no-deps jax2onnx"
        ) from error
    answer, size = portable_answer(classifier), classifier.crop.size

    def outputs(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        answers = answer(images)
        return answers["logits"], answers["probabilities"]

    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of shapes whose type it does not write down
    with _restored(jnp):
        model: Any = jax2onnx.to_onnx(
            outputs, [images], model_name="deit_jax", input_names=["images"], output_names=["logits", "probabilities"]
        )
    # Shapes of what lies between: not needed, and jax2onnx notes some before it transposes, of which onnxruntime warns.
    del model.graph.value_info[:]
    described = model.metadata_props.add()
    described.key, described.value = PREPROCESSING_KEY, json.dumps(preprocessing_of(classifier))
    if model.ByteSize() >= _LARGEST:
        raise PortableError(f"{path}: the model is larger than the 2 GiB of an ONNX file")
    write_files({path: model.SerializeToString()})
    return path


@contextlib.contextmanager
def _restored(module: ModuleType) -> Iterator[None]:
    """Put back what was replaced in a module: jax2onnx 0.17.1 leaves its own jax.numpy.cumsum, which takes fewer arguments."""
    before = dict(vars(module))
    try:
        yield
    finally:
        vars(module).update(before)


def check_onnx(path: str | Path, classifier: Classifier) -> float:
    """Run the file in onnxruntime, on CPU, on three images and on one; returns the largest difference of its logits from ours.

    The images are noise with blurred shapes, the same every time; the difference is relative to the largest logit, or to 1 if
    that is larger. Raises PortableError if it is above 1e-3, ImportError without onnxruntime.
    """
    import onnxruntime

    size = classifier.crop.size
    coarse = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in coarse]
    )
    ours = np.asarray(jax.jit(portable_answer(classifier))(images)["logits"])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    difference = max(
        float(np.abs(session.run(["logits"], {"images": images[:count]})[0] - ours[:count]).max()) for count in (1, 3)
    ) / max(1.0, float(np.abs(ours).max()))
    if not difference <= _TOLERANCE:
        raise PortableError(
            f"{path}: in onnxruntime its logits differ from the model's by {difference:.2g}: do not use it; try other "
            "versions of jax2onnx and onnxruntime"
        )
    return difference
