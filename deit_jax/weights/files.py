"""Files of named tensors: safetensors, NumPy's .npz, and PyTorch's pickles where torch is installed.

Nothing in a file is ever executed: pickles are read by torch with weights_only, object arrays are refused.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from deit_jax.weights.errors import WeightsError, listed

Tensors = dict[str, np.ndarray]

_PICKLES = (".pth", ".pt", ".bin", ".pyth", ".ckpt", ".tar")
_WEIGHTS_IN_A_FOLDER = ("model.safetensors", "pytorch_model.bin")  # as transformers and timm name them


def read_file(path: str | Path) -> Mapping[str, Any]:
    """The content of a weights file: names to arrays, perhaps wrapped (see `unwrap`).

    A folder stands for the model.safetensors or pytorch_model.bin in it. Raises WeightsError: there is no such file, it is of no
    known kind, damaged, or holds something other than tensors.
    """
    path = Path(path)
    if path.is_dir():
        path = _file_in(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file")
    readers: dict[str, Callable[[Path], Mapping[str, Any]]] = {".safetensors": _read_safetensors, ".npz": _read_npz}
    readers |= dict.fromkeys(_PICKLES, _read_pickle)
    if path.suffix not in readers:
        raise WeightsError(
            f"{path}: {path.suffix or 'no suffix'} is no kind of weights file; give {', '.join(readers)}"
        )
    _refuse_what_a_failed_download_leaves(path)
    return readers[path.suffix](path)


def _file_in(folder: Path) -> Path:
    for name in _WEIGHTS_IN_A_FOLDER:
        if (folder / name).is_file():
            return folder / name
    if (folder / "checkpoints").is_dir():
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
    except Exception as error:  # the library's own error, and KeyError for a type that NumPy has not
        raise WeightsError(f"{path} is no readable safetensors file, or damaged ({_reason(error)})") from error


def _read_npz(path: Path) -> Tensors:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError, AttributeError) as error:
        raise WeightsError(f"{path} is no readable .npz file, damaged, or holds objects ({_reason(error)})") from error


def _read_pickle(path: Path) -> Mapping[str, Any]:
    torch = _import_torch(path)
    try:
        # The checkpoints of the reference's main.py hold their command line beside the weights; a Namespace is only data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, RuntimeError, EOFError: whatever the damage leads to
        raise WeightsError(
            f"{path} is no readable PyTorch file, damaged, or holds code, which was not executed ({_reason(error)})"
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state dict: save model.state_dict()")
    return content


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"{path}: {path.suffix} files need PyTorch (pip install torch), or use .safetensors"
        ) from error
    return torch


def _reason(error: BaseException) -> str:
    """The first line of an error that says something, not too long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0] if lines else "")
    return f"{type(error).__name__}: {telling[:160]}".rstrip(": ")


# --- wrappers -------------------------------------------------------------------------------------------------------------------

# Where the frameworks keep weights in a checkpoint: facebookresearch/deit, timm and mmengine, pycls.
_RAW = ("model", "state_dict", "model_state")
_AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "ema_state")
_WRAPPED_NAMES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


def unwrap(content: Mapping[str, Any], which: str | None, where: str) -> Tensors:
    """The tensors of a checkpoint as NumPy arrays, without the wrappers of training scripts.

    which: "raw" or "ema" weights; None: raw where there are both. Raises WeightsError if they are not there, or if an entry is no
    array.
    """
    if which not in (None, "raw", "ema"):
        raise WeightsError(f"which={which!r} is neither 'raw' nor 'ema'")
    wrappers = [key for key in (*_RAW, *_AVERAGED) if isinstance(content.get(key), Mapping)]
    if wrappers:
        wanted = {"raw": _RAW, "ema": _AVERAGED, None: (*_RAW, *_AVERAGED)}[which]
        chosen = [key for key in wrappers if key in wanted]
        if not chosen:
            raise WeightsError(f"{where} holds no {which} weights, only {listed(wrappers)}")
        content, where = content[chosen[0]], f"{where}[{chosen[0]!r}]"
    elif which == "ema":
        raise WeightsError(f"{where} does not say that it holds a moving average: ask for its weights as they are")
    tensors = {_bare(str(name)): _as_numpy(value, f"{where}: {name}") for name, value in content.items()}
    if not tensors:
        raise WeightsError(f"{where} holds no tensors")
    return tensors


def _bare(name: str) -> str:
    for prefix in _WRAPPED_NAMES:
        name = name.removeprefix(prefix)
    return name


def _as_numpy(value: Any, where: str) -> np.ndarray:
    if hasattr(value, "detach"):  # a torch tensor; NumPy does not know its bfloat16
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__array__"):
        raise WeightsError(f"{where} is a {type(value).__name__}, not a tensor")
    return np.asarray(value)


# --- writing --------------------------------------------------------------------------------------------------------------------


def write_file(path: Path, tensors: Tensors, *, wrapper: str | None = None) -> None:
    """Write .safetensors, or with torch .pth (under the key `wrapper` if given), in one piece or not at all.

    Raises WeightsError: another suffix, no torch for .pth, or a disk that takes no file.
    """
    tensors = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            safetensors.numpy.save_file(tensors, unfinished, metadata={"format": "pt"})
        elif path.suffix in (".pth", ".pt", ".bin"):
            torch = _import_torch(path)
            state = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
            torch.save(state if wrapper is None else {wrapper: state}, unfinished)
        else:
            raise WeightsError(f"{path}: weights are written as .safetensors or .pth, or into a folder (no suffix)")
        os.replace(unfinished, path)
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        raise WeightsError(f"{path} cannot be written ({_reason(error)})") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
