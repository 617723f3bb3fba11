"""Images of a run on their way to a log."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Some images that belong together, and a text for each."""

    name: str  # under which they are logged, e.g. "images/training"
    images: Sequence[np.ndarray]  # each uint8[H, W, 3]
    captions: Sequence[str]
    class_names: Sequence[str] = ()  # that the captions mention, in the order of the classes
