"""The latency of a Classifier for one image on this machine: in a batch of one, and padded to eight rows.

    python benchmarks/one_image.py                                 (DeiT-S)
    python benchmarks/one_image.py --model=deit_tiny_patch16_224 --rounds=50

Random weights at the model's own image size; the image is a uint8 array that is cropped and resized each time. Both variants are
measured alternately, after one call of each that compiles. The last line is one JSON object: medians in milliseconds, and the
median of the ratios of the rounds with their minimum and maximum.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

import jax
import numpy as np

from deit_jax import Classifier, create_model
from deit_jax.data.decoding import CenterCrop
from deit_jax.models import native_image_size


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    size = native_image_size(arguments.model)
    model = create_model(arguments.model)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, size, size, 3), np.float32))
    alone = Classifier(model, variables, crop=CenterCrop(size))
    filled_up = Classifier(model, variables, crop=CenterCrop(size))
    filled_up.batch_sizes = (filled_up.batch_size,)
    image = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)

    seconds: dict[Classifier, list[float]] = {alone: [], filled_up: []}
    for classifier in seconds:
        classifier(image)
    for number in range(arguments.rounds):
        for classifier in list(seconds)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            classifier(image)
            seconds[classifier].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(seconds[alone], seconds[filled_up], strict=True)]
    figures = {
        "model": arguments.model,
        "device": jax.devices()[0].device_kind,
        "cpu_cores": os.cpu_count(),
        "rounds": arguments.rounds,
        "one_row_ms": round(1000 * statistics.median(seconds[alone]), 1),
        "eight_rows_ms": round(1000 * statistics.median(seconds[filled_up]), 1),
        "ratio": [round(value, 2) for value in (statistics.median(ratios), min(ratios), max(ratios))],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
