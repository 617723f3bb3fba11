"""Exports a classifier as an ONNX file, with jax2onnx."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from PIL import Image

from deit_jax.errors import errors_only, first_line, refuse_address
from deit_jax.inference.classifier import Classifier
from deit_jax.inference.portable import PortableError, portable_function, preprocessing_of
from deit_jax.weights.files import write_files

_LARGEST = 2**31  # bytes, the limit of a protocol buffer
_TOLERANCE = 1e-3  # difference of logits, relative to the largest or 1; float32 networks differ by about 1e-6 to 1e-5
PREPROCESSING_KEY = "preprocessing"  # a key of the file's metadata
OPSETS = (18, 23)  # the lowest that jax2onnx writes correctly for these networks, and the highest tested
DEFAULT_OPSET = OPSETS[0]  # all opsets give the same results; the lowest is supported by the oldest runtimes


def export_onnx(classifier: Classifier, path: str | Path, *, opset: int = DEFAULT_OPSET) -> Path:
    """Writes one .onnx file with weights and preprocessing; returns its path. Needs jax2onnx (docs/inference.md).

    Input `images`: uint8[B, size, size, 3], cropped RGB, B >= 0; outputs `logits` and `probabilities`, float32[B, K], as in
    `portable_function`. The metadata entry "preprocessing" is the JSON of `preprocessing_of`. Replaces an existing file. opset:
    version of ONNX's operators, 18 to 23. Raises PortableError if jax2onnx is missing, the path has another suffix, the opset is
    not supported, or the model is too large; WeightsError if the file cannot be written.
    """
    lowest, highest = OPSETS
    if not lowest <= opset <= highest:
        raise PortableError(f"opset={opset}: give {lowest} (which the oldest runtimes read) to {highest}")
    refuse_address("path", path, PortableError)
    path = Path(os.path.expanduser(path))
    if path.suffix.lower() != ".onnx":
        raise PortableError(f"{path}: layout=onnx writes one file, whose name ends in .onnx")
    try:
        # It imports plugins for many libraries, and logs a traceback for each that is not installed.
        with _restored(jnp), errors_only("jax2onnx"):
            import jax2onnx
        import onnx
    except ImportError as error:
        raise PortableError(
            "layout=onnx needs jax2onnx: pip install onnx onnx-ir onnxruntime, then pip install --no-deps jax2onnx"
        ) from error
    function, size = portable_function(classifier), classifier.crop.size

    def outputs(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        by_name = function(images)
        return by_name["logits"], by_name["probabilities"]

    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    # onnx_ir warns about shapes without a type.
    with _restored(jnp), errors_only("jax2onnx", "onnx_ir"):
        names = {"input_names": ["images"], "output_names": ["logits", "probabilities"]}
        model: Any = jax2onnx.to_onnx(outputs, [images], model_name="deit_jax", opset=opset, **names)
    _replace_einsums(model)
    # jax2onnx writes the IR version of its newest opset, so that older runtimes reject files that they could run.
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    # Shapes of intermediate values: not needed, and onnxruntime warns about some that are wrong.
    del model.graph.value_info[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = PREPROCESSING_KEY, json.dumps(preprocessing_of(classifier))
    if model.ByteSize() >= _LARGEST:
        raise PortableError(f"{path}: the model is larger than the 2 GiB of an ONNX file")
    write_files({path: model.SerializeToString()})
    return path


def _replace_einsums(model: Any) -> None:
    """Replaces the Einsum nodes of an ONNX model, which are matrix products, by Transpose, if needed, and MatMul.

    onnxruntime divides by zero in an Einsum of no rows, which kills the process (microsoft/onnxruntime#23379).
    """
    import onnx

    nodes = []
    for node in model.graph.node:
        if node.op_type != "Einsum":
            nodes.append(node)
            continue
        (equation,) = (attribute.s.decode() for attribute in node.attribute if attribute.name == "equation")
        for number, order in enumerate(_matmul_permutations(equation)):
            if order != sorted(order):
                transposed = f"{node.output[0]}_operand_{number}"
                nodes.append(onnx.helper.make_node("Transpose", [node.input[number]], [transposed], perm=order))
                node.input[number] = transposed
        nodes.append(onnx.helper.make_node("MatMul", node.input, node.output, name=node.name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _matmul_permutations(equation: str) -> list[list[int]]:
    """Returns both operands' axis permutations for which MatMul equals the Einsum. Raises PortableError if there are none."""
    match = re.fullmatch(r"(\w+),(\w+)->(\w+)", equation.replace(" ", ""))
    left, right, result = match.groups() if match else ("", "", "")
    batch = [axis for axis in result if axis in left and axis in right]
    rows, columns = ([axis for axis in result if axis in one and axis not in batch] for one in (left, right))
    inner = [axis for axis in left if axis in right and axis not in result]
    lengths = (len(rows), len(columns), len(inner))
    if lengths != (1, 1, 1) or [*batch, *rows, *columns] != list(result):
        raise PortableError(
            f"jax2onnx wrote an Einsum ({equation}) that is not a matrix product: try another version of jax2onnx"
        )
    return [
        [left.index(axis) for axis in [*batch, *rows, *inner]],
        [right.index(axis) for axis in [*batch, *inner, *columns]],
    ]


@contextlib.contextmanager
def _restored(module: ModuleType) -> Iterator[None]:
    """Restores a module: jax2onnx 0.17.1 leaves its own jax.numpy.cumsum, which accepts fewer arguments."""
    before = dict(vars(module))
    try:
        yield
    finally:
        vars(module).update(before)


def check_onnx(path: str | Path, classifier: Classifier) -> float:
    """Runs the file in onnxruntime on CPU with 3, 1 and 0 images; returns the largest difference of its logits from JAX's.

    The images are fixed, blurred noise. The difference is relative to the largest logit or 1, whichever is larger. Raises
    PortableError if it exceeds 1e-3 or onnxruntime cannot run the file, ImportError without onnxruntime.
    """
    import onnxruntime

    size = classifier.crop.size
    coarse = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in coarse]
    )
    ours = np.asarray(jax.jit(portable_function(classifier))(images)["logits"])
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        theirs = [session.run(["logits"], {"images": images[:count]})[0] for count in (3, 1, 0)]
    except Exception as error:  # onnxruntime does not export its exceptions
        raise PortableError(
            f"{path}: onnxruntime {onnxruntime.__version__} cannot run it ({first_line(error)[:200]}): do not use it; try "
            "another --opset, or another version of onnxruntime"
        ) from error
    difference = max(float(np.abs(logits - ours[: len(logits)]).max(initial=0)) for logits in theirs)
    difference /= max(1.0, float(np.abs(ours).max()))
    if not difference <= _TOLERANCE:
        raise PortableError(
            f"{path}: in onnxruntime its logits differ from the model's by {difference:.2g}: do not use it; try other "
            "versions of jax2onnx and onnxruntime"
        )
    return difference
