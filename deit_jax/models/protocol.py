"""The protocol of a model: its required call, and optional fields, attributes and methods.

A model is a `flax.linen.Module` with a field `num_classes` and the call

    __call__(images, *, train=False, positions=None) -> logits float32[B, num_classes], or `ModelOutput`

images: normalised float[B, H, W, 3]. train: whether dropout is applied and BatchNorm uses batch statistics. positions: int32[B],
each image's index in the global batch, which keys `Dropout`; None in evaluation. A call without a parameter `train` or
`positions` does not receive it. A model may have the collections "params" and "batch_stats", of floating-point variables, and in
training use the random stream "dropout".

A model that gives features has the property `feature_names`, and the parameter `features=()` in its call. With a tuple of these
names it returns a pair: what it returns otherwise, and the features by name. A feature is a map float[B, h, w, C] or a vector
float[B, C], of any floating-point type. Without names the call computes as if it did not have the parameter.

Everything else is optional. Fields of these names, if the model has them, are set from the configuration:

    image_size      pixels; a model with this field takes only images of that size, a model without it any size
    dtype           compute dtype
    drop_path_rate, dropout_rate, fusion, attention, ...   the options of `config.model`; any other by `config.model.overrides`

The functions below use these attributes, properties and methods:

    distilled                     True: it has a distillation token, and returns a `ModelOutput` with both heads' logits
    fusion                        how it fuses them: one of `FUSIONS`
    num_prefix_tokens             number of tokens before the patch tokens
    feature_widths                widths of its features, by block or by stage
    feature_names                 names of the features that its call gives
    family                        the weights layouts that it supports ("vit", "regnet"; weights/saving.py)
    inference_form(variables)     equivalent (model, variables) that compute faster, for evaluation only
    fused_form()                  an equivalent frozen model, for `on_mesh`, that accelerators may compute faster
    portable_form(variables)      equivalent (model, variables) in operations that every platform has
    on_mesh(mesh)                 the model specialised for batches split over a mesh
    attention_on(mesh)            the name of the attention that `on_mesh` takes, and why it does (models/attention.py)
    resize_variables(variables, method)   variables of this model at another image size, resized to this one's
    check_training(platform, image_size)  raises ValueError if it cannot be trained there
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deit_jax.errors import UserError, raised_outside
from deit_jax.models.layers import RNG_NAME

Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}, what model.apply takes
Features = dict[str, jax.Array]  # by name: maps float[B, h, w, C] or vectors float[B, C]
FUSIONS = ("logits", "softmax", "class")


class ModelOutput(NamedTuple):
    """Logits, float32[B, K] each.

    logits: the model's prediction; with a distillation token, the late fusion of its two heads.
    class_logits: the head on the class token (of a convnet: the only head, equal to `logits`).
    distillation_logits: the head on the distillation token; None for a model without one.
    """

    logits: jax.Array
    class_logits: jax.Array
    distillation_logits: jax.Array | None


def fuse(class_logits: jax.Array, distillation_logits: jax.Array, fusion: str) -> jax.Array:
    """Fuses the logits of two heads, float32[B, K].

    "logits" is the mean of the logits, as in the released code and its ports. "softmax" is the log of the mean of the two
    softmax outputs (the paper, section 4, adds them: the same ranking). "class" is the class head alone, for a model whose
    distillation head was not trained.
    """
    if fusion == "logits":
        return (class_logits + distillation_logits) / 2
    if fusion == "softmax":
        return jnp.logaddexp(jax.nn.log_softmax(class_logits), jax.nn.log_softmax(distillation_logits)) - jnp.log(2.0)
    if fusion == "class":
        return class_logits
    raise ValueError(f"fusion={fusion!r} is not one of {', '.join(FUSIONS)}")


class ModelError(UserError):
    """A registered model raises an exception or violates the protocol. The message is one line."""


@contextlib.contextmanager
def code_of(module: type[nn.Module], what: str = "its call", passing: type[Exception] = UserError) -> Iterator[None]:
    """Converts exceptions of registered models, except `passing`, to ModelError. Those of this package's models propagate."""
    try:
        yield
    except (UserError, passing):
        raise
    except Exception as error:
        if not is_from_outside(module):
            raise
        try:
            file = inspect.getfile(module)
        except (TypeError, OSError):  # defined in an interactive session
            file = ""
        raise ModelError(f"the model {module.__name__}: {what} raises {raised_outside(error, file)}") from error


def is_from_outside(module: type[nn.Module]) -> bool:
    """Whether a model's class is defined outside this package."""
    return not module.__module__.startswith("deit_jax.")


def initial_variables(model: nn.Module, key: jax.Array, images: jax.Array) -> Variables:
    """Returns randomly initialised variables of any model; images and errors as in `classify`."""
    with code_of(type(model)):
        return dict(model.init(key, images, **_accepted(model, train=False, positions=None)))


def check_outputs(model: nn.Module, image_size: int, *, train: bool | None = None) -> None:
    """Raises ModelError, in one line, if a model from outside this package violates the protocol. Only traces.

    train: as in `train_outputs`, which is traced too; None: it is not.
    """
    if not is_from_outside(type(model)):
        return
    images: Any = jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32)
    key: Any = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(lambda key, images: initial_variables(model, key, images), key, images)
    output = jax.eval_shape(lambda variables, images: classify(model, variables, images), variables, images)
    where = f"the model {type(model).__name__}"
    if is_distilled(model) != (output.distillation_logits is not None):
        returned = "no" if output.distillation_logits is None else "also"
        raise ModelError(
            f"{where} has distilled={is_distilled(model)} and returns {returned} distillation_logits: return a "
            "deit_jax.ModelOutput of both heads, or have distilled=False and return logits"
        )
    if unknown := sorted(set(variables) - {"params", "batch_stats"}):
        raise ModelError(
            f"{where} has variables in the collection {unknown[0]!r}: give it params and batch_stats alone"
        )
    if "params" not in variables:
        raise ModelError(f"{where} has no parameters")
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ModelError(f"{where}: the variable {name} is {leaf.dtype}; give floating-point variables")
    if train is not None:
        variables = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

        def outputs(variables: Any, images: Any, key: Any) -> Any:
            positions = jnp.arange(images.shape[0])
            return train_outputs(model, variables, images, train=train, positions=positions, rngs={RNG_NAME: key})

        _, updates = jax.eval_shape(outputs, variables, images, key)
        statistics = (variables["batch_stats"], dict(updates.get("batch_stats", {})))
        before, after = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in statistics)
        if before != after:
            raise ModelError(
                f"{where}: batch_stats after a training step differ from the first ones in names, shapes or types"
            )


def call(model: nn.Module, images: jax.Array) -> ModelOutput:
    """Returns the output in evaluation of a bound module, e.g. a submodule; see `classify`."""
    with code_of(type(model)):
        output = model(images, **_accepted(model, train=False, positions=None))
    return as_output(output, model, images.shape[0])


def call_with_features(model: nn.Module, images: jax.Array, names: tuple[str, ...]) -> tuple[ModelOutput, Features]:
    """Returns the output in evaluation of a bound module, and the named features; see `classify_with_features`."""
    with code_of(type(model)):
        result = model(images, **_accepted(model, train=False, positions=None), features=names)
    return _with_features(result, model, names, images.shape[0])


def classify(model: nn.Module, variables: Mapping[str, Any], images: jax.Array) -> ModelOutput:
    """Returns the output of any model in evaluation, for normalised float[B, H, W, 3] images.

    Raises ModelError if a registered model raises or violates the protocol.
    """
    with code_of(type(model)):
        output = model.apply(variables, images, **_accepted(model, train=False, positions=None))
    return as_output(output, model, images.shape[0])


def classify_with_features(
    model: nn.Module, variables: Mapping[str, Any], images: jax.Array, names: tuple[str, ...]
) -> tuple[ModelOutput, Features]:
    """Returns the output of a model in evaluation, and its features of these names, all of `feature_names`; see `classify`."""
    kwargs = _accepted(model, train=False, positions=None)
    with code_of(type(model)):
        result = model.apply(variables, images, **kwargs, features=names)
    return _with_features(result, model, names, images.shape[0])


def train_outputs(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: jax.Array,
    *,
    train: bool,
    positions: jax.Array,
    rngs: Any,
    features: tuple[str, ...] = (),
) -> tuple[ModelOutput, Mapping[str, Any]]:
    """Returns the output of any model in a training step, and its new "batch_stats". train=False computes as in evaluation.

    features: names of `feature_names`, whose features are returned by name as "features" next to "batch_stats".
    """
    kwargs = _accepted(model, train=train, positions=positions)
    if features:
        kwargs["features"] = features
    with code_of(type(model)):
        result, updates = model.apply(variables, images, **kwargs, rngs=rngs, mutable=["batch_stats"])
    if not features:
        return as_output(result, model, images.shape[0]), updates
    output, found = _with_features(result, model, features, images.shape[0])
    return output, {**updates, "features": found}


def _with_features(
    result: Any, model: nn.Module, names: tuple[str, ...], num_images: int
) -> tuple[ModelOutput, Features]:
    """Checks what a call with `features=names` returned. Raises ModelError, in one line, if it violates the protocol."""
    where = f"the model {type(model).__name__}, called with features={names},"
    if isinstance(result, ModelOutput) or not (isinstance(result, tuple) and len(result) == 2):
        raise ModelError(
            f"{where} does not return a pair: return what it returns otherwise, and a dict of the features"
        )
    output, features = result
    for name in names:
        feature = features.get(name) if isinstance(features, Mapping) else None
        shape = getattr(feature, "shape", None)
        if feature is None or shape is None or len(shape) not in (2, 4) or shape[0] != num_images:
            found = f"has the shape {tuple(shape)}" if shape is not None else "is missing"
            raise ModelError(f"{where} returns features of which {name!r} {found}: give [B, h, w, C] or [B, C]")
        if not jnp.issubdtype(feature.dtype, jnp.floating):
            raise ModelError(f"{where} returns {name!r} as {feature.dtype}: give a floating-point type")
    return as_output(output, model, num_images), {name: features[name] for name in names}


def as_output(output: Any, model: nn.Module, num_images: int) -> ModelOutput:
    """Converts a model's output to a float32 `ModelOutput`. Raises ModelError, in one line, if it is neither that nor logits."""
    if not isinstance(output, ModelOutput):
        output = ModelOutput(output, output, None)
    expected = (num_images, getattr(model, "num_classes", None))
    for name, logits in output._asdict().items():
        if name == "distillation_logits" and logits is None:
            continue
        shape = getattr(logits, "shape", None)
        if shape is None or len(shape) != 2 or (expected[1] is not None and tuple(shape) != expected):
            actual = type(logits).__name__ if shape is None else f"an array of shape {tuple(shape)}"
            raise ModelError(
                f"{type(model).__name__} returned {actual} as {name}; return logits of shape {expected}, or a "
                "deit_jax.ModelOutput"
            )
        if not jnp.issubdtype(logits.dtype, jnp.floating):
            raise ModelError(f"{type(model).__name__} returned {logits.dtype} as {name}; return floating-point logits")
    return jax.tree.map(lambda logits: logits.astype(jnp.float32), output)


def _accepted(model: nn.Module, **kwargs: Any) -> dict[str, Any]:
    """Returns those of `kwargs` that the model's call accepts."""
    names, any_name = _parameters(type(model).__call__)
    return {name: value for name, value in kwargs.items() if any_name or name in names}


@functools.cache
def _parameters(function: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """Returns the names of a function's parameters, and whether it has a parameter **kwargs."""
    parameters = inspect.signature(function).parameters
    return frozenset(parameters), any(it.kind is it.VAR_KEYWORD for it in parameters.values())


def is_distilled(model: nn.Module) -> bool:
    """Whether the model has a distillation token and a head on it."""
    return bool(getattr(model, "distilled", False))


def fusion_of(model: nn.Module) -> str:
    """Returns how a distilled model fuses its heads, one of `FUSIONS`; "class" for a model with one head."""
    return str(getattr(model, "fusion", "logits")) if is_distilled(model) else "class"


def fixed_image_size(model: nn.Module) -> int | None:
    """Returns the size in pixels that the model's images must have; None: any."""
    size = getattr(model, "image_size", None)
    return None if size is None else int(size)


def input_size(model: nn.Module) -> tuple[int, int]:
    """Returns rows and columns of the model's images; 224 if it takes any size."""
    side = fixed_image_size(model) or 224
    return side, side


def num_prefix_tokens(model: nn.Module) -> int:
    """Returns the number of tokens before a transformer's patch tokens (class and distillation token); 0 for a convnet."""
    return int(getattr(model, "num_prefix_tokens", 0))


def feature_widths(model: nn.Module) -> tuple[int, ...]:
    """Returns the widths of a model's features, by block (a transformer) or stage (a convnet); () if unknown."""
    return tuple(getattr(model, "feature_widths", ()))


def feature_names(model: nn.Module) -> tuple[str, ...]:
    """Returns the names of the features that a model's call gives; () for a model that gives none."""
    return tuple(getattr(model, "feature_names", ()))


def family(model: nn.Module | type[nn.Module]) -> str:
    """Returns the family of a model, which determines its weights layouts; "": only this package's own layout."""
    return str(getattr(model, "family", ""))


def inference_form(model: nn.Module, variables: Variables) -> tuple[nn.Module, Variables]:
    """Returns an equivalent frozen network that is faster; equal up to the order of float operations."""
    return _call_optional(model, "inference_form", variables, default=(model, variables))


def fused_form(model: nn.Module) -> nn.Module:
    """Returns an equivalent frozen model, for `on_mesh`, that accelerators may compute faster; equal up to rounding."""
    return _call_optional(model, "fused_form", default=model)


def portable_form(model: nn.Module, variables: Variables) -> tuple[nn.Module, Variables]:
    """Returns an equivalent network in float32 and in operations that every platform has."""
    model = with_dtype(model, jnp.float32)
    return _call_optional(model, "portable_form", variables, default=(model, variables))


def on_mesh(model: nn.Module, mesh: Mesh) -> nn.Module:
    """Returns `model` specialised for batches split over `mesh`, whose devices may be abstract."""
    return _call_optional(model, "on_mesh", mesh, default=model)


def attention_on(model: nn.Module, mesh: Mesh) -> tuple[str, str] | None:
    """Returns the name of the attention that `on_mesh` takes, and why it does; None for a model that does not say."""
    return _call_optional(model, "attention_on", mesh, default=None)


def resize_variables(model: nn.Module, variables: Variables, method: str = "bicubic") -> Variables:
    """Resizes variables of the same model at another image size to this one's; a no-op if none depends on the size.

    method: for position embeddings, see `resize_position_embedding`.
    """
    return _call_optional(model, "resize_variables", variables, method, default=variables)


def check_training(model: nn.Module, platform: str, image_size: int) -> None:
    """Raises ValueError, in one line, if the model cannot be trained on devices of this platform ("cpu", "gpu" or "tpu")."""
    _call_optional(model, "check_training", platform, image_size, default=None, passing=ValueError)


def _call_optional(model: nn.Module, name: str, *args: Any, default: Any, passing: type[Exception] = UserError) -> Any:
    method = getattr(model, name, None)
    with code_of(type(model), name, passing):
        return default if method is None else method(*args)


def has_field(model: nn.Module | type[nn.Module], name: str) -> bool:
    """Whether a model has a dataclass field of this name."""
    return name in getattr(model, "__dataclass_fields__", {})


def with_dtype(model: nn.Module, dtype: Any) -> nn.Module:
    """Returns the model computing in `dtype`; unchanged if it has no field `dtype`."""
    return model.clone(dtype=jnp.dtype(dtype)) if has_field(model, "dtype") else model
