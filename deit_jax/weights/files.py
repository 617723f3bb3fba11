"""Files of named tensors: safetensors, NumPy's .npz, PyTorch's pickles if torch is installed, and the embedded teacher.

Nothing in a file is ever executed: torch reads pickles with weights_only, and object arrays are rejected.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import safe_open

from deit_jax.storage.workdir import Workdir
from deit_jax.weights.errors import WeightsError
from deit_jax.weights.hub_files import WEIGHTS, fetch_weights, is_on_hub
from deit_jax.weights.program_file import is_program

Tensors = dict[str, np.ndarray]

EMBEDDED = "embedded"  # as teacher.weights or model.weights: the package's RegNetY for Fashion-MNIST, the quick start's teacher
_EMBEDDED_FILE = Path(__file__).with_name("fashion_mnist_teacher.safetensors")
WRITTEN = (".safetensors", ".pth", ".pt", ".bin")
_PICKLES = (".pth", ".pt", ".bin", ".pyth", ".ckpt", ".tar")


def read_file(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Returns the content of a weights file: names to arrays, possibly wrapped (see unwrapping.py).

    A folder means the model.safetensors or pytorch_model.bin in it, "embedded" the package's own file, "hf:OWNER/NAME" one
    in a repository of the Hugging Face hub. Raises WeightsError if the file does not exist, is of an unknown kind, damaged or
    unreadable, or holds something other than tensors.
    """
    if not isinstance(path, str | os.PathLike):
        raise WeightsError(
            f"weights come from a path or a mapping of names to arrays, not from a {type(path).__name__}"
        )
    path = local_path(path)
    try:
        if path.is_dir():
            path = _file_in(path)
        if not path.is_file():
            raise WeightsError(f"{path}: there is no such file")
        if path.suffix.lower() not in _READERS:
            kinds = ", ".join(_READERS)
            raise WeightsError(f"{path}: {path.suffix or 'no suffix'} is not a kind of weights file; give {kinds}")
        _check_download(path)
        read, description = _READERS[path.suffix.lower()]
        try:
            content = read(path)
        except WeightsError:  # torch is not installed
            raise
        except Exception as error:  # from safetensors, zip, zlib, pickle or NumPy
            raise WeightsError(f"{path} is not a readable {description} ({reason(error)})") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({reason(error)})") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state dict: save model.state_dict()")
    return content


def local_path(weights: str | os.PathLike[str]) -> Path:
    """Returns the path of a weights file or folder. Raises WeightsError if it cannot be fetched from the hub."""
    if str(weights) == EMBEDDED:
        return embedded_file()
    return fetch_weights(str(weights)) if is_on_hub(str(weights)) else Path(os.path.expanduser(weights))


def read_metadata(path: Path, key: str) -> Any:
    """Returns a value of a .safetensors file's metadata, in which it is JSON; None if there is none."""
    try:
        with safe_open(path, framework="np") as file:
            return json.loads((file.metadata() or {})[key])
    except Exception:  # no such key or file, or a damaged file, which is reported when its tensors are read
        return None


def read_beside(path: Path, name: str) -> Mapping[str, Any]:
    """Returns the JSON object in the file `name` in a folder, or in that of a weights file; {} if there is none."""
    try:
        content = json.loads((path if path.is_dir() else path.parent).joinpath(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, Mapping) else {}


def is_weights(path: Path) -> bool:
    """Whether a path is a weights file, or a folder with one or with its shards, and not the --workdir of a training run."""
    if str(path) == EMBEDDED:
        return True
    if path.is_dir():
        found = any((path / name).is_file() or _index(path, name).is_file() for name in WEIGHTS)
        return found and not Workdir.at(path).checkpoints.exist()
    return path.is_file() or path.suffix.lower() in _READERS


def kind_of(weights: str) -> str:
    """Returns what `weights` specifies: "pretrained", "random", "program", "file" (also "embedded"), "hub", else "workdir"."""
    if is_on_hub(weights):
        return "hub"
    if weights in ("pretrained", "random"):
        return weights
    if is_program(Path(os.path.expanduser(weights))):
        return "program"
    return "file" if is_weights(Path(weights)) else "workdir"


def is_workdir(weights: str) -> bool:
    """Whether `weights` specifies a --workdir, which may not exist."""
    return weights != "" and kind_of(weights) == "workdir"


def _index(folder: Path, name: str) -> Path:
    """Returns the path of the list of a file's shards, as transformers names it."""
    return folder / f"{name}.index.json"


def _file_in(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
        if _index(folder, name).is_file():
            raise WeightsError(f"{folder} holds weights in several shards: save them in one file (max_shard_size)")
    if Workdir.at(folder).checkpoints.exist():
        raise WeightsError(
            f"{folder} is the --workdir of a training run; run.py --mode=export writes its weights as a file"
        )
    raise WeightsError(f"{folder} holds neither {' nor '.join(WEIGHTS)}")


def _check_download(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise WeightsError(f"{path} is empty: download it again")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a git-lfs pointer, not the file itself: run git lfs pull")
    if start.lstrip()[:1] == b"<":
        raise WeightsError(f"{path} is a web page, not a weights file: download it again")


def _read_npz(path: Path) -> Tensors:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_pickle(path: Path) -> Any:
    torch = _import_torch(path)
    # Checkpoints of the reference's main.py also hold the command line as a Namespace, which is only data.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


_PICKLE = "PyTorch file, damaged, or holds code or objects other than tensors, which were not executed"
_READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    ".safetensors": (safetensors.numpy.load_file, "safetensors file, or damaged"),
    ".npz": (_read_npz, ".npz file, damaged, or holds objects"),
    **dict.fromkeys(_PICKLES, (_read_pickle, _PICKLE)),
}


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"{path}: {path.suffix} files need PyTorch (pip install torch); or use .safetensors"
        ) from error
    return torch


def reason(error: BaseException) -> str:
    """Returns type and most informative line of an error, not too long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0] if lines else "")
    return f"{type(error).__name__}: {line[:160]}".rstrip(": ")


# --- the embedded teacher -------------------------------------------------------------------------------------------


@functools.cache
def embedded_card() -> dict[str, Any]:
    """Returns the embedded teacher's card: model, overrides, training data, command, seed, epochs, time, accuracies (%), SHA-256.

    Raises WeightsError if the card cannot be read.
    """
    path = _EMBEDDED_FILE.with_suffix(".json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read ({type(error).__name__}): install deit_jax again") from error


def embedded_file() -> Path:
    """Returns the embedded teacher's file: timm's names, float16, class names. Raises WeightsError if the SHA-256 differs."""
    try:
        digest = hashlib.sha256(_EMBEDDED_FILE.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"{_EMBEDDED_FILE} cannot be read ({error.strerror}): install deit_jax again") from error
    if digest != embedded_card()["sha256"]:
        raise WeightsError(f"{_EMBEDDED_FILE} is damaged (its SHA-256 is {digest[:16]}...): install deit_jax again")
    return _EMBEDDED_FILE


# --- writing --------------------------------------------------------------------------------------------------------


def encode(
    path: Path, tensors: Tensors, *, wrapper: str | None = None, metadata: Mapping[str, str] | None = None
) -> bytes:
    """Returns the content of a .safetensors or (with torch) .pth file, by the suffix of `path`.

    wrapper: key of the tensors in a .pth file. metadata: of a .safetensors file. Raises WeightsError for another suffix, or for
    .pth without torch.
    """
    tensors = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}
    if path.suffix.lower() == ".safetensors":
        return _sorted_metadata(safetensors.numpy.save(tensors, metadata={"format": "pt", **(metadata or {})}))
    if path.suffix.lower() not in WRITTEN:
        raise WeightsError(f"{path}: weights are written as .safetensors or .pth, or into a folder (no suffix)")
    torch = _import_torch(path)
    state = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
    buffer = io.BytesIO()
    torch.save(state if wrapper is None else {wrapper: state}, buffer)
    return buffer.getvalue()


def _sorted_metadata(content: bytes) -> bytes:
    """Returns a .safetensors file with sorted metadata, whose order the library draws at random: equal weights, equal files."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)  # the tensors begin at a multiple of 8 bytes
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + length :]


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Writes temporary files and renames them once all are complete. Raises WeightsError if one cannot be written."""
    temporary = {path: path.with_name(f".{path.name}.unfinished") for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise WeightsError(f"{path} cannot be written: it is a folder")
            temporary[path].write_bytes(content)
        for path in contents:
            os.replace(temporary[path], path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written ({reason(error)})") from error
    finally:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
