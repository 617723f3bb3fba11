"""How often a recorded teacher decides for the images' own classes, so that a bad teacher is noticed before a student is trained.

Each shard holds the counts of its rows. The figures of a folder follow from the sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FEWEST = 200  # rows with a single class, below which the larger class of mixed targets is compared instead
_UNLABELLED = -1
_MIXED_BELOW = 1e-3  # share of a second class in the target, below which a row counts as not mixed
# A teacher that names one class more often than these shares may have collapsed.
_COLLAPSED, _TIMES_THE_LABELS = 0.5, 2
# Or if it names the other classes in less than this part of the rows that have them, of which there must be some.
_OTHERS, _FEWEST_OTHERS = 0.1, 30
_UNBALANCED = (
    0.6  # share of the most frequent class, above which a useful teacher may be right less often than that class occurs
)

Figures = dict[str, Any]  # see `Decisions.figures`


def target_classes(targets: jax.Array, label_smoothing: float) -> jax.Array:
    """Returns the class of each row of targets float32[B, K], as int32[B].

    k: class k alone; K + k: class k, mixed with a smaller share of another class; -1: an unlabelled row.
    """
    num_classes = targets.shape[-1]
    largest, share = jnp.argmax(targets, axis=-1), jnp.max(targets, axis=-1)
    alone = 1 - label_smoothing + label_smoothing / num_classes
    mixed = share < alone - _MIXED_BELOW * (1 - label_smoothing)
    return jnp.where(share > 0, largest + mixed * num_classes, _UNLABELLED).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Decisions:
    """Counts over labelled rows.

    Attributes:
        decided: int64[K], how often the teacher decides for each class.
        labels: int64[K], how often each class is the (larger) class of the target.
        right: rows in which the two agree.
        single, single_right: the same for rows whose target has a single class: all of them, and those that agree.
    """

    decided: np.ndarray
    labels: np.ndarray
    right: int = 0
    single: int = 0
    single_right: int = 0

    @classmethod
    def none(cls, num_classes: int) -> Decisions:
        """Returns counts of no rows."""
        return cls(np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64))

    @classmethod
    def of(cls, decisions: np.ndarray, classes: np.ndarray, num_classes: int) -> Decisions:
        """Counts rows. decisions: the teacher's classes; classes: from `target_classes`; integers of one shape."""
        labelled = classes >= 0
        decisions, classes = decisions[labelled].astype(np.int64), classes[labelled]
        label, single = classes % num_classes, classes < num_classes
        right = decisions == label
        return cls(
            np.bincount(decisions, minlength=num_classes),
            np.bincount(label, minlength=num_classes),
            int(right.sum()),
            int(single.sum()),
            int((right & single).sum()),
        )

    def __add__(self, other: Decisions) -> Decisions:
        return Decisions.from_array(self.array() + other.array())

    def array(self) -> np.ndarray:
        """Returns all counts as int64[2 K + 3]."""
        return np.concatenate([self.decided, self.labels, [self.right, self.single, self.single_right]])

    @classmethod
    def from_array(cls, counts: np.ndarray) -> Decisions:
        """Returns the counts of `array`."""
        decided, labels, rest = np.split(np.asarray(counts, np.int64), [len(counts) // 2 - 1, len(counts) - 3])
        return cls(decided, labels, *map(int, rest))

    def figures(self, class_names: Sequence[str]) -> Figures | None:
        """Returns what is shown to users, in JSON types; None without any row. Percentages are of labelled rows.

        rows: labelled rows. compared: "all" rows, the "single" ones (with a target of a single class) or, if these are too few,
        the "larger" class of the targets of all rows. compared_rows: their number. right_percent: where the teacher decides for
        that class. decision, decision_percent: the most frequent decision. label_percent: the most frequent class of the targets.
        """
        rows = int(self.labels.sum())
        if not rows:
            return None
        compared = "all" if self.single == rows else "single" if self.single >= FEWEST else "larger"
        right, of = (self.right, rows) if compared == "larger" else (self.single_right, self.single)
        top = int(self.decided.argmax())
        return {
            "rows": rows,
            "compared": compared,
            "compared_rows": of,
            "right_percent": round(100 * right / of, 2),
            "decision": class_names[top] if top < len(class_names) else f"class {top}",
            "decision_percent": round(100 * int(self.decided[top]) / rows, 2),
            "label_percent": round(100 * int(self.labels.max()) / rows, 2),
        }


def described_figures(figures: Mapping[str, Any]) -> str:
    """Returns one line: how often the teacher is right, and its most frequent decision."""
    return (
        f"the teacher decides for {_rightness(figures)}; its most frequent decision is "
        f'"{figures["decision"]}", {figures["decision_percent"]:.1f} %'
    )


def short_figures(figures: Mapping[str, Any]) -> str:
    """Returns how often the teacher is right, as a part of a line."""
    return f"which decides for {_rightness(figures)}"


def _rightness(figures: Mapping[str, Any]) -> str:
    right, rows = f"{figures['right_percent']:.1f} %", f"{figures['compared_rows']:,}"
    return {
        "all": f"the image's class in {right} of {rows} training rows",
        "single": f"the image's class in {right} of the {rows} training rows that are not mixed with another class",
        "larger": f"the larger class of the target in {right} of {rows} training rows, nearly all of which are mixed",
    }[figures["compared"]]


def warning_of(figures: Mapping[str, Any]) -> str | None:
    """Returns one line if the teacher seems useless; else None.

    It does if it names one class in more than half of the rows and more than twice as often as any class occurs, or names the
    other classes less than a tenth as often as they occur. It also does if it is right less often than a constant answer would
    be, unless one class occurs so often that this says little.
    """
    right, decided, label = (figures[f"{name}_percent"] / 100 for name in ("right", "decision", "label"))
    check = "check its images' normalisation, its classes and their order, and its weights"
    nearly_constant = 1 - decided < _OTHERS * (1 - label) and (1 - label) * figures["rows"] >= _FEWEST_OTHERS
    if nearly_constant or decided > max(_COLLAPSED, _TIMES_THE_LABELS * label):
        return (
            f'the teacher decides for "{figures["decision"]}" in {100 * decided:.1f} % of the rows, while no class has more than '
            f"{100 * label:.1f} % of them: {check}"
        )
    if right < label < _UNBALANCED and figures["compared_rows"] >= FEWEST:
        return (
            f"the teacher is right in {100 * right:.1f} % of the rows, less often than the most frequent class occurs "
            f"({100 * label:.1f} %): {check}"
        )
    return None
