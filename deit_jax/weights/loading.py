"""Weights of any known layout into our variables: everything fits, or one error says what does not."""

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
from deit_jax.models.position_embedding import resize_position_embedding
from deit_jax.models.protocol import family, num_prefix_tokens, resize_variables
from deit_jax.models.stacking import laid_out_for, unstack_blocks
from deit_jax.weights import huggingface, mmpretrain, native, pycls, timm, torchvision
from deit_jax.weights.errors import MisfitError, TokenMisfitError, WeightsError, listed, shown
from deit_jax.weights.files import Tensors, read_file
from deit_jax.weights.layout import Layout, compare
from deit_jax.weights.relatives import other_size, relative
from deit_jax.weights.unwrapping import WeightSet, weight_sets
from deit_jax.weights.values import unusable_values

LAYOUTS = (timm.LAYOUT, huggingface.LAYOUT, mmpretrain.LAYOUT, torchvision.LAYOUT, pycls.LAYOUT, native.LAYOUT)
_LOGGER = logging.getLogger(__name__)
_HEAD_NAMES = ("head.", "head_dist.")
HEADS = ("keep", "reset", "reset_if_needed")
DISTILLATION_TOKEN = ("keep", "adapt")
WHICH = ("raw", "ema")


class Fitted(NamedTuple):
    """Variables of a model, and what of them the weights they come from did not give as it is."""

    variables: dict[str, Any]  # as `load_weights` returns them
    renewed: tuple[str, ...]  # heads that start from scratch: "head", "head_dist"
    resized: str  # of the position embedding: "14x14 to 24x24"; "" if it fitted
    note: str = ""  # what was removed from the names, and which tensors were left aside; "" if nothing


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
    """The variables of `model` from weights that another framework wrote.

    Layouts, told apart by the names: facebookresearch/deit and timm; Hugging Face transformers (ViT and DeiT-with-teacher, names
    of versions 4 and 5); mmpretrain; RegNetY of timm, torchvision and pycls. Position embeddings of another image size are
    resized as the reference does it: bicubic (PyTorch's, a = -0.75), class and distillation tokens kept. Values become float32.

    Args:
      source: a .safetensors, .npz or (with torch) .pth file, a folder with a model.safetensors, or a mapping of names to arrays.
        Checkpoints of training scripts are unwrapped: `model`, `state_dict`, `model_state`, `model_ema` and the like, and names
        that begin with `module.`, `model.`, `net._orig_mod.` or any other prefix. Of several sets of weights under different
        prefixes the one that fits is taken.
      model: what `create_model` made; its fields say which shapes are wanted.
      heads: "keep": the classifiers come from the file, and another number of classes is an error. "reset": they start from
        scratch. "reset_if_needed": those of other shapes start from scratch, which is what the reference does in fine-tuning.
      distillation_token: "keep": a file without the token does not fit a distilled model, nor one with it a plain model. "adapt":
        a distilled model starts from a plain file, its second token, position and head as copies of the class token's, so that it
        answers what the class head answers until training makes them differ; of a distilled file a plain model takes the rest.
      which: "raw" or "ema" where a checkpoint holds both; None: raw.
      seed: of the heads that start from scratch.
      report: is given a line that says which prefix was removed and what was left aside, if anything was.

    Returns:
      {"params": ...} and for a RegNet "batch_stats", jax arrays, as `model.init` gives them.

    Raises:
      WeightsError: the source is unreadable, in no known layout, or holds NaN, infinite numbers or negative variances; or several
        sets of weights fit; or `heads`, `distillation_token` or `which` is none of these.
      MisfitError: names are missing, unexpected or of another shape; its attributes list them all. Nothing is loaded in part.
    """
    fitted = fit_weights(source, model, heads=heads, distillation_token=distillation_token, which=which, seed=seed)
    if fitted.note:
        report(f"{_called(source)}: {fitted.note}")
    return fitted.variables


def _called(source: str | Path | Mapping[str, Any]) -> str:
    return "the mapping" if isinstance(source, Mapping) else str(source)


def fit_weights(
    source: str | Path | Mapping[str, Any],
    model: nn.Module,
    *,
    heads: str = "keep",
    distillation_token: str = "keep",
    which: str | None = None,
    seed: int = 0,
) -> Fitted:
    """`load_weights`, and what it had to change."""
    if isinstance(model, str):
        raise WeightsError(f"model={model!r} is a name: give deit_jax.create_model({model!r})")
    check_choices(heads, distillation_token)
    if isinstance(source, str):
        refuse_address("source", source, WeightsError)
    if which is not None:
        require_choice("which", which, WHICH, WeightsError)
    where = _called(source)
    fits, misfits = [], []
    sets, entries = _read(source, which, where)
    for candidate in sets:
        name = f"{where} ({shown(candidate.prefix)}*)" if candidate.prefix else where
        try:
            fitted = _fit(candidate.tensors, candidate.layout, model, name, heads, distillation_token, seed)
        except WeightsError as error:
            misfits.append(error)
        else:
            fits.append((candidate, fitted))
    if not fits:
        raise _misfit(sets, entries, misfits, where)
    if len(fits) > 1:
        raise WeightsError(
            f"{where} holds several sets of weights that fit: {_prefixes(it for it, _ in fits)}; save only the one that you want"
        )
    candidate, fitted = fits[0]
    _refuse_unusable_values(candidate.tensors, candidate.layout, model, fitted.renewed, where)
    note = candidate.note
    if len(sets) > 1:
        note += f"; of several sets ({_prefixes(sets, '; ')}) only this one fits"
    return fitted._replace(note=note)


def _read(
    source: str | Path | Mapping[str, Any], which: str | None, where: str
) -> tuple[list[WeightSet], Mapping[str, Any]]:
    """The sets of weights in a file or mapping, at least one, and all its entries."""
    content = source if isinstance(source, Mapping) else read_file(source)
    sets, entries = weight_sets(content, which, where, LAYOUTS)
    if sets:
        return sets, entries
    if (what := relative(entries)) is not None:
        raise WeightsError(f"{where} holds {what}")
    titles = ", ".join(layout.title for layout in LAYOUTS)
    raise WeightsError(f"{where} is in no known layout ({titles}); its names are {listed(entries)}")


def _prefixes(sets: Iterable[WeightSet], separator: str = ", ") -> str:
    return separator.join(f"{shown(it.prefix)}*" if it.prefix else "names without a prefix" for it in sets)


def _misfit(sets: list[WeightSet], entries: Mapping[str, Any], misfits: list[WeightsError], where: str) -> WeightsError:
    """What to raise where no set fits."""
    first = misfits[0]
    # Not what lies beside the sets: a teacher, or the network of a perceptual loss.
    roots = {it.prefix.split(".")[0] for it in sets}
    own = {name: entry for name, entry in entries.items() if "" in roots or name.split(".")[0] in roots}
    if (what := relative(own)) is not None:
        message = f"{where} holds {what}"
    elif len(sets) > 1:
        message = f"{where} holds several sets of weights, {_prefixes(sets)}, and none fits; the first: {first}"
    else:
        return first
    if isinstance(first, MisfitError):
        return MisfitError(message, first.missing, first.unexpected, first.misshapen)
    return WeightsError(message)


def fit_variables(variables: Mapping[str, Any], model: nn.Module, where: str, *, heads: str, seed: int) -> Fitted:
    """The variables of `model` from those of another of this package, with other classes or another image size perhaps.

    Args: variables: {"params", "batch_stats"}. where: what an error calls them. heads, seed: as of `load_weights`.

    Raises MisfitError: they are of another model; a TokenMisfitError if one of the two is distilled.
    """
    ours = {"params": variables["params"], "batch_stats": variables.get("batch_stats") or {}}
    if not family(model):
        resized = resize_variables(model, ours)
        fitted = _fit_own(native.from_variables(resized), native.LAYOUT, model, where, heads, seed)
        other = jax.tree.map(jnp.shape, resized) != jax.tree.map(jnp.shape, ours)
        return fitted._replace(resized="another image size" if other else "")
    layout = dataclasses.replace(timm.LAYOUT, title="names as in timm")
    tensors = timm.from_variables(ours | {"params": unstack_blocks(ours["params"])})
    fitted = _fit(tensors, layout, model, where, heads, "keep", seed)
    _refuse_unusable_values(tensors, layout, model, fitted.renewed, where)
    return fitted


def count_classes(source: str | Path, which: str | None = None, model: nn.Module | None = None) -> int:
    """How many classes the first head in a weights file tells apart.

    model: whose weights they are, with any number of classes; needed for one without a `family`. Raises WeightsError if the file
    cannot be read or has no head.
    """
    found: dict[str, int] = {}
    for candidate in _read(source, which, str(source))[0]:
        if model is not None and not family(model):
            count = native.count_classes(candidate.tensors, model)
            found |= {} if count is None else {candidate.prefix: count}
            continue
        tensors, _ = candidate.layout.to_timm(candidate.tensors)
        bias = next((tensors[name] for name in ("head.bias", "head.fc.bias") if name in tensors), None)
        if bias is not None:
            found[candidate.prefix] = len(bias)
    if not found:
        raise WeightsError(f"{source} has no classifier")
    if len(set(found.values())) > 1:
        parts = ", ".join(f"{shown(prefix)}* with {count} classes" for prefix, count in found.items())
        raise WeightsError(f"{source} holds several sets of weights, {parts}: save only the one that you want")
    return next(iter(found.values()))


def check_choices(heads: str, distillation_token: str) -> None:
    """Raises WeightsError for a value that `load_weights` does not know; before a file is fetched or read."""
    require_choice("heads", heads, HEADS, WeightsError)
    require_choice("distillation_token", distillation_token, DISTILLATION_TOKEN, WeightsError)


def _fit(
    foreign: Tensors, layout: Layout, model: nn.Module, where: str, heads: str, distillation_token: str, seed: int
) -> Fitted:
    _refuse_non_numbers(foreign, where)
    if not family(model):
        return _fit_own(foreign, layout, model, where, heads, seed)
    given, strangers = layout.to_timm(foreign)
    expected = timm.expected_tensors(model)
    tensors = timm.without_counters(given, expected)
    if distillation_token == "adapt":
        tensors = _adapt_distillation_token(tensors, expected)
    tensors, resized = _resize_position_embedding(tensors, expected, model, where)
    renewed: tuple[str, ...] = ()
    if heads != "keep":
        tensors, renewed = _reset_heads(tensors, expected, model, seed, all_of_them=heads == "reset")
    may_adapt = distillation_token == "keep"
    _refuse_misfits(tensors, given, strangers, expected, foreign, layout, where, may_adapt=may_adapt)
    variables = jax.tree.map(jnp.asarray, timm.to_variables(tensors))
    variables["params"] = laid_out_for(model, variables["params"])
    return Fitted(variables, renewed, resized)


def _fit_own(foreign: Tensors, layout: Layout, model: nn.Module, where: str, heads: str, seed: int) -> Fitted:
    """Weights of a registered model that no other framework has: under this package's own names."""
    if layout is not native.LAYOUT:
        raise WeightsError(
            f"{where} ({layout.title}) does not fit the model: a {type(model).__name__} is read from files that deit_jax wrote "
            "(run.py --mode=export --layout=flax)"
        )
    variables, renewed = native.fit(foreign, model, where, heads, seed)
    return Fitted(jax.tree.map(jnp.asarray, variables), renewed, "")


def _refuse_unusable_values(
    foreign: Tensors, layout: Layout, model: nn.Module, renewed: tuple[str, ...], where: str
) -> None:
    """Refuse such values, except in what the model does not take: heads that are reset, a distillation token left out."""
    if not family(model) or not unusable_values(
        foreign
    ):  # those of a model without family are checked as they are fitted
        return
    thrown_away = tuple(f"{head}." for head in renewed)
    wanted = {name for name in timm.expected_tensors(model) if not name.startswith(thrown_away)}
    origins = _origins(foreign, layout)
    used = {theirs for ours, names in origins.items() if ours in wanted for theirs in names}
    unused = {theirs for names in origins.values() for theirs in names} - used
    if found := unusable_values({name: tensor for name, tensor in foreign.items() if name not in unused}):
        raise WeightsError(
            f"{where} holds values that make every answer NaN: {found}; take an earlier checkpoint of the training that wrote "
            "them, or download the file again"
        )


def _refuse_non_numbers(tensors: Tensors, where: str) -> None:
    wrong = [
        f"{name}: {t.dtype}"
        for name, t in tensors.items()
        if not jnp.issubdtype(t.dtype, jnp.floating) and not name.endswith(timm.COUNTERS)
    ]
    if wrong:
        raise WeightsError(f"{where} has tensors that are not floating-point numbers: {listed(wrong)}")


def _adapt_distillation_token(tensors: Tensors, expected: Tensors) -> Tensors:
    wanted, given = "dist_token" in expected, "dist_token" in tensors
    if wanted == given or "cls_token" not in tensors:
        return tensors
    tensors = dict(tensors)
    position = tensors.get("pos_embed")
    if wanted:
        tensors["dist_token"] = tensors["cls_token"]
        tensors |= {name.replace("head.", "head_dist."): t for name, t in tensors.items() if name.startswith("head.")}
        if position is not None and position.ndim == 3:
            tensors["pos_embed"] = np.concatenate([position[:, :1], position], axis=1)
    else:
        tensors = {name: t for name, t in tensors.items() if name != "dist_token" and not name.startswith("head_dist.")}
        if position is not None and position.ndim == 3:
            tensors["pos_embed"] = np.concatenate([position[:, :1], position[:, 2:]], axis=1)
    return tensors


def _resize_position_embedding(
    tensors: Tensors, expected: Tensors, model: nn.Module, where: str
) -> tuple[Tensors, str]:
    position, like = tensors.get("pos_embed"), expected.get("pos_embed")
    if like is None or position is None or position.ndim != 3 or position.shape[0] != 1:
        return tensors, ""
    prefix = 2 if "dist_token" in tensors else 1  # the file's own
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
    tensors: Tensors, expected: Tensors, model: nn.Module, seed: int, *, all_of_them: bool
) -> tuple[Tensors, tuple[str, ...]]:
    """New heads, and which, by the model's own initialisation; a head is reset whole."""
    tensors = dict(tensors)
    resetting = set()
    for name, like in expected.items():
        head = next((head for head in _HEAD_NAMES if name.startswith(head)), None)
        if head and (all_of_them or name not in tensors or tensors[name].shape != like.shape):
            resetting.add(head)
    if not resetting:
        return tensors, ()
    # Only the heads are computed: the compiler drops the rest of the initialisation.
    image = jnp.zeros((1, *timm.input_size(model), 3), jnp.float32)
    params = jax.jit(lambda key: {k: v for k, v in model.init(key, image)["params"].items() if k.startswith("head")})(
        jax.random.key(seed)
    )
    fresh = timm.from_variables({"params": params})
    tensors = {n: t for n, t in tensors.items() if n not in expected or not n.startswith(tuple(resetting))}
    tensors |= {name: t for name, t in fresh.items() if name.startswith(tuple(resetting))}
    return tensors, tuple(sorted(head.rstrip(".") for head in resetting))


def _refuse_misfits(
    tensors: Tensors,
    given: Tensors,
    strangers: list[str],
    expected: Tensors,
    foreign: Tensors,
    layout: Layout,
    where: str,
    *,
    may_adapt: bool,
) -> None:
    absent, extra, other = compare(tensors, expected)
    if not (absent or extra or other or strangers):
        return
    origins = _origins(foreign, layout)
    needed = _foreign_tensors({name: expected[name] for name in absent}, foreign, layout)
    missing = [name for name in needed if name not in foreign]
    unexpected = [it for name in extra for it in origins.get(name, [name]) if it not in needed] + strangers
    misshapen = [
        f"{' + '.join(origins.get(name, [name]))} {tensors[name].shape}, not {expected[name].shape}" for name in other
    ] + [
        f"{name} {foreign[name].shape}, not {like.shape}"
        for name, like in needed.items()
        if name in foreign and foreign[name].shape != like.shape
    ]
    token_differs = "dist_token" in absent + extra and "cls_token" in tensors  # both are transformers
    if may_adapt and token_differs:
        advice = "; distillation_token='adapt' takes what both have"
    elif not strangers and not extra and all(name.startswith(_HEAD_NAMES) for name in absent + other):
        advice = "; create the model with the file's number of classes, or start them from scratch with heads='reset_if_needed'"
    else:
        advice = ""
    sizes = other_size(given, expected)
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    problems = [f"{kind} {listed(names, 3 if sizes else 20)}" for kind, names in kinds if names]
    if sizes:
        problems, advice, token_differs = [f"it holds {sizes}", *problems], "", False
    message = f"{where} ({layout.title}) does not fit the model: {'; '.join(problems)}{advice}"
    if token_differs:
        raise TokenMisfitError(message, missing, unexpected, misshapen, wanted="dist_token" in absent)
    raise MisfitError(message, missing, unexpected, misshapen)


def _foreign_tensors(tensors: Tensors, foreign: Tensors, layout: Layout) -> Tensors:
    """Tensors under the names that a file with those of `foreign` would give them."""
    # The names of the heads depend on whether the model is distilled.
    beside = {"dist_token": _ANYTHING} if any("dist" in name for name in foreign) else {}
    own = () if "dist_token" in tensors else layout.from_timm(beside)
    theirs = layout.from_timm(beside | tensors)
    return {
        layout.spelled_as(name, foreign): tensor
        for name, tensor in theirs.items()
        if name not in own and not name.endswith(timm.COUNTERS)
    }


_ANYTHING = np.zeros((3, 3, 1, 1), np.float32)  # a tensor that every layout can cut or flip


def _origins(foreign: Tensors, layout: Layout) -> dict[str, list[str]]:
    """timm's name to the names of the tensors of the file that it came from."""
    origins: dict[str, list[str]] = {}
    for theirs in foreign:
        for ours in layout.to_timm({theirs: _ANYTHING})[0]:
            for name in {ours, timm.fused(ours)}:
                origins.setdefault(name, []).append(theirs)
    return origins
