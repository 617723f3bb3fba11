"""The kinds of loss, and what a configuration needs to know of each. Their formulas are in training/losses.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class LossKind:
    """A value of config.distillation.kind."""

    name: str
    needs_teacher: bool = False
    teaches_token: bool = False  # trains the head of the distillation token, if the model has one
    needs_token: bool = False  # only for models with a distillation token
    uses: tuple[str, ...] = ()  # the fields of config.distillation that it reads, besides the kind
    summary: str = ""  # a description with its fields by name; "": its name and all fields
    # Builds the loss from the values of its section; None: training.losses.DistillationLoss, from config.distillation.
    build: Callable[..., Any] | None = None
    fields: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # the defaults of its own section, config.<name>

    def described(self, values: Mapping[str, Any]) -> str:
        """Describes the loss with these values of its section."""
        if self.summary:
            return self.summary.format(**values)
        shown = (f"{name} {f'{value:g}' if isinstance(value, float) else value}" for name, value in values.items())
        return ", ".join((self.name if self.needs_teacher else f"no teacher: {self.name}", *shown))


_KINDS = {
    kind.name: kind
    for kind in (
        LossKind("none"),
        LossKind("soft", needs_teacher=True, teaches_token=True, uses=("alpha", "tau", "kl", "kl_mean"),
            summary="soft, alpha {alpha:g}, tau {tau:g}, kl {kl}, mean over {kl_mean}"),
        LossKind("hard", needs_teacher=True, teaches_token=True, uses=("alpha",), summary="hard, alpha {alpha:g}"),
        LossKind("labels", teaches_token=True, needs_token=True, uses=("alpha",),
            summary="no teacher: labels for both heads, alpha {alpha:g}"),
        LossKind("labels_mean", teaches_token=True, needs_token=True,
            summary="no teacher: labels for the mean of both heads' logits"),
        LossKind("labels_class", needs_token=True, summary="no teacher: labels for the class head alone"),
    )
}  # fmt: skip


def loss_kinds() -> tuple[str, ...]:
    """Returns the names of all kinds, in the order of registration."""
    return tuple(_KINDS)


def loss_kind(name: str) -> LossKind | None:
    """Returns the kind with that name, or None. Accepts any type: it is called before a configuration is validated."""
    return _KINDS.get(name) if isinstance(name, str) else None


def own_kinds() -> tuple[LossKind, ...]:
    """Returns the registered kinds that are not the package's; each has its own section in the configuration."""
    return tuple(kind for kind in _KINDS.values() if kind.build is not None)


def kinds_with_teacher() -> tuple[str, ...]:
    """Returns the names of the kinds that need a teacher."""
    return tuple(name for name, kind in _KINDS.items() if kind.needs_teacher)


def add(kind: LossKind) -> None:
    """Adds a kind without checks: see `deit_jax.config_losses.register_loss`."""
    _KINDS[kind.name] = kind
