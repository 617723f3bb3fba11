"""Loads a teacher of another framework: from a module of the user, from timm or from transformers."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import keyword
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from deit_jax.config import ConfigError
from deit_jax.errors import errors_only, first_line, shortened
from deit_jax.plugins import import_named


@dataclasses.dataclass(frozen=True)
class HostCallable:
    """A function from images float32[B, S, S, 3] to logits [B, K], and its own attributes; None: not set."""

    call: Callable[[np.ndarray], Any]
    mean: tuple[float, ...] | None = None  # of RGB in [0, 1]
    std: tuple[float, ...] | None = None
    image_size: int | None = None  # pixels
    class_names: tuple[str, ...] | None = None
    file: str = ""  # of the user's code, for messages
    is_network: bool = False  # a torch.nn.Module of the user, which gets its images as they are


def load_callable(spec: str, where: str) -> HostCallable:
    """Loads the callable that `spec` names. Raises ConfigError, in one line that starts with `where`, if that fails."""
    kind, colon, name = spec.partition(":")
    if not colon or not kind or not name:
        raise ConfigError(f"{where}: give my_module:function, timm:NAME or hf:NAME")
    if kind in ("timm", "hf"):
        return (_from_timm if kind == "timm" else _from_transformers)(name, where)
    return _from_module(kind, name, where)


def _from_module(module_name: str, name: str, where: str) -> HostCallable:
    """Loads a callable or a torch.nn.Module of the user by its module and its name in it."""
    for dotted, what in ((module_name, "module"), (name, "function")):
        if not all(part.isidentifier() and not keyword.iskeyword(part) for part in dotted.split(".")):
            raise ConfigError(
                f"{where}: {dotted!r} is not the name of a {what}: give my_module:function, timm:NAME or hf:NAME"
            )
    if module_name.endswith(".py"):
        raise ConfigError(f"{where} names a file: give the module, {module_name.removesuffix('.py')}:{name}")
    module = import_named(module_name, where)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, [each for each in dir(found) if each[0] != "_"], n=1)
            nearest = f"; the nearest is {near[0]!r}" if near else ""
            raise ConfigError(f"{where}: {module_name} has no {name!r}{nearest}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{where} is a {type(found).__name__}, not a function: give one from images to logits")
    torch = sys.modules.get("torch")
    is_network = torch is not None and isinstance(found, torch.nn.Module)
    names = getattr(found, "class_names", None)
    return HostCallable(
        _call_network(found) if is_network else found,
        _three_numbers(getattr(found, "mean", None), "mean", where),
        _three_numbers(getattr(found, "std", None), "std", where),
        _size(getattr(found, "image_size", None), where),
        None if names is None else tuple(str(each) for each in names),
        getattr(module, "__file__", None) or "",
        is_network,
    )


def _three_numbers(value: Any, name: str, where: str) -> tuple[float, ...] | None:
    """Returns a mean or std of RGB in [0, 1]. Raises ConfigError, in one line, for anything else."""
    if value is None:
        return None
    numbers = as_array(value)
    if (
        numbers is not None
        and numbers.shape == (3,)
        and ((numbers >= 0) & (numbers <= 1)).all()
        and (name == "mean" or numbers.all())
    ):
        return tuple(float(number) for number in numbers)
    raise ConfigError(
        f"{where}: its {name} is {shortened(repr(value))}: give three numbers, of RGB in [0, 1], e.g. (0.5, 0.5, 0.5)"
    )


def _size(value: Any, where: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ConfigError(f"{where}: its image_size is {shortened(repr(value))}: give one whole number, in pixels")
    return int(value)


def _call_network(network: Any) -> Callable[[np.ndarray], Any]:
    """Returns a torch.nn.Module as a function of images [B, S, S, 3]: evaluation mode, float32, on a GPU if PyTorch has one."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.eval().float().to(device)

    def call(images: np.ndarray) -> Any:
        with torch.no_grad():
            answer = network(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device))
        return getattr(answer, "logits", answer)  # transformers returns both

    return call


def _from_timm(name: str, where: str) -> HostCallable:
    timm, timm_data = _imported("timm", where), _imported("timm.data", where)
    with _loading(where), errors_only("huggingface_hub", "timm"):
        folder = Path(name).expanduser()
        network = timm.create_model(f"local-dir:{folder}" if folder.is_dir() else name, pretrained=True)
        data = timm_data.resolve_model_data_config(network)
    if not network.num_classes:
        raise ConfigError(f"{where} has no classifier: take a model that was trained to name classes")
    _, height, width = data["input_size"]
    names = network.pretrained_cfg.get("label_names")
    return _described(network, data["mean"], data["std"], height, width, names, where)


def _from_transformers(name: str, where: str) -> HostCallable:
    transformers = _imported("transformers", where)
    _imported("torch", where)
    with _loading(where), errors_only("huggingface_hub", "transformers"):
        if (folder := Path(name).expanduser()).is_dir():
            name = str(folder)
        automatic = transformers.AutoModelForImageClassification
        network, info = automatic.from_pretrained(name, output_loading_info=True)
        # The file itself: what it becomes in transformers depends on whether torchvision is installed.
        data, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ConfigError(
            f"{where} has no weights for {missing}, which would be random: take a model that was trained to name classes"
        )
    size = (
        (data.get("do_center_crop") and data.get("crop_size"))
        or data.get("size")
        or getattr(network.config, "image_size", None)
    )
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or (size.get("height"), size.get("width"))
    height, width = size if isinstance(size, Sequence) else (size, size)
    labels = [network.config.id2label[number] for number in sorted(network.config.id2label)]
    names = None if labels == [f"LABEL_{number}" for number in range(len(labels))] else labels
    plain = data.get("do_normalize", True) is False  # in [0, 1]
    mean, std = ((0.0,) * 3, (1.0,) * 3) if plain else (data.get("image_mean"), data.get("image_std"))
    return _described(network, mean, std, height, width, names, where)


def _imported(package: str, where: str) -> Any:
    """Imports an optional package."""
    try:
        return importlib.import_module(package)
    except Exception as error:  # also what versions that do not fit each other raise
        raise ConfigError(
            f"{where} needs {package}, which cannot be imported ({first_line(error)}): install this package with its extra "
            f"'teachers', or pip install {package} torch"
        ) from error


@contextlib.contextmanager
def _loading(where: str) -> Iterator[None]:
    """Converts an exception of another library while it fetches or builds a model into a one-line error."""
    try:
        yield
    except Exception as error:  # the library's own, the hub's, the connection's and the disk's
        reason = shortened(" ".join(str(error).split()) or type(error).__name__, 300)
        # Without its cause, whose traceback goes through several libraries and says nothing more.
        raise ConfigError(
            f"{where} cannot be loaded ({reason}): check the name, or give a local folder that holds the model"
        ) from None


def _described(network: Any, mean: Any, std: Any, height: Any, width: Any, names: Any, where: str) -> HostCallable:
    """Returns a network with the values of its own configuration."""
    if height != width:
        raise ConfigError(
            f"{where} takes images of {height} x {width} pixels, and the student's are square: take another model"
        )
    return HostCallable(
        _call_network(network),
        _three_numbers(mean, "mean", where),
        _three_numbers(std, "std", where),
        _size(height, where),
        None if names is None else tuple(names),
    )


def as_array(answer: Any) -> np.ndarray | None:
    """Converts numbers of NumPy, PyTorch, JAX or TensorFlow to NumPy; returns None for anything else."""
    try:
        if hasattr(answer, "detach"):  # PyTorch
            answer = answer.detach().cpu()
            answer = answer.float() if answer.is_floating_point() else answer
        array = np.asarray(answer)
    except Exception:  # nothing that NumPy takes
        return None
    return array if jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool else None
