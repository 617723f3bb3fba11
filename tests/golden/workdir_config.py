"""The configuration that a workdir's config.json records: --config=tests/golden/workdir_config.py:WORKDIR."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from deit_jax.config import default_config


def get_config(workdir: str) -> ConfigDict:
    """As recorded; fields that the version which wrote it did not have keep their defaults."""
    config = default_config().unlock()
    config.update(json.loads((Path(workdir) / "config.json").read_text())["config"])
    return config.lock()
