"""A classifier as an ONNX file, by jax2onnx."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from deit_jax.inference.classifier import Classifier
from deit_jax.inference.portable import PortableError, portable_answer, preprocessing_of
from deit_jax.weights.files import write_files

_LARGEST = 2**31  # bytes of a protocol buffer
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
    try:
        import jax2onnx
    except ImportError as error:
        raise PortableError(
            "layout=onnx needs jax2onnx: pip install onnx onnx-ir, then pip install --no-deps jax2onnx"
        ) from error
    answer, size = portable_answer(classifier), classifier.crop.size

    def outputs(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        answers = answer(images)
        return answers["logits"], answers["probabilities"]

    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of shapes whose type it does not write down
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
