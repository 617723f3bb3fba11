"""Files of named tensors: safetensors, NumPy's .npz, and PyTorch's pickles where torch is installed.

Nothing in a file is ever executed: pickles are read by torch with weights_only, object arrays are refused.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from deit_jax.storage.workdir import Workdir
from deit_jax.weights.embedded import EMBEDDED, embedded_file
from deit_jax.weights.errors import WeightsError

Tensors = dict[str, np.ndarray]

WRITTEN = (".safetensors", ".pth", ".pt", ".bin")
_PICKLES = (".pth", ".pt", ".bin", ".pyth", ".ckpt", ".tar")
_WEIGHTS_IN_A_FOLDER = ("model.safetensors", "pytorch_model.bin")  # as transformers and timm name them


def read_file(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The content of a weights file: names to arrays, perhaps wrapped (see unwrapping.py).

    A folder stands for the model.safetensors or pytorch_model.bin in it, "embedded" for the package's own file. Raises
    WeightsError: there is no such file, it is of no known kind, damaged, unreadable, or holds something other than tensors.
    """
    if not isinstance(path, str | os.PathLike):
        raise WeightsError(
            f"weights come from a path or a mapping of names to arrays, not from a {type(path).__name__}"
        )
    path = embedded_file() if str(path) == EMBEDDED else Path(os.path.expanduser(path))
    try:
        if path.is_dir():
            path = _file_in(path)
        if not path.is_file():
            raise WeightsError(f"{path}: there is no such file")
        if path.suffix.lower() not in _READERS:
            kinds = ", ".join(_READERS)
            raise WeightsError(f"{path}: {path.suffix or 'no suffix'} is not a kind of weights file; give {kinds}")
        _refuse_what_a_failed_download_leaves(path)
        return _READERS[path.suffix.lower()](path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({reason(error)})") from error


def is_weights(path: Path) -> bool:
    """Whether a file, or a folder with one, of another framework is meant, and not the --workdir of a training run."""
    if str(path) == EMBEDDED:
        return True
    if path.is_dir():
        return not Workdir.at(path).checkpoints.exist() and any(
            (path / name).is_file() for name in _WEIGHTS_IN_A_FOLDER
        )
    return path.is_file() or path.suffix.lower() in _READERS


def kind_of(weights: str) -> str:
    """What a user names by `weights`: "pretrained" or "random", a "file" ("embedded" is one), else the "workdir" of a run."""
    if weights in ("pretrained", "random"):
        return weights
    return "file" if is_weights(Path(weights)) else "workdir"


def is_workdir(weights: str) -> bool:
    """Whether a configuration's weights are those of a --workdir, which may be missing."""
    return weights != "" and kind_of(weights) == "workdir"


def _file_in(folder: Path) -> Path:
    for name in _WEIGHTS_IN_A_FOLDER:
        if (folder / name).is_file():
            return folder / name
        if (folder / f"{name}.index.json").is_file():
            raise WeightsError(f"{folder} holds weights in several shards: save them in one file (max_shard_size)")
    if Workdir.at(folder).checkpoints.exist():
        raise WeightsError(
            f"{folder} is the --workdir of a training run; run.py --mode=export writes its weights as a file"
        )
    raise WeightsError(f"{folder} holds neither {' nor '.join(_WEIGHTS_IN_A_FOLDER)}")


def _refuse_what_a_failed_download_leaves(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise WeightsError(f"{path} is empty: download it again")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a git-lfs pointer, not the file it stands for: run git lfs pull")
    if start.lstrip()[:1] == b"<":
        raise WeightsError(f"{path} is a web page, not a weights file: download it again")


def _read_safetensors(path: Path) -> Tensors:
    try:
        return safetensors.numpy.load_file(path)
    except Exception as error:  # the library's own error, and KeyError for a type that NumPy does not have
        raise WeightsError(f"{path} is not a readable safetensors file, or damaged ({reason(error)})") from error


def _read_npz(path: Path) -> Tensors:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zip, zlib, pickle and NumPy have many: whatever the damage leads to
        raise WeightsError(
            f"{path} is not a readable .npz file, damaged, or holds objects ({reason(error)})"
        ) from error


def _read_pickle(path: Path) -> Mapping[str, Any]:
    torch = _import_torch(path)
    try:
        # The checkpoints of the reference's main.py hold their command line beside the weights; a Namespace is only data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, RuntimeError, EOFError: whatever the damage leads to
        raise WeightsError(
            f"{path} is not a readable PyTorch file, damaged, or holds code or objects other than tensors, which were not "
            f"executed ({reason(error)})"
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state dict: save model.state_dict()")
    return content


_READERS: dict[str, Callable[[Path], Mapping[str, Any]]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    **dict.fromkeys(_PICKLES, _read_pickle),
}


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"{path}: {path.suffix} files need PyTorch (pip install torch), or use .safetensors"
        ) from error
    return torch


def reason(error: BaseException) -> str:
    """The first line of an error that says something, not too long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0] if lines else "")
    return f"{type(error).__name__}: {telling[:160]}".rstrip(": ")


# --- writing --------------------------------------------------------------------------------------------------------


def encode(
    path: Path, tensors: Tensors, *, wrapper: str | None = None, metadata: Mapping[str, str] | None = None
) -> bytes:
    """The content of a .safetensors, or with torch a .pth file (under the key `wrapper` if given), by the suffix of `path`.

    metadata: further texts that a .safetensors file keeps.

    Raises WeightsError: another suffix, or no torch for .pth.
    """
    tensors = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}
    if path.suffix.lower() == ".safetensors":
        return safetensors.numpy.save(tensors, metadata={"format": "pt", **(metadata or {})})
    if path.suffix.lower() not in WRITTEN:
        raise WeightsError(f"{path}: weights are written as .safetensors or .pth, or into a folder (no suffix)")
    torch = _import_torch(path)
    state = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
    buffer = io.BytesIO()
    torch.save(state if wrapper is None else {wrapper: state}, buffer)
    return buffer.getvalue()


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write all files, none before all lie complete beside their places. Raises WeightsError if one cannot be written."""
    unfinished = {path: path.with_name(f".{path.name}.unfinished") for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise WeightsError(f"{path} cannot be written: it is a folder")
            unfinished[path].write_bytes(content)
        for path in contents:
            os.replace(unfinished[path], path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written ({reason(error)})") from error
    finally:
        for path in unfinished.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
