"""Files of `jax.export` programs that serve as teachers: model.jax, and preprocessing.json next to it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from deit_jax.models.program import Program, ProgramModel
from deit_jax.storage.files import status
from deit_jax.weights.errors import WeightsError

MODEL_FILE, PREPROCESSING_FILE = "model.jax", "preprocessing.json"
_PLATFORMS = {"gpu": ("cuda", "rocm")}  # as jax.export names them


@dataclasses.dataclass(frozen=True)
class ProgramFile:
    """The content of a program file and its preprocessing.json."""

    model: ProgramModel
    mean: tuple[float, ...]  # of RGB in [0, 1], by which its images are normalised
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None


def is_program(path: Path) -> bool:
    """Returns whether `path` names a program: a file that ends in .jax, or a folder with model.jax. Raises UnreadableError."""
    return path.suffix == ".jax" or status(path / MODEL_FILE) is not None


def read_program(path: str | os.PathLike[str], platform: str) -> ProgramFile:
    """Reads the program in a file, or in a folder as `export_jax` writes it, to run on `platform` ("cpu", "gpu" or "tpu").

    preprocessing.json has at least "mean" and "std", three numbers each; "class_names" is optional and may name only the
    first classes.
    Raises WeightsError, in one line: a file is missing or damaged, or the program does not run on the platform, or does not take
    normalised float32 images for any batch size, or does not return logits.
    """
    path = Path(os.path.expanduser(path))
    path = path / MODEL_FILE if path.is_dir() else path
    content = _read(path)
    try:
        exported = jax_export.deserialize(bytearray(content))
    except ImportError as error:
        raise WeightsError(f"{path}: reading a program needs flatbuffers: pip install flatbuffers") from error
    except Exception as error:  # of any type: flatbuffers does not check
        raise WeightsError(
            f"{path} is damaged, is not a jax.export program, or was made by another version of JAX than this one, "
            f"{jax.__version__}: export it again"
        ) from error
    platforms = _PLATFORMS.get(platform, (platform,))
    if not set(platforms) & set(exported.platforms):
        raise WeightsError(
            f"{path} runs on {', '.join(exported.platforms)}, not on {platforms[0]}: export it with "
            f"jax.export.export(..., platforms=[..., {platforms[0]!r}])"
        )
    if exported.nr_devices != 1:
        raise WeightsError(f"{path} is a program of {exported.nr_devices} devices: export it for one")
    size = _image_size(path, exported)
    classes = _num_classes(path, exported)
    mean, std, names = _preprocessing(path.with_name(PREPROCESSING_FILE), classes)
    digest = hashlib.sha256(content).hexdigest()[:32]
    return ProgramFile(ProgramModel(Program(exported, digest), classes, size), mean, std, names)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror})") from error


def _image_size(path: Path, exported: jax_export.Exported) -> int:
    """Returns the program's image size. Raises WeightsError if it takes anything other than float32[b, S, S, 3]."""
    wanted = "a teacher takes one array of normalised images, float32[b, S, S, 3], for any b"
    avals = exported.in_avals
    if len(avals) != 1 or avals[0].ndim != 4:
        found = ", ".join(f"{aval.dtype}{list(aval.shape)}" for aval in avals) or "nothing"
        raise WeightsError(f"{path} takes {found}; {wanted}")
    [images] = avals
    found = f"{images.dtype}[{', '.join(map(str, images.shape))}]"
    batch, height, width, channels = images.shape
    if images.dtype == jnp.uint8:
        raise WeightsError(
            f"{path} takes {found}, but augmented and mixed images are not whole numbers: export a run's program by "
            f"--mode=export --layout=jax_float; {wanted}"
        )
    if images.dtype != jnp.float32 or channels != 3 or height != width or not isinstance(height, int):
        raise WeightsError(f"{path} takes {found}; {wanted}")
    if isinstance(batch, int):
        raise WeightsError(
            f"{path} takes batches of {batch} images only: export it with a symbolic batch dimension (jax.export.symbolic_shape)"
        )
    return height


def _num_classes(path: Path, exported: jax_export.Exported) -> int:
    [images] = exported.in_avals
    output = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    logits: Any = output.get("logits") if isinstance(output, Mapping) else output
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != images.shape[0] or not isinstance(shape[1], int):
        found = "a " + type(output).__name__ if shape is None else f"{logits.dtype}[{', '.join(map(str, shape))}]"
        raise WeightsError(
            f"{path} returns {found}: a teacher returns logits, float32[b, classes], or a dictionary with them as 'logits'"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise WeightsError(f"{path} returns {logits.dtype}: a teacher returns floating-point logits, not decisions")
    return int(shape[1])


def _preprocessing(path: Path, num_classes: int) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str, ...] | None]:
    """Returns mean, std and class names. Raises WeightsError if they are missing or invalid."""
    try:
        content = json.loads(_read(path))
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: give an object with mean and std")
    if content.get("normalised_by_the_program"):
        raise WeightsError(f"{path}: a teacher's program takes normalised images, this one normalises them itself")
    for name in ("mean", "std"):
        values = content.get(name)
        if not (isinstance(values, list) and len(values) == 3 and all(_is_number(value) for value in values)):
            raise WeightsError(f"{path}: {name}={values!r} must be three numbers, for RGB in [0, 1]")
    mean, std = (tuple(float(value) for value in content[name]) for name in ("mean", "std"))
    if min(std) <= 0:
        raise WeightsError(f"{path}: std={list(std)} must be above 0")
    names = content.get("class_names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise WeightsError(f"{path}: class_names must be a list of names")
    if names is not None and len(names) > num_classes:
        raise WeightsError(f"{path} names {len(names)} classes, the program has {num_classes}")
    return mean, std, None if names is None else tuple(names)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
