"""Loads weights of any known layout completely, or raises one error that lists what does not fit."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.errors import refuse_address, require_choice
from deit_jax.models.protocol import family, input_size, num_prefix_tokens, resize_variables
from deit_jax.models.vit_parameters import resize_position_embedding, stacked_for, unstack_blocks
from deit_jax.weights import huggingface, native, timm
from deit_jax.weights.errors import (
    MisfitError,
    TokenMisfitError,
    WeightsError,
    compare,
    heads_to_reset,
    listed,
    problems,
    shown,
    unusable_values,
)
from deit_jax.weights.files import Tensors, read_file
from deit_jax.weights.other_layouts import MMPRETRAIN, PYCLS, TORCHVISION
from deit_jax.weights.relatives import other_size, relative
from deit_jax.weights.unwrapping import WeightSet, weight_sets

LAYOUTS = (timm.LAYOUT, huggingface.LAYOUT, MMPRETRAIN, TORCHVISION, PYCLS, native.LAYOUT)
_LOGGER = logging.getLogger(__name__)
_HEAD_NAMES = ("head.", "head_dist.")
HEADS = ("keep", "reset", "reset_if_needed")
DISTILLATION_TOKEN = ("keep", "adapt")
WHICH = ("raw", "ema")


Source = str | Path | Mapping[str, Any]


class Fitted(NamedTuple):
    """Variables of a model, and how they differ from the loaded weights."""

    variables: dict[str, Any]  # as from `load_weights`
    renewed: tuple[str, ...]  # reinitialised heads: "head", "head_dist"
    resized: str  # the position embedding: "14x14 to 24x24"; "" if it fitted
    note: str = ""  # prefix removed from the names, and ignored tensors; "" if none


def load_weights(
    source: str | Path | Mapping[str, Any],
    model: nn.Module,
    *,
    heads: str = "keep",
    distillation_token: str = "keep",
    which: str | None = None,
    seed: int = 0,
    report: Callable[[str], None] = _LOGGER.info,
) -> dict[str, Any]:
    """Loads the variables of `model` from weights of another framework.

    The layout is detected: facebookresearch/deit and timm; Hugging Face transformers (ViT and DeiT-with-teacher, names of
    versions 4 and 5); mmpretrain; RegNetY of timm, torchvision and pycls. Position embeddings of another image size are resized
    as in the reference: bicubic (PyTorch's, a = -0.75), class and distillation tokens unchanged. Values become float32.

    Args:
      source: a .safetensors, .npz or (with torch) .pth file, a folder with a model.safetensors, or a mapping of names to arrays.
        Checkpoints of training scripts are unwrapped: `model`, `state_dict`, `model_state`, `model_ema` and similar keys, and
        names with the prefix `module.`, `model.`, `net._orig_mod.` or any other. Among several sets of weights under different
        prefixes, the one that fits is used.
      model: from `create_model`; its fields determine the expected shapes.
      heads: "keep": use the classifiers of the file; another number of classes is an error. "reset": reinitialise them.
        "reset_if_needed": reinitialise those of other shapes, as the reference does in fine-tuning.
      distillation_token: "keep": plain weights do not fit a distilled model, or vice versa. "adapt": initialise a distilled model
        from plain weights by copying token, position and head of the class token, so that both heads give the same output before
        training; drop the distillation token of distilled weights for a plain model.
      which: "raw" or "ema" if a checkpoint holds both; None: raw.
      seed: for reinitialised heads.
      report: called with one line on the removed prefix and ignored tensors, if there are any.

    Returns:
      {"params": ...} and for a RegNet "batch_stats", jax arrays, as from `model.init`.

    Raises:
      WeightsError: the source is unreadable, in an unknown layout, or holds NaN, infinite values or negative variances; several
        sets of weights fit; or `heads`, `distillation_token` or `which` is invalid.
      MisfitError: names are missing, unexpected or of another shape; its attributes list them all. Nothing is loaded in part.
    """
    fitted = fit_weights(source, model, heads=heads, distillation_token=distillation_token, which=which, seed=seed)
    if fitted.note:
        report(f"{_title(source)}: {fitted.note}")
    return fitted.variables


def _title(source: Source) -> str:
    return "the mapping" if isinstance(source, Mapping) else str(source)


def fit_weights(
    source: Source,
    model: nn.Module,
    *,
    heads: str = "keep",
    distillation_token: str = "keep",
    which: str | None = None,
    seed: int = 0,
) -> Fitted:
    """`load_weights`, which also returns what it changed."""
    if isinstance(model, str):
        raise WeightsError(f"model={model!r} is a name: give deit_jax.create_model({model!r})")
    check_choices(heads, distillation_token)
    if isinstance(source, str):
        refuse_address("source", source, WeightsError)
    if which is not None:
        require_choice("which", which, WHICH, WeightsError)
    where = _title(source)
    fits, misfits = [], []
    sets, entries = _read(source, which, where)
    for weights in sets:
        name = f"{where} ({shown(weights.prefix)}*)" if weights.prefix else where
        try:
            fits.append((weights, _fit(weights, model, name, heads, distillation_token, seed)))
        except WeightsError as error:
            misfits.append(error)
    if not fits:
        raise _misfit(sets, entries, misfits, where)
    if len(fits) > 1:
        prefixes = _prefixes(it for it, _ in fits)
        raise WeightsError(f"{where} holds several sets of weights that fit: {prefixes}; save only one of them")
    [(weights, fitted)] = fits
    _check_values(weights, model, fitted.renewed, where)
    note = weights.note
    if len(sets) > 1:
        note += f"; only this one of several sets ({_prefixes(sets, '; ')}) fits"
    return fitted._replace(note=note)


def _read(source: Source, which: str | None, where: str) -> tuple[list[WeightSet], Mapping[str, Any]]:
    """Returns the sets of weights in a file or mapping, at least one, and all its entries."""
    content = source if isinstance(source, Mapping) else read_file(source)
    sets, entries = weight_sets(content, which, where, LAYOUTS)
    if sets:
        return sets, entries
    if (description := relative(entries)) is not None:
        raise WeightsError(f"{where} holds {description}")
    titles = ", ".join(layout.title for layout in LAYOUTS)
    raise WeightsError(f"{where} is in no known layout ({titles}); its names are {listed(entries)}")


def _prefixes(sets: Iterable[WeightSet], separator: str = ", ") -> str:
    return separator.join(f"{shown(it.prefix)}*" if it.prefix else "names without a prefix" for it in sets)


def _misfit(sets: list[WeightSet], entries: Mapping[str, Any], misfits: list[WeightsError], where: str) -> WeightsError:
    """Returns the error if no set fits."""
    first = misfits[0]
    # Without entries outside the sets: a teacher, or the network of a perceptual loss.
    roots = {it.prefix.split(".")[0] for it in sets}
    own = {name: entry for name, entry in entries.items() if "" in roots or name.split(".")[0] in roots}
    if (description := relative(own)) is not None:
        message = f"{where} holds {description}"
    elif len(sets) > 1:
        message = f"{where} holds several sets of weights, {_prefixes(sets)}, and none fits; the first: {first}"
    else:
        return first
    if isinstance(first, MisfitError):
        return MisfitError(message, first.missing, first.unexpected, first.misshapen)
    return WeightsError(message)


def fit_variables(variables: Mapping[str, Any], model: nn.Module, where: str, *, heads: str, seed: int) -> Fitted:
    """Fits variables of a model of this package to `model`, which may have other classes or another image size.

    variables: {"params", "batch_stats"}. where: the source, for messages. heads, seed: as in `load_weights`. Raises MisfitError
    for another model; TokenMisfitError if only one of the two is distilled.
    """
    ours = {"params": variables["params"], "batch_stats": variables.get("batch_stats") or {}}
    if not family(model):
        resized = resize_variables(model, ours)
        fitted = _fit_own(WeightSet(native.from_variables(resized), native.LAYOUT), model, where, heads, seed)
        changed = jax.tree.map(jnp.shape, resized) != jax.tree.map(jnp.shape, ours)
        return fitted._replace(resized="another image size" if changed else "")
    layout = dataclasses.replace(timm.LAYOUT, title="names as in timm")
    weights = WeightSet(timm.from_variables(ours | {"params": unstack_blocks(ours["params"])}), layout)
    fitted = _fit(weights, model, where, heads, "keep", seed)
    _check_values(weights, model, fitted.renewed, where)
    return fitted


def count_classes(source: str | Path, which: str | None = None, model: nn.Module | None = None) -> int:
    """Returns the number of classes of the first head in a weights file.

    model: with any number of classes; required for a model without `family`. Raises WeightsError if the file cannot be read or
    has no head.
    """
    counts: dict[str, int] = {}
    for weights in _read(source, which, str(source))[0]:
        if model is not None and not family(model):
            count = native.count_classes(weights.tensors, model)
        else:
            tensors, _ = weights.layout.to_timm(weights.tensors)
            count = next((len(tensors[name]) for name in ("head.bias", "head.fc.bias") if name in tensors), None)
        if count is not None:
            counts[weights.prefix] = count
    if not counts:
        raise WeightsError(f"{source} has no classifier")
    if len(set(counts.values())) > 1:
        parts = ", ".join(f"{shown(prefix)}* with {count} classes" for prefix, count in counts.items())
        raise WeightsError(f"{source} holds several sets of weights, {parts}: save only one of them")
    return next(iter(counts.values()))


def check_choices(heads: str, distillation_token: str) -> None:
    """Raises WeightsError for a value that `load_weights` does not accept."""
    require_choice("heads", heads, HEADS, WeightsError)
    require_choice("distillation_token", distillation_token, DISTILLATION_TOKEN, WeightsError)


def _fit(weights: WeightSet, model: nn.Module, where: str, heads: str, distillation_token: str, seed: int) -> Fitted:
    _check_dtypes(weights.tensors, where)
    if not family(model):
        return _fit_own(weights, model, where, heads, seed)
    given, unknown = weights.layout.to_timm(weights.tensors)
    expected = timm.expected_tensors(model)
    tensors = timm.without_counters(given, expected)
    if distillation_token == "adapt":
        tensors = _adapt_distillation_token(tensors, expected)
    tensors, resized = _resize_position_embedding(tensors, expected, model, where)
    renewed: tuple[str, ...] = ()
    if heads != "keep":
        tensors, renewed = _reset_heads(tensors, expected, model, seed, heads)
    _check_fit(tensors, given, unknown, expected, weights, where, may_adapt=distillation_token == "keep")
    variables = jax.tree.map(jnp.asarray, timm.to_variables(tensors))
    variables["params"] = stacked_for(model, variables["params"])
    return Fitted(variables, renewed, resized)


def _fit_own(weights: WeightSet, model: nn.Module, where: str, heads: str, seed: int) -> Fitted:
    """Fits weights of a registered model without `family`, under this package's own names."""
    if weights.layout is not native.LAYOUT:
        raise WeightsError(
            f"{where} ({weights.layout.title}) does not fit the model: a {type(model).__name__} is loaded from files that "
            "deit_jax wrote (run.py --mode=export --layout=flax)"
        )
    variables, renewed = native.fit(weights.tensors, model, where, heads, seed)
    return Fitted(jax.tree.map(jnp.asarray, variables), renewed, "")


def _check_values(weights: WeightSet, model: nn.Module, renewed: tuple[str, ...], where: str) -> None:
    """Raises WeightsError for unusable values in tensors that the model uses: not in reset heads or a dropped token."""
    if not family(model) or not unusable_values(weights.tensors):  # `native.fit` checks models without family
        return
    dropped = tuple(f"{head}." for head in renewed)
    needed = {name for name in timm.expected_tensors(model) if not name.startswith(dropped)}
    origins = _origins(weights)
    used = {theirs for ours, names in origins.items() if ours in needed for theirs in names}
    unused = {theirs for names in origins.values() for theirs in names} - used
    if found := unusable_values({name: tensor for name, tensor in weights.tensors.items() if name not in unused}):
        raise WeightsError(
            f"{where} holds values that make every output NaN: {found}; use an earlier checkpoint of the same training, or "
            "download the file again"
        )


def _check_dtypes(tensors: Tensors, where: str) -> None:
    wrong = [
        f"{name}: {t.dtype}"
        for name, t in tensors.items()
        if not jnp.issubdtype(t.dtype, jnp.floating) and not name.endswith(timm.COUNTERS)
    ]
    if wrong:
        raise WeightsError(f"{where} has tensors that are not floating-point numbers: {listed(wrong)}")


def _adapt_distillation_token(tensors: Tensors, expected: Tensors) -> Tensors:
    needed, given = "dist_token" in expected, "dist_token" in tensors
    if needed == given or "cls_token" not in tensors:
        return tensors
    position = tensors.get("pos_embed")
    if needed:
        heads = {name.replace("head.", "head_dist."): t for name, t in tensors.items() if name.startswith("head.")}
        tensors = tensors | heads | {"dist_token": tensors["cls_token"]}
    else:
        tensors = {name: t for name, t in tensors.items() if name != "dist_token" and not name.startswith("head_dist.")}
    if position is not None and position.ndim == 3:
        rest = position if needed else position[:, 2:]
        tensors["pos_embed"] = np.concatenate([position[:, :1], rest], axis=1)
    return tensors


def _resize_position_embedding(
    tensors: Tensors, expected: Tensors, model: nn.Module, where: str
) -> tuple[Tensors, str]:
    position, like = tensors.get("pos_embed"), expected.get("pos_embed")
    if like is None or position is None or position.ndim != 3 or position.shape[0] != 1:
        return tensors, ""
    prefix = 2 if "dist_token" in tensors else 1  # of the file
    side = math.isqrt(like.shape[1] - num_prefix_tokens(model))
    if position.shape[1] == prefix + side * side:
        return tensors, ""
    try:
        resized = resize_position_embedding(position.astype(np.float32), (side, side), num_prefix_tokens=prefix)
    except ValueError as error:
        raise WeightsError(f"{where}: {error}") from error
    before = round((position.shape[1] - prefix) ** 0.5)
    return tensors | {"pos_embed": np.asarray(resized)}, f"{before}x{before} to {side}x{side}"


def _reset_heads(
    tensors: Tensors, expected: Tensors, model: nn.Module, seed: int, mode: str
) -> tuple[Tensors, tuple[str, ...]]:
    """Replaces heads by the model's own initialisation, weight and bias together; also returns their names."""
    resetting = heads_to_reset(tensors, expected, _HEAD_NAMES, mode)
    if not resetting:
        return tensors, ()
    # Under jit only the heads are computed; the rest of the initialisation is dead code.
    image = jnp.zeros((1, *input_size(model), 3), jnp.float32)
    params = jax.jit(lambda key: {k: v for k, v in model.init(key, image)["params"].items() if k.startswith("head")})(
        jax.random.key(seed)
    )
    fresh = timm.from_variables({"params": params})
    tensors = {n: t for n, t in tensors.items() if n not in expected or not n.startswith(tuple(resetting))}
    tensors |= {name: t for name, t in fresh.items() if name.startswith(tuple(resetting))}
    return tensors, tuple(sorted(head.rstrip(".") for head in resetting))


def _check_fit(
    tensors: Tensors, given: Tensors, unknown: list[str], expected: Tensors, weights: WeightSet, where: str, *, may_adapt: bool
) -> None:  # fmt: skip
    """Raises MisfitError, with the names of the file, unless `tensors` are `expected`.

    given, unknown: the file's tensors in timm's names, and names without translation. may_adapt: suggest distillation_token.
    """
    foreign = weights.tensors
    absent, extra, other = compare(tensors, expected)
    if not (absent or extra or other or unknown):
        return
    origins = _origins(weights)
    needed = _foreign_tensors({name: expected[name] for name in absent}, weights)
    missing = [name for name in needed if name not in foreign]
    unexpected = [it for name in extra for it in origins.get(name, [name]) if it not in needed] + unknown
    misshapen = [
        f"{' + '.join(origins.get(name, [name]))} {tensors[name].shape}, not {expected[name].shape}" for name in other
    ] + [
        f"{name} {foreign[name].shape}, not {like.shape}"
        for name, like in needed.items()
        if name in foreign and foreign[name].shape != like.shape
    ]
    token_differs = "dist_token" in absent + extra and "cls_token" in tensors  # both are transformers
    if may_adapt and token_differs:
        advice = "; distillation_token='adapt' loads the common part"
    elif not unknown and not extra and all(name.startswith(_HEAD_NAMES) for name in absent + other):
        advice = "; create the model with the file's number of classes, or use heads='reset_if_needed' for new heads"
    else:
        advice = ""
    sizes = other_size(given, expected)
    found = problems(missing, unexpected, misshapen, 3 if sizes else 20)
    if sizes:
        found, advice, token_differs = [f"it holds {sizes}", *found], "", False
    message = f"{where} ({weights.layout.title}) does not fit the model: {'; '.join(found)}{advice}"
    if not token_differs:
        raise MisfitError(message, missing, unexpected, misshapen)
    error = TokenMisfitError(message, missing, unexpected, misshapen)
    error.wanted = "dist_token" in absent
    raise error


def _foreign_tensors(tensors: Tensors, weights: WeightSet) -> Tensors:
    """Returns tensors under the names that they would have in the file of `weights`."""
    layout = weights.layout
    # Names of heads depend on whether the model is distilled.
    context = {"dist_token": _PLACEHOLDER} if any("dist" in name for name in weights.tensors) else {}
    own = () if "dist_token" in tensors else layout.from_timm(context)
    theirs = layout.from_timm(context | tensors)
    return {
        layout.spelled_as(name, weights.tensors): tensor
        for name, tensor in theirs.items()
        if name not in own and not name.endswith(timm.COUNTERS)
    }


_PLACEHOLDER = np.zeros((3, 3, 1, 1), np.float32)  # a tensor that every layout can split or flip


def _origins(weights: WeightSet) -> dict[str, list[str]]:
    """Maps timm's names to the names of their tensors in the file."""
    origins: dict[str, list[str]] = {}
    for theirs in weights.tensors:
        for ours in weights.layout.to_timm({theirs: _PLACEHOLDER})[0]:
            for name in {ours, timm.fused(ours)}:
                origins.setdefault(name, []).append(theirs)
    return origins
