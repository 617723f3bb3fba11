"""Finds the weights in a checkpoint, and removes prefixes of training scripts from their names.

A note lists what is removed or ignored. The caller chooses among several sets of weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from deit_jax.weights.errors import WeightsError, listed, shown
from deit_jax.weights.files import Tensors, reason
from deit_jax.weights.layout import Layout

# Keys of the weights in checkpoints of facebookresearch/deit, timm and mmengine, and pycls.
_RAW = ("model", "state_dict", "model_state")
_AVERAGED = ("model_ema", "state_dict_ema", "ema_state")


class WeightSet(NamedTuple):
    """Weights in one layout."""

    tensors: Tensors
    layout: Layout
    prefix: str = ""  # prefix of their names in the checkpoint: "model."
    note: str = ""  # what was removed and ignored, for messages; "" if nothing


def weight_sets(
    content: Mapping[str, Any], which: str | None, where: str, layouts: Iterable[Layout]
) -> tuple[list[WeightSet], Mapping[str, Any]]:
    """Returns the sets of weights in a checkpoint, by prefix ("student.", "teacher."), and all its entries.

    which: "raw" or "ema" weights, which are separate mappings or have a prefix with the word "ema"; None: raw if there are both.
    Prefixes may have any depth ("model._orig_mod."). An unknown layout gives no sets.

    Raises WeightsError if the weights for `which` are missing, or an entry of a set is not a tensor.
    """
    entries, key, is_selected = unwrap(content, which, where)
    where += f"[{key!r}]" if key else ""
    layout_of = {prefix: layout for layout in layouts for prefix in layout.prefixes(entries)}
    prefixes = sorted(layout_of)
    averages = [prefix for prefix in prefixes if _is_average(prefix)]
    chosen = prefixes
    if not is_selected:
        raw = [prefix for prefix in prefixes if prefix not in averages]
        chosen = {"ema": averages, "raw": raw, None: raw or averages}[which]
        if prefixes and not chosen:
            raise WeightsError(
                f"{where} does not say that it holds a moving average: load its weights unchanged, with which='raw' "
                "(config.model.variables=raw; of a teacher config.teacher.variables)"
                if which == "ema"
                else f"{where} holds only a moving average, under {listed(averages)}: load it with which='ema' "
                "(config.model.variables=ema; of a teacher config.teacher.variables)"
            )
    return [_weight_set(entries, prefix, prefixes, layout_of[prefix], where) for prefix in chosen], entries


def _weight_set(entries: Mapping[str, Any], prefix: str, prefixes: list[str], layout: Layout, where: str) -> WeightSet:
    deeper = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
    tensors, ignored = {}, []
    for name, value in entries.items():
        if name.startswith(prefix) and not name.startswith(deeper):
            tensors[name.removeprefix(prefix)] = as_numpy(value, f"{where}: {shown(name)}")
        else:
            ignored.append(name)
    notes = [f'removed the prefix "{shown(prefix)}" from the names'] if prefix else []
    notes += [f"ignored {listed(ignored, 3)}"] if ignored else []
    return WeightSet(tensors, layout, prefix, ", ".join(notes))


def unwrap(content: Mapping[str, Any], which: str | None, where: str) -> tuple[dict[str, Any], str, bool]:
    """Returns the entries of a checkpoint that may be weights, their key, and whether the key already selects the average.

    Mappings under other keys than the known frameworks' ({"net": ..., "epoch": 3}) become names with a prefix. Raises
    WeightsError if there are no such weights.
    """
    if which not in (None, "raw", "ema"):
        raise WeightsError(f"which={which!r} is neither 'raw' nor 'ema'")
    content, key, is_selected = _undo_mmengine_swap(content), "", False
    wrappers = [key for key in (*_RAW, *_AVERAGED) if isinstance(content.get(key), Mapping)]
    if wrappers:
        keys = {"raw": _RAW, "ema": _AVERAGED, None: (*_RAW, *_AVERAGED)}[which]
        chosen = [key for key in wrappers if key in keys]
        is_selected = which == "ema" and bool(chosen)
        key = (chosen or wrappers)[0]
        # The mapping of the raw weights may also hold the average, under a prefix.
        if not chosen and not any(_is_average(str(name)) for name in content[key]):
            raise WeightsError(f"{where} holds no {which} weights, only {listed(wrappers)}")
        content = content[key]
    elif not any(np.ndim(value) for value in content.values() if hasattr(value, "__array__")):
        # No tensors at the top level: look one level down.
        inner = {key: value for key, value in content.items() if isinstance(value, Mapping) and _holds_tensors(value)}
        content = {f"{key}.{name}": value for key, part in inner.items() for name, value in part.items()} or content
    if not content:
        raise WeightsError(f"{where}{f'[{key!r}]' if key else ''} holds no tensors")
    return {str(name): value for name, value in content.items()}, key, is_selected


def _is_average(name: str) -> bool:
    return re.search(r"(^|[._])ema[._]", name) is not None


def _holds_tensors(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(name, str) and hasattr(value, "__array__") for name, value in content.items())


def _undo_mmengine_swap(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Handles mmengine, which saves the average as `state_dict` and the raw weights, with a counter, as `ema_state_dict`."""
    raw = content.get("ema_state_dict")
    if not isinstance(raw, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        return content
    return {"state_dict": {k: v for k, v in raw.items() if k != "steps"}, "model_ema": content["state_dict"]}


def as_numpy(value: Any, where: str) -> np.ndarray:
    """Converts a checkpoint's tensor to a NumPy array. Raises WeightsError, which calls it `where`, if it is not a tensor."""
    try:
        if hasattr(value, "detach"):  # a torch tensor; NumPy does not support its bfloat16
            value = value.detach().cpu()
            value = value.float() if value.is_floating_point() else value
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__array__"):
            raise WeightsError(f"{where} is a {type(value).__name__}, not a tensor")
        return np.asarray(value)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{where} cannot be read as an array ({reason(error)})") from error
