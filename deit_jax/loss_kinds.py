"""Which losses there are, and what a configuration needs to know of each. Their formulas are in training/losses.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class LossKind:
    """A value of config.distillation.kind."""

    name: str
    needs_teacher: bool = False
    # whether it trains the head of a distillation token, where the model has one
    teaches_token: bool = False
    needs_token: bool = False  # it is for models with a distillation token only
    uses: tuple[str, ...] = ()  # the fields of config.distillation that it reads, besides the kind
    summary: str = ""  # for people, with its fields by name; "": its name and all fields
    # makes the loss of its section's values; None: training.losses.DistillationLoss, of the section config.distillation
    build: Callable[..., Any] | None = None
    fields: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # of its own section, config.<name>: the defaults

    def described(self, values: Mapping[str, Any]) -> str:
        """What the loss does with these values of its section, for people."""
        if self.summary:
            return self.summary.format(**values)
        shown = (
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
        )
        return ", ".join((self.name if self.needs_teacher else f"no teacher: {self.name}", *shown))


_KINDS = {
    kind.name: kind
    for kind in (
        LossKind("none"),
        LossKind(
            "soft",
            needs_teacher=True,
            teaches_token=True,
            uses=("alpha", "tau", "kl", "kl_mean"),
            summary="soft, alpha {alpha:g}, tau {tau:g}, kl {kl}, mean over {kl_mean}",
        ),
        LossKind("hard", needs_teacher=True, teaches_token=True, uses=("alpha",), summary="hard, alpha {alpha:g}"),
        LossKind(
            "labels",
            teaches_token=True,
            needs_token=True,
            uses=("alpha",),
            summary="no teacher: labels for both heads, alpha {alpha:g}",
        ),
        LossKind(
            "labels_mean",
            teaches_token=True,
            needs_token=True,
            summary="no teacher: labels for the mean of both heads' logits",
        ),
        LossKind("labels_class", needs_token=True, summary="no teacher: labels for the class head alone"),
    )
}


def loss_kinds() -> tuple[str, ...]:
    """The names of all kinds, in the order of their registration."""
    return tuple(_KINDS)


def loss_kind(name: str) -> LossKind | None:
    """The kind of that name; None if there is none."""
    return _KINDS.get(name) if isinstance(name, str) else None  # asked before a configuration's types are checked


def own_kinds() -> tuple[LossKind, ...]:
    """The kinds that have a section of their own in the configuration: those that are not the package's."""
    return tuple(kind for kind in _KINDS.values() if kind.build is not None)


def kinds_with_teacher() -> tuple[str, ...]:
    """The names of the kinds that need a teacher."""
    return tuple(name for name, kind in _KINDS.items() if kind.needs_teacher)


def add(kind: LossKind) -> None:
    """Make a kind known. Checks nothing: see `deit_jax.config_losses.register_loss`."""
    _KINDS[kind.name] = kind
