"""Configurations as config.json records them: what a field meant before it existed, and how two records differ."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from deit_jax.config import OPTIONS, default_config
from deit_jax.options import ALWAYS_RECORDED

# The values for fields that a config.json does not have, which may differ from today's defaults. test_record.py requires one for
# every field added since the first version, except in log, parallel and checkpoint, which do not affect numbers.
BEFORE_IT_EXISTED = {name: each.before for name, each in OPTIONS.items() if each.before is not ALWAYS_RECORDED}


def completed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested configuration of a config.json, with `BEFORE_IT_EXISTED` for missing fields, in JSON's types."""
    complete = {name: dict(value) if isinstance(value, Mapping) else value for name, value in fields.items()}
    for name, value in BEFORE_IT_EXISTED.items():
        section, _, field = name.rpartition(".")
        (complete.setdefault(section, {}) if section else complete).setdefault(field, json.loads(json.dumps(value)))
    return complete


def recorded_config(record: Mapping[str, Any]) -> ConfigDict:
    """Returns the configuration of a config.json, without the teacher's section, unlocked. See `completed`."""
    config = default_config().unlock()
    for section, fields in completed(record["config"]).items():
        if section == "teacher":
            continue
        if isinstance(fields, Mapping) and isinstance(config.get(section), ConfigDict):
            config[section].update(fields)
        else:
            config[section] = fields
    return config


def differing_fields(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns the dotted names of the fields in which two nested configurations differ. ~ equals the path of the home folder."""
    names: list[str] = []
    for key in sorted(set(first) | set(second)):
        one, other = first.get(key), second.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            names += differing_fields(one, other, f"{prefix}{key}.")
        elif one != other and _without_tilde(one) != _without_tilde(other):
            names.append(prefix + key + ("." if isinstance(one, Mapping) or isinstance(other, Mapping) else ""))
    return names


def _without_tilde(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    parts = value.split(",")  # there may be several teachers
    return ",".join(os.path.expanduser(part.strip()) if part.lstrip().startswith("~") else part for part in parts)
