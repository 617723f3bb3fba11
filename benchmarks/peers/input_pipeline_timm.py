"""DeiT's input pipeline as in its released main.py, on torchvision, timm and PyTorch's DataLoader.

    python benchmarks/peers/input_pipeline_timm.py FOLDER IMAGES BATCH COPIES SEED

needs an interpreter with torch, torchvision and timm; started by benchmarks/input_pipeline.py. FOLDER has a folder per class; its
images are listed COPIES times, so that no epoch ends during a measurement. Each input line, JSON
{"workers": w, "repeats": r, "mix": bool}, is answered by a line {"images_per_second": x, "processor_ms": y}: IMAGES images in
batches of BATCH, decoded, cropped, flipped, RandAugmented, normalised and erased by w persistent workers, with r consecutive
copies of an image (RepeatAugSampler), and with "mix" also mixed in the main process, as in training. Loaders are kept between
lines.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageOps
from timm.data import Mixup, create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from torchvision.datasets import ImageFolder


def tolerate_no_bits() -> None:
    """timm uses 0 bits at the largest magnitude; Pillow 13 refuses, and earlier versions made the image black."""
    posterize = ImageOps.posterize

    def patched(image: Image.Image, bits: int) -> Image.Image:
        return posterize(image, bits) if bits else Image.new(image.mode, image.size)

    ImageOps.posterize = patched


def processor_seconds() -> float:
    """The processor seconds of this process and its workers."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(user) + int(system) for *_, user, system in (some[:13] for some in fields)) / os.sysconf(
        "SC_CLK_TCK"
    )


def endless(loader: torch.utils.data.DataLoader) -> Iterator[list[torch.Tensor]]:
    while True:
        yield from loader


def wait_until_idle() -> None:
    """Waits until the workers have filled their queues, so that they do not disturb the next measurement."""
    before = processor_seconds()
    while True:
        time.sleep(0.5)
        now = processor_seconds()
        if now - before < 0.05:
            return
        before = now


def main() -> None:
    folder, images, batch, copies, seed = sys.argv[1], *map(int, sys.argv[2:])
    torch.manual_seed(seed)
    tolerate_no_bits()  # before the workers are forked
    transform = create_transform(
        224,
        is_training=True,
        color_jitter=0.3,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    )
    dataset = ImageFolder(folder, transform)
    classes = len(dataset.classes)
    dataset.samples = dataset.samples * copies
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=classes)
    loaders: dict[tuple[int, int], Iterator[list[torch.Tensor]]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        workers, repeats = request["workers"], request["repeats"]
        if (workers, repeats) not in loaders:
            sampler = RepeatAugSampler(dataset, num_replicas=1, rank=0, num_repeats=repeats)
            sampler.set_epoch(seed)
            loader = torch.utils.data.DataLoader(
                dataset, batch, sampler=sampler, num_workers=workers, drop_last=True, persistent_workers=True
            )
            loaders[workers, repeats] = endless(loader)
        batches = loaders[workers, repeats]
        for _ in range(2 * workers + 1):  # batches prepared in advance
            next(batches)
        began, used = time.perf_counter(), processor_seconds()
        for _ in range(images // batch):
            pixels, labels = next(batches)
            if request["mix"]:
                mixup(pixels, labels)
        seconds, used = time.perf_counter() - began, processor_seconds() - used
        wait_until_idle()
        count = images // batch * batch
        print(json.dumps({"images_per_second": count / seconds, "processor_ms": 1000 * used / count}), flush=True)


if __name__ == "__main__":
    main()
