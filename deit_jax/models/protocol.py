"""What a model is to this package, and what it may say about itself.

A model is a `flax.linen.Module` with a field `num_classes` and the call

    __call__(images, *, train=False, positions=None) -> logits float32[B, num_classes], or `ModelOutput`

images: normalised float[B, H, W, 3]. train: whether dropout draws and BatchNorm uses the batch's statistics. positions: int32[B],
each image's place in the global batch, from which `Dropout` draws; None in evaluation. A call without `train` or `positions` is
not given them. A model may have the collections "params" and "batch_stats", of floating-point variables, and in training draw
from the random stream "dropout".

All else is optional. Fields of these names are set from the configuration where a model has them:

    image_size      pixels; a model with this field takes images of that size only, one without it takes any size
    dtype           the type to compute in
    drop_path_rate, dropout_rate, fusion, attention, ...   the options of `config.model`; any other by `config.model.overrides`

and these attributes, properties and methods answer questions, which the functions below ask:

    distilled                     True: it has a distillation token, and returns a `ModelOutput` with both heads' logits
    fusion                        how it fuses them: one of `FUSIONS`
    num_prefix_tokens             tokens in front of the patches' tokens
    feature_widths                widths of its features, block by block or stage by stage
    family                        which weights files it can be read from and written to ("vit", "regnet"; weights/families.py)
    inference_form(variables)     (model, variables) that compute the same faster, for evaluation only
    portable_form(variables)      (model, variables) in operations that every platform has
    on_mesh(mesh)                 the model with what depends on devices chosen for batches split over a mesh
    resize_variables(variables, method)   variables of this model at another image size, fitted to this one's
    check_training(platform, image_size)  raises ValueError if it cannot be trained there
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deit_jax.errors import UserError, raised_outside
from deit_jax.models.dropping import RNG_NAME
from deit_jax.models.output import ModelOutput

Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}, what model.apply takes


class ModelError(UserError):
    """A registered model raises an exception, or returns something else than the protocol says. The message is one line."""


@contextlib.contextmanager
def code_of(module: type[nn.Module], what: str = "its call", passing: type[Exception] = UserError) -> Iterator[None]:
    """Turns what a model from outside of the package raises into a ModelError, except `passing`.

    Faults of the package's own models stay as they are.
    """
    try:
        yield
    except (UserError, passing):
        raise
    except Exception as error:
        if not is_from_outside(module):
            raise
        raise ModelError(
            f"the model {module.__name__}: {what} raises {raised_outside(error, _file_of(module))}"
        ) from error


def _file_of(module: type[nn.Module]) -> str:
    try:
        return inspect.getfile(module)
    except (TypeError, OSError):  # of an interactive session
        return ""


def is_from_outside(module: type[nn.Module]) -> bool:
    """Whether a model's class is not one of this package."""
    return not module.__module__.startswith("deit_jax.")


def initial_variables(model: nn.Module, key: jax.Array, images: jax.Array) -> Variables:
    """Random variables of any model, for images as of `classify`. Raises as `classify`."""
    with code_of(type(model)):
        return dict(model.init(key, images, **_known(model, train=False, positions=None)))


def check_outputs(model: nn.Module, image_size: int, *, train: bool | None = None) -> None:
    """Raise ModelError, in one line, if a model from outside does not do what the protocol says. Nothing is computed.

    train: as of `train_outputs`, whose call is traced too; None: it is not.
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
    if strange := sorted(set(variables) - {"params", "batch_stats"}):
        raise ModelError(
            f"{where} has variables in the collection {strange[0]!r}: give it params and batch_stats alone"
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
        before, after = (
            jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
            for tree in (variables["batch_stats"], dict(updates.get("batch_stats", {})))
        )
        if before != after:
            raise ModelError(
                f"{where}: batch_stats after a training step differ from the first ones in names, shapes or types"
            )


def call(model: nn.Module, images: jax.Array) -> ModelOutput:
    """The output in evaluation of a bound module, e.g. of a submodule; see `classify`."""
    with code_of(type(model)):
        output = model(images, **_known(model, train=False, positions=None))
    return as_output(output, model, images.shape[0])


def classify(model: nn.Module, variables: Mapping[str, Any], images: jax.Array) -> ModelOutput:
    """The output of any model in evaluation, for normalised float[B, H, W, 3] images.

    Raises ModelError if a registered model raises, or returns something else than the protocol says.
    """
    with code_of(type(model)):
        output = model.apply(variables, images, **_known(model, train=False, positions=None))
    return as_output(output, model, images.shape[0])


def train_outputs(
    model: nn.Module, variables: Mapping[str, Any], images: jax.Array, *, train: bool, positions: jax.Array, rngs: Any
) -> tuple[ModelOutput, Mapping[str, Any]]:
    """The output of any model in a training step, and its new "batch_stats". train: False computes as in evaluation."""
    known = _known(model, train=train, positions=positions)
    with code_of(type(model)):
        output, updates = model.apply(variables, images, **known, rngs=rngs, mutable=["batch_stats"])
    return as_output(output, model, images.shape[0]), updates


def as_output(output: Any, model: nn.Module, num_images: int) -> ModelOutput:
    """What a model returned as a `ModelOutput` in float32. Raises ModelError, in one line, if it is neither that nor logits."""
    if not isinstance(output, ModelOutput):
        output = ModelOutput(output, output, None)
    wanted = (num_images, getattr(model, "num_classes", None))
    for name, logits in output._asdict().items():
        if name == "distillation_logits" and logits is None:
            continue
        shape = getattr(logits, "shape", None)
        if shape is None or len(shape) != 2 or (wanted[1] is not None and tuple(shape) != wanted):
            found = type(logits).__name__ if shape is None else f"an array of shape {tuple(shape)}"
            raise ModelError(
                f"{type(model).__name__} returned {found} as {name}; return logits of shape {wanted}, or a deit_jax.ModelOutput"
            )
        if not jnp.issubdtype(logits.dtype, jnp.floating):
            raise ModelError(f"{type(model).__name__} returned {logits.dtype} as {name}; return floating-point logits")
    return jax.tree.map(lambda logits: logits.astype(jnp.float32), output)


def _known(model: nn.Module, **given: Any) -> dict[str, Any]:
    """What of `given` the model's call has a parameter for."""
    named, any_name = _parameters(type(model).__call__)
    return {name: value for name, value in given.items() if any_name or name in named}


@functools.cache
def _parameters(function: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """The names of a function's parameters, and whether it takes any other name."""
    parameters = inspect.signature(function).parameters
    return frozenset(parameters), any(it.kind is it.VAR_KEYWORD for it in parameters.values())


def is_distilled(model: nn.Module) -> bool:
    """Whether the model has a distillation token, and a head of its own for it."""
    return bool(getattr(model, "distilled", False))


def fusion_of(model: nn.Module) -> str:
    """How a distilled model fuses its heads, one of `FUSIONS`; "class" for a model with one head."""
    return str(getattr(model, "fusion", "logits")) if is_distilled(model) else "class"


def fixed_image_size(model: nn.Module) -> int | None:
    """The size in pixels that the model's images must have; None: any."""
    size = getattr(model, "image_size", None)
    return None if size is None else int(size)


def num_prefix_tokens(model: nn.Module) -> int:
    """How many tokens a transformer has in front of those of its patches (class and distillation token); 0 for a convnet."""
    return int(getattr(model, "num_prefix_tokens", 0))


def feature_widths(model: nn.Module) -> tuple[int, ...]:
    """The widths of a model's features, block by block (a transformer) or stage by stage (a convnet); () if it does not say."""
    return tuple(getattr(model, "feature_widths", ()))


def family(model: nn.Module | type[nn.Module]) -> str:
    """Which weights files a model can be read from and written to; "": those with this package's own names only."""
    return str(getattr(model, "family", ""))


def inference_form(model: nn.Module, variables: Variables) -> tuple[nn.Module, Variables]:
    """A frozen network that computes the same faster; equal up to the order of float operations."""
    form = getattr(model, "inference_form", None)
    with code_of(type(model), "inference_form"):
        return (model, variables) if form is None else form(variables)


def portable_form(model: nn.Module, variables: Variables) -> tuple[nn.Module, Variables]:
    """The same network in float32 and in operations that every platform has."""
    model = with_dtype(model, jnp.float32)
    form = getattr(model, "portable_form", None)
    with code_of(type(model), "portable_form"):
        return (model, variables) if form is None else form(variables)


def on_mesh(model: nn.Module, mesh: Mesh) -> nn.Module:
    """`model` with what it leaves open chosen for batches split over `mesh`, whose devices need not be here."""
    choose = getattr(model, "on_mesh", None)
    with code_of(type(model), "on_mesh"):
        return model if choose is None else choose(mesh)


def resize_variables(model: nn.Module, variables: Variables, method: str = "bicubic") -> Variables:
    """Variables of the same model at another image size, fitted to this one's; as they are where the size changes none of them.

    method: of position embeddings, see `resize_position_embedding`.
    """
    resize = getattr(model, "resize_variables", None)
    with code_of(type(model), "resize_variables"):
        return variables if resize is None else resize(variables, method)


def check_training(model: nn.Module, platform: str, image_size: int) -> None:
    """Raises ValueError, in one line, if the model cannot be trained on devices of this platform ("cpu", "gpu" or "tpu")."""
    check = getattr(model, "check_training", None)
    if check is not None:
        with code_of(type(model), "check_training", passing=ValueError):
            check(platform, image_size)


def are_alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models are of one architecture, of any size, so that weights of one might start the other."""
    return type(one) is type(other)


def has_field(model: nn.Module | type[nn.Module], name: str) -> bool:
    """Whether a model has a field (of the dataclass that a Linen module is)."""
    return name in getattr(model, "__dataclass_fields__", {})


def with_dtype(model: nn.Module, dtype: Any) -> nn.Module:
    """The model computing in `dtype`; as it is if it does not let that be chosen."""
    return model.clone(dtype=jnp.dtype(dtype)) if has_field(model, "dtype") else model
