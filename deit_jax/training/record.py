"""The record of a run in its workdir, `config.json`: written at its first start, compared at every later one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.config import SECTIONS, ConfigError, default_config
from deit_jax.config_model import absent_options
from deit_jax.config_record import BEFORE_IT_EXISTED, differing_fields
from deit_jax.data.identity import Identity, is_record_of_images
from deit_jax.data.sampling import selected_positions
from deit_jax.loss_kinds import loss_kind
from deit_jax.parallel.distributed import is_main_process
from deit_jax.plugins import import_recorded
from deit_jax.storage.files import UnreadableError
from deit_jax.storage.workdir import CONFIG, Workdir, WorkdirLike
from deit_jax.training.plan import Plan
from deit_jax.version import __version__

FORMAT = 2  # version of a workdir; 1 had no manifests. Changes that earlier versions can still read do not increase it

# Fields that may change when a run is resumed: they do not affect what is computed up to a step.
_FREE_TO_CHANGE = (
    "log.", "checkpoint.", "evaluation.", "parallel.", "published.", "train.max_steps", "teacher.recipe.",
    "data.path", "data.eval_split", "data.max_eval_images", "data.num_threads", "data.num_workers", "data.prefetch_batches",
    "data.batches_ahead", "data.index", "data.copies_gib", "data.on_bad_image", "data.on_change", "teacher.on_change",
    "on_nonfinite", "unlabelled.path", "teacher.answers_timeout",
    "plugins",  # the fields with the names that they register may not change
    "augment.max_group_size",  # the resulting group size is recorded and kept
)  # fmt: skip
_ATTENTION = "model.attention"
# Fields that may be unset; the resulting values are recorded.
_MIXING = ("augment.group_size", "augment.groups_per_block")


def check_workdir(workdir: WorkdirLike, config: ConfigDict, identity: Identity) -> dict[str, Any] | None:
    """Checks that a workdir does not hold another run; writes nothing. Returns its record, None for a new workdir.

    A field that the record lacks may have its default, or the value that the run started with: see `as_begun`.

    Raises ConfigError that names the differing fields, the differing classes, or the images added or removed since the first
    start (unless config.data.on_change is "continue"), and the errors of `read_config`.
    """
    workdir = Workdir.at(workdir)
    if not workdir.has(CONFIG):
        return None
    record = read_config(workdir, plugins=False)  # the configuration's plugins have been imported
    if changed := _changed_fields(record, config):
        raise ConfigError(
            f"{workdir} holds a run of another configuration, which differs in {', '.join(changed[:5])}"
            f"{' and more' if len(changed) > 5 else ''}; use another --workdir, or the values in {workdir.address(CONFIG)}"
        )
    recorded, resolved = record["config"], record["resolved"]
    if (other := identity.other_classes(resolved)) is not None:
        raise ConfigError(
            f"{workdir} was trained on other classes ({other}): use the original class names, or another --workdir"
        )
    # The evaluation split or limit may be changed on purpose; if it is the same, its images must be the same.
    own = config.data.eval_split, config.data.max_eval_images
    same_split = tuple(_value(recorded, f"data.{name}") for name in ("eval_split", "max_eval_images")) == own
    changes = identity.other_images(resolved, evaluation=same_split)
    natural = selected_positions(identity.train.images) // config.train.batch_size
    if "data" not in resolved and natural != resolved["steps_per_epoch"]:  # recorded without images
        changes.append(f"{resolved['steps_per_epoch']:,} steps per epoch then, {natural:,} now")
    if not changes:
        return record
    if config.data.on_change == "stop":
        raise ConfigError(
            f"the data of {workdir} has changed since its first start ({'; '.join(changes)}): restore it, or continue with the "
            "present data by --config.data.on_change=continue, which keeps the steps per epoch and the schedule"
        )
    console.warn(
        f"the data has changed since the first start ({'; '.join(changes)}): the run continues with the present data"
    )
    return record


def _changed_fields(record: Mapping[str, Any], config: ConfigDict) -> list[str]:
    """Returns the dotted names of the fields that differ from those of a record and may not."""
    # A section that an earlier version did not have is one without fields.
    recorded = {name: {} for name in SECTIONS if name} | record["config"]
    fields = json.loads(config.to_json_best_effort())
    defaults = json.loads(default_config().to_json_best_effort())
    mixing = dict(zip(_MIXING, recorded_mixing(record) or (), strict=False))

    def may_differ(name: str) -> bool:
        field, now = name.removesuffix("."), _value(fields, name)
        if name in _IDENTIFIED and now and _value(recorded, name):
            return _is_known(record["resolved"], name)  # what is there is compared by its content
        if name in _MIXING and now in (None, mixing.get(name)):
            return True  # derived as before, or given as derived before
        if name == _ATTENTION and _keeps_attention(recorded, config):
            return True  # an earlier default, see `as_begun`
        if _is_added_to_loss(name, recorded, config):
            return True
        if field not in BEFORE_IT_EXISTED or _has(recorded, field):
            return False
        return now in (_value(defaults, field), _as_json(BEFORE_IT_EXISTED[field]))  # a later field, see `as_begun`

    return [
        name
        for name in differing_fields(recorded, fields)
        if not _free_to_change(name, config) and not may_differ(name)
    ]


def as_begun(config: ConfigDict, record: Mapping[str, Any] | None) -> ConfigDict:
    """Returns `config`, accepted by `check_workdir`, with the values that the run started with for fields not in its record.

    So a run of an earlier version keeps its numerics where a later field has another default. Prints the fields that this
    changes. Fields that may change during a run keep their values.
    """
    if record is None:
        return config
    before = {name: BEFORE_IT_EXISTED[name] for name in _not_recorded(record["config"], config)}
    if _keeps_attention(record["config"], config) and not _free_to_change(_ATTENTION, config):
        before[_ATTENTION] = _value(record["config"], _ATTENTION)
    own = json.loads(config.to_json_best_effort())
    changed = [name for name, value in before.items() if _value(own, name) != _as_json(value)]
    if not changed:
        return config
    values = ", ".join(f"config.{name}={before[name]}" for name in changed)
    console.say(f"the run was started by an earlier version of deit_jax and keeps its settings: {values}")
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({name: before[name] for name in changed})
    return config


def _keeps_attention(recorded: Mapping[str, Any], config: ConfigDict) -> bool:
    """Whether a run with the earlier default of model.attention is resumed with the present one, which it then does not take."""
    return config.model.attention == "auto" and _value(recorded, _ATTENTION) == BEFORE_IT_EXISTED[_ATTENTION]


def _is_added_to_loss(name: str, recorded: Mapping[str, Any], config: ConfigDict) -> bool:
    """Returns whether a registered loss got this field after the run started, and the field has its default."""
    section, _, field = name.partition(".")
    loss = loss_kind(section)
    if loss is None or field not in loss.fields or not isinstance(recorded.get(section), Mapping):
        return False
    return field not in recorded[section] and config[section][field] == loss.fields[field]


def _not_recorded(recorded: Mapping[str, Any], config: ConfigDict) -> list[str]:
    """Returns the fields that the record of a run lacks, except those that may change."""
    return [name for name in BEFORE_IT_EXISTED if not _has(recorded, name) and not _free_to_change(name, config)]


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def recorded_mixing(record: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns group size and groups per block of a run; versions that did not derive them recorded only the configured ones."""
    resolved, configured = record["resolved"], record["config"].get("augment", {})
    sizes = [resolved.get(name, configured.get(name)) for name in ("group_size", "groups_per_block")]
    return None if None in sizes else (sizes[0], sizes[1])


# The path of a network or of answers may change; its identity may not, and is recorded.
_IDENTIFIED = ("teacher.weights", "model.weights", "teacher.answers", "teacher.record")


def _is_known(resolved: Mapping[str, Any], place: str) -> bool:
    known = {"teacher.weights": "teachers", "model.weights": "initial", "teacher.answers": "answers"}
    return place == "teacher.record" or bool(resolved.get(known[place]))


def claim_workdir(
    workdir: WorkdirLike,
    config: ConfigDict,
    plan: Plan,
    identity: Identity,
    *,
    checked: dict[str, Any] | None = None,
    teachers: Sequence[Mapping[str, Any]] = (),
    initial: str = "",
    answers: Mapping[str, Any] | None = None,
    attention: str | None = None,
) -> None:
    """Writes `config.json`, after all checks and with the workdir locked.

    Leaves out fields that the record of an earlier version lacks, so that they keep the meaning that they had then.

    checked: the result of `check_workdir`. teachers: the result of `check_teacher`. initial: the digest of the initial weights;
    "": those of `checked`, or none. answers: the result of `check_answers`. attention: what computes the model's attention; that
    of `checked`, if any, stays. Raises ConfigError if another run has started here since, or if the file cannot be written.
    """
    if not is_main_process():
        return
    workdir = Workdir.at(workdir)
    if checked != (read_config(workdir, plugins=False) if workdir.has(CONFIG) else None):
        raise ConfigError(f"another run was started in {workdir} at the same time: use another --workdir, or try again")
    resolved = {
        "num_classes": plan.num_classes,
        "image_size": plan.image_size,
        "compute_dtype": plan.compute_dtype,
        "steps_per_epoch": plan.steps_per_epoch,
        "group_size": plan.order.group_size,
        "groups_per_block": plan.order.groups_per_block,
        **identity.record(),
    }
    if plan.unlabelled is not None:
        resolved["unlabelled_rows"] = plan.unlabelled.batch_size
    before = {} if checked is None else checked["resolved"]
    if attention := before.get("attention", attention):
        resolved["attention"] = attention
    if teachers:
        resolved["teachers"] = list(teachers)
    if answers:
        resolved["answers"] = dict(answers)
    if initial or "initial" in before:
        resolved["initial"] = {"weights": initial} if initial else before["initial"]
    fields = json.loads(config.to_json_best_effort())
    for name in [] if checked is None else _not_recorded(checked["config"], config):
        section, _, field = name.rpartition(".")
        del (_value(fields, section) if section else fields)[field]
    record = {"format": FORMAT, "version": __version__, "config": fields, "resolved": resolved}
    workdir.write_json(CONFIG, record, error=ConfigError)


def _free_to_change(name: str, config: ConfigDict) -> bool:
    if name in absent_options(config):  # earlier versions ignored these fields
        return True
    if config.data.train_crop == "center" and name in ("evaluation.protocol", "evaluation.crop_ratio"):
        return False  # they also determine the training crop
    return any(name == free or (free.endswith(".") and name.startswith(free)) for free in _FREE_TO_CHANGE)


def _has(fields: Mapping[str, Any], name: str) -> bool:
    section, _, field = name.rpartition(".")
    return field in (_value(fields, section) or {} if section else fields)


def _value(fields: Mapping[str, Any], name: str) -> Any:
    """Returns the value of a dotted name; None if there is none."""
    value: Any = fields
    for part in name.rstrip(".").split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def read_config(workdir: WorkdirLike, *, plugins: bool = True) -> dict[str, Any]:
    """Returns the record of a run: {"config": the configuration, "resolved": the values derived from it and the data, ...}.

    plugins: import config.plugins as the run did, so that the names in its configuration are known.

    Raises ConfigError if the file does not exist or is damaged, if a plugin cannot be imported, or with the later version of
    deit_jax that made the workdir.
    """
    workdir = Workdir.at(workdir)
    path = workdir.address(CONFIG)
    try:
        record = workdir.read_json(CONFIG)
    except UnreadableError as error:
        raise ConfigError(f"{error}; {_RESTORE}") from error
    if record is None and not workdir.is_there():
        raise ConfigError(f"{workdir}: no such file or folder")
    if record is None and not workdir.has(CONFIG):
        raise ConfigError(f"{path} does not exist: {workdir} is not the --workdir of a training run")
    if not isinstance(record, dict) or not {"config", "resolved"} <= set(record):
        raise ConfigError(f"{path} is not the record of a training run: {workdir} is not the --workdir of one")
    if isinstance(number := record.get("format"), int) and number > FORMAT:
        raise ConfigError(
            f"{workdir} was made by deit_jax {record.get('version', 'of a later version')}, whose format this version "
            f"({__version__}) does not know: use that version, or another --workdir"
        )
    if (wrong := _wrong_part(record)) is not None:
        raise ConfigError(f"{path} is damaged (invalid {wrong}); {_RESTORE}")
    if plugins:
        import_recorded(record, workdir.path)
    return record


_RESTORE = "restore it, or start from scratch in another --workdir"


def _wrong_part(record: Mapping[str, Any]) -> str | None:
    """Returns the first part of a record that does not have the type that a run writes; None if all do."""
    resolved = record["resolved"] if isinstance(record["resolved"], Mapping) else {}
    data = resolved.get("data", {})
    parts = {
        "format": isinstance(record.get("format", 1), int),
        "config": isinstance(record["config"], Mapping) and {"model", "train", "data"} <= set(record["config"]),
        "resolved": {"num_classes", "image_size", "compute_dtype", "steps_per_epoch"} <= set(resolved),
        "steps_per_epoch": isinstance(steps := resolved.get("steps_per_epoch"), int) and steps > 0,
        "class_names": isinstance(names := resolved.get("class_names", []), list)
        and all(isinstance(name, str) for name in names),
        "data": isinstance(data, Mapping) and all(map(is_record_of_images, data.values())),
    }
    return next((name for name, sound in parts.items() if not sound), None)


def scheduled_steps(record: Mapping[str, Any]) -> int:
    """Returns the number of steps in the schedule of a run."""
    return record["config"]["train"]["epochs"] * record["resolved"]["steps_per_epoch"]
