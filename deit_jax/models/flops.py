"""Model FLOPs: the arithmetic of a network's definition, independent of how it is compiled."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from deit_jax.models.ensemble import Ensemble
from deit_jax.models.layers import RNG_NAME
from deit_jax.models.protocol import has_field, initial_variables

KINDS = ("convolution", "dense", "attention")  # attention: products of two activations, both with a batch axis


class TrainFlops(NamedTuple):
    """FLOPs per training image: the student's forward and backward pass, and the frozen teacher's forward pass."""

    student: int
    teacher: int

    @property
    def total(self) -> int:
        """FLOPs of the whole step, per image."""
        return self.student + self.teacher


def forward_flops(model: nn.Module, image_size: int, *, train: bool = False) -> int:
    """Returns the FLOPs (2 x multiply-adds of convolutions and matrix products) of one image's forward pass.

    Independent of the implementation: grouped convolutions count as such, attention as its two products, recomputation not at
    all, and the last block in full, as is customary, although the heads read only one or two of its tokens. train: without
    the patch tokens that a training step drops.
    """
    return sum(forward_flops_by_kind(model, image_size, train=train).values())


def forward_flops_by_kind(model: nn.Module, image_size: int, *, train: bool = False) -> dict[str, int]:
    """`forward_flops` by KINDS. Only traces shapes."""
    if isinstance(model, Ensemble):
        return dict(sum((Counter(forward_flops_by_kind(member, image_size)) for member in model.members), Counter()))
    # Packed groups would add products, a fused kernel would hide them; BatchNorm and recomputation only take time to trace.
    # Scanned blocks are all equal; of unrolled ones the last computes only what the heads read.
    plain: dict[str, Any] = dict(grouped_conv="native", attention="xla", remat="none", scan_blocks=True, folded=True)
    model = model.clone(**{name: value for name, value in plain.items() if has_field(model, name)})
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    if train and getattr(model, "patch_keep_rate", 1) < 1:
        keys = {"params": jax.random.key(0), RNG_NAME: jax.random.key(0)}
        return count_flops(functools.partial(model.init, train=True), keys, image)
    # Initialisation runs the network once; its random numbers contain no products. So one trace is enough.
    return count_flops(functools.partial(initial_variables, model), jax.random.key(0), image)


def train_flops(student: nn.Module, teacher: nn.Module | None, image_size: int) -> TrainFlops:
    """Returns the FLOPs of one image's training step: three forward passes of the student (the backward pass counts as two)
    and one of the teacher.

    The unused gradient of the first layer's input is counted, as is customary.
    """
    return TrainFlops(
        3 * forward_flops(student, image_size, train=True), 0 if teacher is None else forward_flops(teacher, image_size)
    )


def count_flops(function: Callable[..., Any], *arguments: Any) -> dict[str, int]:
    """Returns the FLOPs by KINDS of a function of (possibly abstract) arrays: its convolutions and matrix products.

    Raises ValueError for products in a `while` loop, whose number of iterations is unknown.
    """
    counts = _count(jax.make_jaxpr(function)(*arguments).jaxpr)
    return {kind: counts[kind] for kind in KINDS}


def _count(jaxpr: core.Jaxpr) -> Counter[str]:
    total: Counter[str] = Counter()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), (batch, _) = equation.params["dimension_numbers"]
            left, output = _shape(equation.invars[0]), _shape(equation.outvars[0])
            depth = math.prod(left[axis] for axis in contracted)
            total["attention" if batch else "dense"] += 2 * math.prod(output) * depth
        elif name == "conv_general_dilated":
            kernel, output = _shape(equation.invars[1]), _shape(equation.outvars[0])
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total["convolution"] += 2 * math.prod(output) * math.prod(kernel) // features
        elif name == "cond":  # one branch runs: count the most expensive
            branches = [_count(branch.jaxpr) for branch in equation.params["branches"]]
            most = max(branches, key=lambda counts: counts.total())
            total += most
        else:
            inner = sum((_count(sub) for sub in _jaxprs(equation)), Counter())
            if inner and name == "while":
                raise ValueError("cannot count the products of a while loop: its number of iterations is unknown")
            iterations = equation.params["length"] if name == "scan" else 1
            total += Counter({kind: iterations * flops for kind, flops in inner.items()})
    return total


def _shape(value: core.Var | core.Literal) -> tuple[int, ...]:
    assert isinstance(value.aval, jax.core.ShapedArray)
    return value.aval.shape


def _jaxprs(equation: core.JaxprEqn) -> list[core.Jaxpr]:
    """Returns the jaxprs in an equation (jitted or rematerialised functions, loop bodies); of a custom derivative the primal."""
    if equation.primitive.name.startswith("custom_"):
        values = [equation.params[name] for name in ("call_jaxpr", "fun_jaxpr") if name in equation.params]
    else:
        values = list(equation.params.values())
    values = [getattr(value, "jaxpr", value) for value in values]  # ClosedJaxpr to Jaxpr
    return [value for value in values if isinstance(value, core.Jaxpr)]
