"""Model FLOPs: the arithmetic that a network's definition asks for, whatever a compiler makes of it."""

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
from deit_jax.models.protocol import has_field, initial_variables

KINDS = ("convolution", "dense", "attention")  # attention: products of two activations, both with a batch axis


class TrainFlops(NamedTuple):
    """FLOPs of one training image: of the student, forwards and backwards, and of the frozen teacher, forwards alone."""

    student: int
    teacher: int

    @property
    def total(self) -> int:
        """Of the whole step."""
        return self.student + self.teacher


def forward_flops(model: nn.Module, image_size: int) -> int:
    """FLOPs (2 x multiply-adds of convolutions and matrix products) of the forward pass of one image of `image_size` pixels.

    The same for every formulation: grouped convolutions count as such, attention as its two products, recomputation not at all,
    and the last block in full, as it is usually counted, although the heads read one or two of its tokens.
    """
    return sum(forward_flops_by_kind(model, image_size).values())


def forward_flops_by_kind(model: nn.Module, image_size: int) -> dict[str, int]:
    """`forward_flops` by KINDS. Nothing is computed: shapes alone are traced."""
    if isinstance(model, Ensemble):
        return dict(sum((Counter(forward_flops_by_kind(member, image_size)) for member in model.members), Counter()))
    # A pack of groups would add products, a fused kernel hide them; BatchNorm and recomputation have none but take time to trace.
    # Scanned blocks are all alike: of unrolled ones the last computes no more than the heads read.
    plain: dict[str, Any] = dict(grouped_conv="native", attention="xla", remat="none", scan_blocks=True, folded=True)
    model = model.clone(**{name: value for name, value in plain.items() if has_field(model, name)})
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    # Initialising runs the network once and adds random numbers, which are no products: one trace instead of two.
    return count_flops(functools.partial(initial_variables, model), jax.random.key(0), image)


def train_flops(student: nn.Module, teacher: nn.Module | None, image_size: int) -> TrainFlops:
    """FLOPs of one image's training step: three forward passes of the student (the backward pass is two), one of the teacher.

    The gradient of the first layer's input, which nobody needs, is counted with the rest, as is usual.
    """
    return TrainFlops(
        3 * forward_flops(student, image_size), 0 if teacher is None else forward_flops(teacher, image_size)
    )


def count_flops(function: Callable[..., Any], *arguments: Any) -> dict[str, int]:
    """FLOPs of a function of (possibly abstract) arrays by KINDS: what its convolutions and matrix products take.

    Raises ValueError for a `while` loop with products in it, whose number of turns is not known.
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
        elif name == "cond":  # one branch runs: the dearest
            branches = [_count(branch.jaxpr) for branch in equation.params["branches"]]
            dearest = max(branches, key=lambda counts: counts.total())
            total += dearest
        else:
            inner = sum((_count(sub) for sub in _jaxprs(equation)), Counter())
            if inner and name == "while":
                raise ValueError("cannot count the products of a while loop: it does not say how often it turns")
            turns = equation.params["length"] if name == "scan" else 1
            total += Counter({kind: turns * flops for kind, flops in inner.items()})
    return total


def _shape(value: core.Var | core.Literal) -> tuple[int, ...]:
    assert isinstance(value.aval, jax.core.ShapedArray)
    return value.aval.shape


def _jaxprs(equation: core.JaxprEqn) -> list[core.Jaxpr]:
    """The programs inside an equation (a jitted or rematerialised function, a loop's body); of a custom derivative the primal."""
    if equation.primitive.name.startswith("custom_"):
        names = [name for name in ("call_jaxpr", "fun_jaxpr") if name in equation.params]
        values = [equation.params[name] for name in names]
    else:
        values = list(equation.params.values())
    found = [getattr(value, "jaxpr", value) for value in values]  # ClosedJaxpr to Jaxpr
    return [value for value in found if isinstance(value, core.Jaxpr)]
