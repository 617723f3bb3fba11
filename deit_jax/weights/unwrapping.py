"""The weights among all that a checkpoint holds: the mapping that has them, and their names without a training script's prefixes.

What is removed or left aside is said in a note. Of several sets of weights the caller takes the one that fits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from deit_jax.weights.errors import WeightsError, listed, shown
from deit_jax.weights.files import Tensors, reason
from deit_jax.weights.layout import Layout

# Where the frameworks keep weights in a checkpoint: facebookresearch/deit, timm and mmengine, pycls.
_RAW = ("model", "state_dict", "model_state")
_AVERAGED = ("model_ema", "state_dict_ema", "ema_state")


class WeightSet(NamedTuple):
    """Weights in one layout."""

    tensors: Tensors
    layout: Layout
    prefix: str  # that their names had in the checkpoint: "model."
    note: str  # what was removed and left aside, for people; "" if nothing


def weight_sets(
    content: Mapping[str, Any], which: str | None, where: str, layouts: Iterable[Layout]
) -> tuple[list[WeightSet], Mapping[str, Any]]:
    """The sets of weights in a checkpoint, which differ in the prefix of their names ("student.", "teacher."), and all its names.

    which: "raw" or "ema" weights, which lie in mappings of their own or under a prefix with the word "ema"; None: raw where there
    are both. A prefix may be of any depth ("model._orig_mod."). There is no set if the layout is unknown.

    Raises WeightsError: the weights that `which` asks for are not there, or an entry of a set is not a tensor.
    """
    entries, key, said = unwrap(content, which, where)
    where += f"[{key!r}]" if key else ""
    layout_of = {prefix: layout for layout in layouts for prefix in layout.prefixes(entries)}
    prefixes = sorted(layout_of)
    averages = [prefix for prefix in prefixes if _is_average(prefix)]
    chosen = prefixes
    if not said:
        raw = [prefix for prefix in prefixes if prefix not in averages]
        chosen = {"ema": averages, "raw": raw, None: raw or averages}[which]
        if prefixes and not chosen:
            raise WeightsError(
                f"{where} does not say that it holds a moving average: load its weights as they are, with which='raw' "
                "(config.model.variables=raw)"
                if which == "ema"
                else f"{where} holds only a moving average, under {listed(averages)}: load it with which='ema' "
                "(config.model.variables=ema)"
            )
    return [_weight_set(entries, prefix, prefixes, layout_of[prefix], where) for prefix in chosen], entries


def _weight_set(entries: Mapping[str, Any], prefix: str, prefixes: list[str], layout: Layout, where: str) -> WeightSet:
    deeper = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
    tensors, aside = {}, []
    for name, value in entries.items():
        if name.startswith(prefix) and not name.startswith(deeper):
            tensors[name.removeprefix(prefix)] = as_numpy(value, f"{where}: {shown(name)}")
        else:
            aside.append(name)
    return WeightSet(tensors, layout, prefix, _note(prefix, aside))


def unwrap(content: Mapping[str, Any], which: str | None, where: str) -> tuple[dict[str, Any], str, bool]:
    """The entries of a checkpoint that are weights by name, the key that they lie under, and whether that says raw or average.

    Mappings under other keys than the known frameworks' ({"net": ..., "epoch": 3}) become names with a prefix. Raises
    WeightsError if there are no such weights.
    """
    if which not in (None, "raw", "ema"):
        raise WeightsError(f"which={which!r} is neither 'raw' nor 'ema'")
    content, key, said = _without_mmengines_swap(content), "", False
    wrappers = [key for key in (*_RAW, *_AVERAGED) if isinstance(content.get(key), Mapping)]
    if wrappers:
        wanted = {"raw": _RAW, "ema": _AVERAGED, None: (*_RAW, *_AVERAGED)}[which]
        chosen = [key for key in wrappers if key in wanted]
        said = which == "ema" and bool(chosen)
        key = (chosen or wrappers)[0]
        # An average may lie beside the raw weights, under a prefix.
        if not chosen and not any(_is_average(str(name)) for name in content[key]):
            raise WeightsError(f"{where} holds no {which} weights, only {listed(wrappers)}")
        content = content[key]
    elif not any(np.ndim(value) for value in content.values() if hasattr(value, "__array__")):
        # Nothing on top is a tensor: look one level down.
        inner = {key: value for key, value in content.items() if isinstance(value, Mapping) and _holds_tensors(value)}
        content = {f"{key}.{name}": value for key, part in inner.items() for name, value in part.items()} or content
    if not content:
        raise WeightsError(f"{where}{f'[{key!r}]' if key else ''} holds no tensors")
    return {str(name): value for name, value in content.items()}, key, said


def _note(prefix: str, aside: list[str]) -> str:
    notes = [f'the prefix "{shown(prefix)}" is removed from the names'] if prefix else []
    if aside:
        notes.append(f"left aside: {listed(aside, 3)}")
    return ", ".join(notes)


def _is_average(name: str) -> bool:
    return re.search(r"(^|[._])ema[._]", name) is not None


def _holds_tensors(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(name, str) and hasattr(value, "__array__") for name, value in content.items())


def _without_mmengines_swap(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """mmengine saves the average as `state_dict` and the raw weights, with a counter, as `ema_state_dict`."""
    raw = content.get("ema_state_dict")
    if not isinstance(raw, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        return content
    return {"state_dict": {k: v for k, v in raw.items() if k != "steps"}, "model_ema": content["state_dict"]}


def as_numpy(value: Any, where: str) -> np.ndarray:
    """A tensor of a checkpoint as a NumPy array. Raises WeightsError, which calls it `where`, if it is not one."""
    try:
        if hasattr(value, "detach"):  # a torch tensor; NumPy does not know its bfloat16
            value = value.detach().cpu()
            value = value.float() if value.is_floating_point() else value
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__array__"):
            raise WeightsError(f"{where} is a {type(value).__name__}, not a tensor")
        return np.asarray(value)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{where} cannot be read as an array ({reason(error)})") from error
