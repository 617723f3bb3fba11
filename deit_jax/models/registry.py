"""Models by timm's names."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from deit_jax.models.protocol import code_of, family, has_field, is_distilled
from deit_jax.models.regnet import RegNet
from deit_jax.models.vit import VisionTransformer
from deit_jax.registration import same_definition

_VIT_WIDTHS = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}  # embed_dim, num_heads (Table 1)

# w0, wa, wm, depth, group width (arXiv 2003.13678, as in pycls and timm).
_REGNETY = {
    "002": (24, 36.44, 2.49, 13, 8),
    "004": (48, 27.89, 2.09, 16, 8),
    "006": (48, 32.54, 2.32, 15, 16),
    "008": (56, 38.84, 2.40, 14, 16),
    "016": (48, 20.71, 2.65, 27, 24),
    "032": (80, 42.63, 2.66, 21, 24),
    "040": (96, 31.41, 2.24, 22, 64),
    "064": (112, 33.22, 2.27, 25, 72),
    "080": (192, 76.82, 2.19, 17, 56),
    "120": (168, 73.36, 2.37, 19, 112),
    "160": (200, 106.23, 2.48, 18, 112),
    "320": (232, 115.89, 2.53, 20, 232),
}


# Fields that the caller sets, not the registration.
_SET_BY_CALLER = {"parent", "name", "num_classes", "image_size"}


class _Entry(NamedTuple):
    """A registered model."""

    module: type[nn.Module]
    fields: dict[str, Any]  # overrides of the module's defaults
    image_size: int  # training image size in pixels


_MODELS: dict[str, _Entry] = {}
_OWN_NAMES: set[str] = set()  # this package's models, which cannot be registered again
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def register_model(
    name: str, module: type[nn.Module], fields: Mapping[str, Any] | None = None, image_size: int = 224
) -> None:
    """Registers a Linen module under a name for `config.model.name`, `config.teacher.name` and `create_model`.

    Args:
      name: letters, digits, "_", "." and "-".
      module: a class that follows models/protocol.py.
      fields: values of the module's fields that differ from its defaults. Its other fields are set as those of this package's
        models: `num_classes`, `image_size`, `dtype`, the options of `config.model`, and `config.model.overrides`.
      image_size: pixels, the training size if `config.image_size` is not set.

    A class may be registered again, also with other fields, as when a notebook cell runs twice.

    Raises ValueError: another model has the name, or an argument is not a module, its fields, or a size.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"invalid model name {name!r}: use only letters, digits, '_', '.' and '-'")
    if not (isinstance(module, type) and issubclass(module, nn.Module)):
        what = f"a {type(module).__name__}" if not isinstance(module, type) else module.__name__
        raise ValueError(f"{name}: `module` must be a subclass of flax.linen.Module, got {what}")
    if isinstance(image_size, bool) or not isinstance(image_size, Integral) or image_size < 1:
        raise ValueError(f"image_size={image_size!r} of {name}: give a number of pixels")
    if not has_field(module, "num_classes"):
        raise ValueError(f"{module.__name__}, registered as {name}, needs a field num_classes")
    fields = dict(fields or {})
    for key in fields:
        if not has_field(module, key) or key in _SET_BY_CALLER:
            raise ValueError(f"{module.__name__}, registered as {name}, has no field {key!r} to set")
    provided = {*_SET_BY_CALLER, "dtype", *fields}
    for field in dataclasses.fields(module):
        if _default(field) is dataclasses.MISSING and field.name not in provided:
            raise ValueError(f"{module.__name__}.{field.name} has no default: give it in fields of {name}")
    entry = _Entry(module, fields, int(image_size))
    known = _MODELS.get(name, entry)
    if known != entry and (name in _OWN_NAMES or not same_definition(known.module, module)):
        raise ValueError(f"a model named {name!r} is already registered: choose another name")
    _MODELS[name] = entry


def _register_own() -> None:
    for distilled in (False, True):
        for size, image_size in (("tiny", 224), ("small", 224), ("base", 224), ("base", 384)):
            embed_dim, num_heads = _VIT_WIDTHS[size]
            name = f"deit_{size}{'_distilled' if distilled else ''}_patch16_{image_size}"
            fields: dict[str, Any] = {"embed_dim": embed_dim, "num_heads": num_heads, "distilled": distilled}
            register_model(name, VisionTransformer, fields, image_size)
    for suffix, (w0, wa, wm, depth, group_width) in _REGNETY.items():
        fields = {"w0": w0, "wa": wa, "wm": wm, "depth": depth, "group_width": group_width}
        register_model(f"regnety_{suffix}", RegNet, fields)


def list_models() -> list[str]:
    """Returns the names that `create_model` accepts."""
    return list(_MODELS)


def _find(name: str) -> _Entry:
    if not isinstance(name, str) or name not in _MODELS:
        near = difflib.get_close_matches(str(name).lower(), _MODELS, n=3, cutoff=0.3)
        raise ValueError(f"unknown model {name!r}; nearest: {', '.join(near or _MODELS)}")
    return _MODELS[name]


def native_image_size(name: str) -> int:
    """Returns the training image size of the named model, in pixels. Raises ValueError for an unknown name."""
    return _find(name).image_size


def model_fields(name: str) -> dict[str, Any]:
    """Returns the named model's fields and their values, except num_classes and image_size, which the caller sets.

    Raises ValueError for an unknown name.
    """
    module, fields, _ = _find(name)
    values = {field.name: _default(field) for field in dataclasses.fields(module)} | fields
    return {k: v for k, v in values.items() if k not in _SET_BY_CALLER and v is not dataclasses.MISSING}


def has_token(name: str, overrides: Mapping[str, Any]) -> bool:
    """Whether the named model with `overrides` has a distillation token. Raises as `create_model`."""
    module = _find(name).module
    if has_field(module, "distilled"):
        return bool((model_fields(name) | dict(overrides))["distilled"])
    distilled = getattr(module, "distilled", False)  # a property needs an instance
    return distilled if isinstance(distilled, bool) else is_distilled(create_model(name, **overrides))


def model_family(name: str) -> str:
    """Returns the `family` of the named model (models/protocol.py). Raises ValueError for an unknown name."""
    return family(_find(name).module)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def check_fields(name: str, overrides: Mapping[str, Any]) -> None:
    """Raises ValueError, in one line, if the named model lacks a field or its value has the wrong type or is out of bounds."""
    known = model_fields(name)
    for key, value in overrides.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise ValueError(f"{name} has no field {key!r}; nearest: {', '.join(near)}")
        advice = _advice(key, known[key], value)
        if advice is not None:
            raise ValueError(f"{key}={value!r} of {name}: give {advice}")


def _advice(key: str, default: Any, value: Any) -> str | None:
    """Returns what to give instead of a value that does not match the default; None if it is valid or the module checks it."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "True or False"
    if isinstance(default, int):
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        return None if whole and value >= 1 else "a whole number above 0"
    if isinstance(default, float):
        finite = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if key.endswith("_keep_rate"):
            return None if finite and 0 < value <= 1 else "a number above 0 and at most 1"
        if key.endswith("_rate"):
            return None if finite and 0 <= value < 1 else "a number from 0 to less than 1"
        return None if finite and value >= 0 else "a number that is not negative"
    if isinstance(default, str) and isinstance(value, Real):
        return "a name"
    return None


def create_model(name: str, num_classes: int = 1000, image_size: int | None = None, **overrides: Any) -> nn.Module:
    """Creates a Linen module by timm's name; `module.apply(variables, images)` takes normalised float[B, H, W, 3] images.

    Args:
      name: one of `list_models()`, e.g. "deit_small_distilled_patch16_224" or "regnety_160".
      num_classes: width of the head(s).
      image_size: pixels; None is the size of its training. A RegNet takes images of any size.
      **overrides: any other field of the module, e.g. depth=6, patch_size=4, drop_path_rate=0.1, dtype=jnp.bfloat16 (ignored for
        a registered model without a field `dtype`).

    Raises:
      ValueError: the name or a field is unknown (the nearest names are listed), a value has the wrong type or is out of bounds,
        or the fields are inconsistent.
    """
    module, fields, native = _find(name)
    if "dtype" in overrides:
        _refuse_other_types(overrides["dtype"])
        if not has_field(module, "dtype"):
            overrides = {key: value for key, value in overrides.items() if key != "dtype"}
    check_fields(name, overrides)
    if has_field(module, "image_size"):
        fields = fields | {"image_size": native if image_size is None else image_size}
    with code_of(module, "making it", passing=ValueError):
        return module(num_classes=num_classes, **(fields | overrides))


def _refuse_other_types(dtype: Any) -> None:
    try:
        computes = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:  # not a dtype
        computes = False
    if not computes:
        raise ValueError(f"dtype={dtype!r} is not a floating-point type: give float32, bfloat16 or float16")


# Fields that change neither the parameters nor (except the fusion of heads) the output in evaluation.
_NOT_ARCHITECTURE = {
    "parent", "name", "num_classes", "dtype", "fusion", "dropout_rate", "drop_path_rate", "patch_keep_rate", "drop_dtype",
    "residual_dtype", "gradient_dtype", "regnet_init", "grouped_conv", "folded", "attention", "remat", "scan_blocks",
}  # fmt: skip


def identify(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """Returns the registered name nearest to a model, and the architecture fields (e.g. image_size) in which it differs.

    `create_model(name, num_classes, **fields)` creates an equal model. Raises ValueError for a module of another class.
    """
    candidates = {}
    fields = [field.name for field in dataclasses.fields(model) if field.name not in _NOT_ARCHITECTURE]
    for name, entry in _MODELS.items():
        if entry.module is type(model) and is_distilled(named := create_model(name)) == is_distilled(model):
            candidates[name] = {it: getattr(model, it) for it in fields if getattr(model, it) != getattr(named, it)}
    if not candidates:
        raise ValueError(f"a {type(model).__name__} is not a registered model")
    return min(candidates.items(), key=lambda candidate: len(candidate[1]))


_register_own()
_OWN_NAMES.update(_MODELS)
