"""Everything that recorded answers depend on, with the names of the configuration, and the comparison of two such records."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from deit_jax.answers.files import AnswersError, Facts
from deit_jax.augment.plans import choose_plan
from deit_jax.config_record import differing_fields
from deit_jax.data.identity import Images
from deit_jax.data.joint_order import JointOrder
from deit_jax.data.sampling import TrainOrder
from deit_jax.data.sources import digest

# Of config.augment, what changes no image: the targets alone, or what the resolved sizes say already.
_NOT_OF_IMAGES = ("label_smoothing", "max_group_size")
# Of config.teacher, the fields of the teacher apart from its weights, which are compared by digest.
OF_TEACHER = ("name", "overrides", "variables", "mean", "std", "classes")
_LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "pillow", "simplejpeg", "numba")


def fingerprint(
    config: ConfigDict,
    images: Images,
    class_names: Sequence[str],
    order: TrainOrder | JointOrder,
    mesh: Mesh,
    *,
    image_size: int,
    compute_dtype: str,
    teacher: Mapping[str, Any] | None,
    unlabelled: Images | None = None,
) -> dict[str, Any]:
    """Returns what the answers to a run's training images depend on: nested, JSON types, with the names of the configuration.

    images, class_names: of the training set. order, image_size, compute_dtype: as the run resolved them. teacher: the identity of
    the teacher; None: not known, because recorded answers replace it. unlabelled: its unlabelled images, if it has any.

    Leaves out what concerns only the student: model, optimizer, learning rate, loss, moving average, number of epochs.
    """
    data, augment = config.data, config.augment
    fields: dict[str, Any] = {
        "seed": config.seed,
        "image_size": image_size,
        "compute_dtype": compute_dtype,
        "steps_per_epoch": order.steps_per_epoch,
        "data": {
            "images": images.images,
            "digest": images.digest,
            "class_names": digest("\0".join(class_names).encode()),
            "repeats": data.repeats,
            "train_crop": data.train_crop,
        },
        "augment": {name: value for name, value in augment.items() if name not in _NOT_OF_IMAGES},
        "train": {"batch_size": config.train.batch_size},
    }
    if unlabelled is not None and isinstance(order, JointOrder):
        own = {"images": unlabelled.images, "digest": unlabelled.digest, "rows": order.unlabelled.batch_size}
        fields["unlabelled"] = own
    fields["augment"] |= {"group_size": order.group_size, "groups_per_block": order.groups_per_block}
    operations = augment.rand_augment or augment.auto_augment or augment.color_jitter
    fields["augment"]["plan"] = choose_plan(augment.plan, mesh) if operations else "none"
    if data.train_crop == "random_resized":
        fields["data"] |= {"crop_scale": data.crop_scale, "crop_ratio": data.crop_ratio}
    elif data.train_crop == "padded":
        fields["data"]["crop_padding"] = data.crop_padding
    else:
        evaluation = config.evaluation
        fields["evaluation"] = {"protocol": evaluation.protocol, "crop_ratio": evaluation.crop_ratio}
    if teacher is not None:
        fields["teacher"] = teacher
    return json.loads(json.dumps(fields))


def teacher_fields(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields of the teacher that its answers depend on, in JSON types."""
    section = json.loads(config.teacher.to_json_best_effort())
    return {name: section[name] for name in (*OF_TEACHER, *(["each"] if section["each"] else []))}


def check_fingerprint(
    there: Facts, now: Mapping[str, Any], where: object, *, whose: str = "this run", then: str
) -> None:
    """Compares the fingerprint of answers with that of a run. then: what to do about a difference.

    If `now` has no "teacher", the teacher is not compared. Raises AnswersError with the name of the first field that differs.
    """
    before = {name: value for name, value in there.fingerprint.items() if name != "teacher" or "teacher" in now}
    differing = differing_fields(before, now)
    if not differing:
        return
    name = differing[0].rstrip(".")
    more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
    one, other = (_shown(_value(fields, name)) for fields in (before, now))
    raise AnswersError(f"{where} does not fit {whose}: {name}: the answers have {one}, {whose} {other}{more}; {then}")


def library_versions() -> dict[str, str]:
    """Returns the versions of the libraries that decode, resize and compute."""
    found = {}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def other_versions(there: Facts) -> str | None:
    """Returns a warning if the answers were recorded with other versions of these libraries, else None."""
    here = library_versions()
    other = [
        f"{name} {version}, here {here.get(name, 'none')}"
        for name, version in sorted(there.versions.items())
        if here.get(name) != version
    ]
    if not other:
        return None
    return (
        f"the answers were recorded with other versions of libraries ({'; '.join(other)}): crops are compared, but images "
        "after augmentation may differ in a last digit"
    )


def _value(fields: Mapping[str, Any], name: str) -> Any:
    value: Any = fields
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _shown(value: Any) -> str:
    text = "none" if value is None else json.dumps(value) if not isinstance(value, str) else value or '""'
    return text if len(text) <= 60 else f"{text[:60]}..."
