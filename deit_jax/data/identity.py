"""The data that a run depends on: class names, numbers of images, and digests of the images."""

from __future__ import annotations

import dataclasses
from typing import Any

from deit_jax.data.classes import difference
from deit_jax.data.sources import ImageSource, fingerprint_of
from deit_jax.data.unlabelled import labelled_of, unlabelled_of


@dataclasses.dataclass(frozen=True)
class Images:
    """The number of images of a split and their digest (see `fingerprint_of`; "" if the source has none)."""

    images: int
    digest: str

    @classmethod
    def of(cls, source: ImageSource) -> Images:
        """Creates the record of a source."""
        return cls(len(source), fingerprint_of(source))

    def change(self, recorded: dict[str, Any] | None, what: str) -> str | None:
        """Describes how these differ from the record of the same split; None if they do not, or nothing is recorded."""
        if recorded is None or recorded == dataclasses.asdict(self):
            return None
        if recorded["images"] != self.images:
            return f"{recorded['images']:,} {what} then, {self.images:,} now"
        if not (recorded["digest"] and self.digest):
            return None
        return f"{self.images:,} {what} as before, but not the same ones"


def is_record_of_images(value: Any) -> bool:
    """Whether a value from config.json has the form that `Identity.record` writes for a split."""
    fields = {"images": int, "digest": str}
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in fields.items())


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run records about its data."""

    class_names: tuple[str, ...]
    train: Images  # the labelled ones
    evaluation: Images
    unlabelled: Images | None = None

    @classmethod
    def of(cls, train_source: ImageSource, eval_source: ImageSource) -> Identity:
        """Creates the record of a run's two sources."""
        further = unlabelled_of(train_source)
        return cls(
            tuple(train_source.class_names),
            Images.of(labelled_of(train_source)),
            Images.of(eval_source),
            None if further is None else Images.of(further),
        )

    def record(self) -> dict[str, Any]:
        """For config.json: {"class_names", "data": {"train": {"images", "digest"}, "evaluation": ..., "unlabelled": ...}}."""
        data = {name: dataclasses.asdict(getattr(self, name)) for name in ("train", "evaluation")}
        if self.unlabelled is not None:
            data["unlabelled"] = dataclasses.asdict(self.unlabelled)
        return {"class_names": list(self.class_names), "data": data}

    def other_classes(self, recorded: dict[str, Any]) -> str | None:
        """Describes how the classes differ from those of a `record`; None if they do not, or the record has none."""
        names = recorded.get("class_names")
        return None if not names or list(names) == list(self.class_names) else difference(self.class_names, names)

    def other_images(self, recorded: dict[str, Any], *, evaluation: bool) -> list[str]:
        """Describes how the training images (labelled and not) differ from those of a `record`, and the evaluation images if
        `evaluation` is set."""
        then = recorded.get("data", {})
        changes = [self.train.change(then.get("train"), "training images")]
        if self.unlabelled is not None:
            changes.append(self.unlabelled.change(then.get("unlabelled"), "unlabelled images"))
        if evaluation:
            changes.append(self.evaluation.change(then.get("evaluation"), "evaluation images"))
        return [change for change in changes if change is not None]
