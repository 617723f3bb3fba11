"""timm's RandAugment with Pillow in one process on one core, started by benchmarks/augmentation.py.

    python benchmarks/peers/augmentation_timm.py CROPS.npy POLICY CORE

needs an interpreter with timm and Pillow. CROPS has uint8[N, H, W, 3]. For each line on stdin it augments all of them once and
answers with the wall-clock and processor seconds, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import time

import numpy as np
import PIL
import timm
from PIL import Image
from timm.data.auto_augment import rand_augment_transform


def main() -> None:
    crops, policy, core = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    images = [Image.fromarray(crop) for crop in np.load(crops)]
    options = {"img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    augment = rand_augment_transform(policy, options)
    random.seed(0)
    np.random.seed(0)
    print(json.dumps({"timm": timm.__version__, "Pillow": PIL.__version__}), flush=True)
    for _ in sys.stdin:
        clock, processor = time.perf_counter(), time.process_time()
        for image in images:
            with contextlib.suppress(ValueError):  # Pillow 13 refuses to posterize to 0 bits: 1 image in 600
                augment(image)
        print(json.dumps([time.perf_counter() - clock, time.process_time() - processor]), flush=True)


if __name__ == "__main__":
    main()
