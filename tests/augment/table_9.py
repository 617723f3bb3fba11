"""The augmentation of the paper's recipe, for modification in tests."""

from __future__ import annotations

from typing import Any

from configs import deit
from deit_jax.augment.pipeline import TrainAugmentation


def table_9(num_classes: int, **changes: Any) -> TrainAugmentation:
    """Table 9's with groups of 256 rows, except for the fields in `changes`."""
    section = deit.recipe("small").augment.to_dict() | {"group_size": 256}
    return TrainAugmentation.from_section(section, num_classes=num_classes, **changes)
