"""What timm and torchvision draw for DeiT's training images, as a reference for tests/augment/test_distributions.py.

    python benchmarks/peers/distributions_timm.py OUTPUT.npz SEED

needs an interpreter with torch, torchvision, timm 1.0.31 and Pillow. OUTPUT has an array for each statistic: float64 values, or
integers from 0 for the outcomes of a choice. The images go through the transforms that timm's `create_transform` builds from the
released settings, and through timm's Mixup. Two details follow timm 0.3.2 and Pillow before 13: half the side of a CutMix box is
rounded down on both sides (reimplemented here), and posterizing to 0 bits gives black.

The constants and `image_statistics` are used by both sides; they need only NumPy.
"""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from unittest import mock

import numpy as np

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
PHOTOGRAPHS = ("crops_china.jpg", "crops_flower.jpg", "models_photograph.png")
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
COLORS = ("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd")
ENHANCED = ("Color", "Contrast", "Brightness", "Sharpness")
OPERATIONS = (*COLORS, *ENHANCED, "Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
NONE = len(OPERATIONS)  # the number for no operation; others have their position
WITHOUT_ARGUMENT = ("AutoContrast", "Equalize", "Invert")
SHAPES = ((375, 500), (400, 180))  # height and width of the images to crop; some crops of the second are centred
ERASED_SIDE, MIXED_SIDE, SIDE = 64, 64, 56  # pixels of the images for erasing, mixing and the complete pipeline
CROPS, FLIPS, OPERATION_DRAWS, ERASINGS, MIXINGS, IMAGES = 60_000, 100_000, 100_000, 30_000, 40_000, 6_000


def image_statistics(image: np.ndarray) -> dict[str, float]:
    """Statistics of a normalised image, float [H, W, 3]."""
    image = np.asarray(image, np.float64)
    width, height = image.shape[1] // 2, image.shape[0] // 2
    values = {f"mean_{c}": image[..., k].mean() for k, c in enumerate("rgb")} | {"mean": image.mean()}
    values |= {f"std_{c}": image[..., k].std() for k, c in enumerate("rgb")} | {"std": image.std()}
    values |= {"gradient_y": np.abs(np.diff(image, axis=0)).mean(), "gradient_x": np.abs(np.diff(image, axis=1)).mean()}
    shares = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    values |= {f"quantile_{share}": value for share, value in zip(shares, np.quantile(image, shares), strict=True)}
    values["left-right"] = image[:, :width].mean() - image[:, width:].mean()
    values["top-bottom"] = image[:height].mean() - image[height:].mean()
    return values | {"min": image.min(), "max": image.max()}


def crop_statistics(boxes: np.ndarray, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """boxes: [N, 4], top, left, height and width. Positions are relative to the range allowed for a box of its size."""
    top, left, height, width = np.asarray(boxes, np.float64).T
    prefix = f"crop_{shape[0]}x{shape[1]}"
    return {
        f"{prefix}/area": height * width / np.prod(shape),
        f"{prefix}/log_ratio": np.log(width / height),
        f"{prefix}/top": top / np.maximum(shape[0] - height, 1),
        f"{prefix}/left": left / np.maximum(shape[1] - width, 1),
    }


def operation_statistics(operations: np.ndarray, arguments: np.ndarray) -> dict[str, np.ndarray]:
    """operations: [N, 2], NONE among them, in the order of application; arguments: [N, 2]."""
    applied = np.sort(operations == NONE, axis=1)
    first = np.where(operations[:, 0] == NONE, operations[:, 1], operations[:, 0])
    second = np.where(np.any(applied, axis=1), NONE, operations[:, 1])
    values = {
        "operations/each": operations[operations != NONE],
        "operations/number": np.sum(operations != NONE, axis=1),
        "operations/chains": first * (NONE + 1) + second,
    }
    for number, name in enumerate(OPERATIONS):
        if name not in WITHOUT_ARGUMENT:
            values[f"argument/{name}"] = np.float64(arguments[operations == number])
    return values


def box_statistics(prefix: str, boxes: np.ndarray, side: int) -> dict[str, np.ndarray]:
    """boxes: [N, 4], top, bottom, left and right in a square image; positions of the boxes that are not empty."""
    top, bottom, left, right = np.asarray(boxes, np.float64).T
    filled = (bottom > top) & (right > left)
    height, width = np.where(filled, bottom - top, 0), np.where(filled, right - left, 0)
    values = {"area": height * width / side**2, "height": height / side, "width": width / side}
    values |= {"top": top[filled] / side, "left": left[filled] / side}
    return {f"{prefix}/{name}": value for name, value in values.items()}


def erasing_statistics(boxes: np.ndarray, noise: np.ndarray) -> dict[str, np.ndarray]:
    """boxes: [N, 4] as in `box_statistics`, zeros where nothing is erased; noise: [N, 3], the first pixel of a box."""
    erased = boxes[:, 1] > boxes[:, 0]
    height, width = boxes[erased, 1] - boxes[erased, 0], boxes[erased, 3] - boxes[erased, 2]
    values = {"erasing/erased": erased.astype(int), "erasing/log_aspect": np.log(height / width)}
    return values | box_statistics("erasing", boxes[erased], ERASED_SIDE) | {"erasing/noise": noise[erased].ravel()}


def mixing_statistics(cutmix: np.ndarray, lam: np.ndarray, boxes: np.ndarray) -> dict[str, np.ndarray]:
    """cutmix: bool[N]; lam: [N], the share of the own label; boxes: [N, 4] as in `box_statistics`."""
    values = {"mixing/cutmix": cutmix.astype(int), "mixing/mixup": lam[~cutmix], "mixing/cutmix_lam": lam[cutmix]}
    return values | box_statistics("mixing", boxes[cutmix], MIXED_SIDE)


# --- timm ---------------------------------------------------------------------------------------------------------------------


def draw_crops(crop) -> dict[str, np.ndarray]:
    from PIL import Image

    values = {}
    for shape in SHAPES:
        image = Image.new("RGB", shape[::-1])
        boxes = [crop.get_params(image, crop.scale, crop.ratio) for _ in range(CROPS)]
        values |= crop_statistics(np.array(boxes), shape)
    return values


def draw_flips(flip) -> dict[str, np.ndarray]:
    import torch

    image = torch.tensor([0, 1]).expand(3, 1, 2)
    return {"flip": np.array([int(flip(image)[0, 0, 0]) for _ in range(FLIPS)])}


def draw_operations(policy) -> dict[str, np.ndarray]:
    drawn: list[list[tuple[int, float]]] = []

    def recorder(name: str):
        number = OPERATIONS.index(name.replace("Increasing", "").replace("Rel", ""))

        def record(image, *arguments, **_):
            drawn[-1].append((number, float(arguments[0]) if arguments else 0.0))
            return image

        return record

    with mock.patch.multiple(policy, ops=policy.ops):
        functions = [operation.aug_fn for operation in policy.ops]
        for operation in policy.ops:
            operation.aug_fn = recorder(operation.name)
        for _ in range(OPERATION_DRAWS):
            drawn.append([])
            policy("image")
        for operation, function in zip(policy.ops, functions, strict=True):
            operation.aug_fn = function
    padded = np.array([(*chain, *[(NONE, 0.0)] * (2 - len(chain))) for chain in drawn])
    return operation_statistics(padded[..., 0].astype(int), padded[..., 1])


def draw_erasing(eraser) -> dict[str, np.ndarray]:
    import torch

    boxes, noise = np.zeros((ERASINGS, 4), int), np.zeros((ERASINGS, 3))
    for row in range(ERASINGS):
        image = eraser(torch.zeros(3, ERASED_SIDE, ERASED_SIDE)).numpy()
        y, x = (np.flatnonzero(np.any(image != 0, axis=axes)) for axes in ((0, 2), (0, 1)))
        if len(y):
            boxes[row] = y[0], y[-1] + 1, x[0], x[-1] + 1
            noise[row] = image[:, y[0], x[0]]
    return erasing_statistics(boxes, noise)


def released_box(img_shape, lam, margin=0.0, count=None):
    """timm 0.3.2's rand_bbox."""
    ratio = math.sqrt(1 - lam)
    height, width = img_shape[-2:]
    cut_height, cut_width = int(height * ratio), int(width * ratio)
    y, x = np.random.randint(0, height), np.random.randint(0, width)
    vertical = (y - cut_height // 2, y + cut_height // 2)
    horizontal = (x - cut_width // 2, x + cut_width // 2)
    return *np.clip(vertical, 0, height), *np.clip(horizontal, 0, width)


def draw_mixing() -> dict[str, np.ndarray]:
    from timm.data import mixup

    mixer = mixup.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch", num_classes=2)
    draws, boxes = [], np.zeros((MIXINGS, 4), int)
    with mock.patch.object(mixup, "rand_bbox", released_box):
        for row in range(MIXINGS):
            lam, cutmix = mixer._params_per_batch()
            if cutmix:
                boxes[row], lam = mixup.cutmix_bbox_and_lam((2, 3, MIXED_SIDE, MIXED_SIDE), lam)
            draws.append((bool(cutmix), float(lam)))
    cutmix, lam = (np.array(column) for column in zip(*draws, strict=True))
    return mixing_statistics(cutmix, lam, boxes)


def draw_images(pipeline) -> dict[str, np.ndarray]:
    from PIL import Image

    photos = [Image.open(GOLDEN / name).convert("RGB") for name in PHOTOGRAPHS]
    rows = [image_statistics(pipeline(photos[k % len(photos)]).permute(1, 2, 0).numpy()) for k in range(IMAGES)]
    return {f"image/{name}": np.array([row[name] for row in rows]) for name in rows[0]}


def main() -> None:
    import torch
    from PIL import Image, ImageOps
    from timm.data import create_transform

    torch.set_num_threads(1)
    target, seed = sys.argv[1], int(sys.argv[2])
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(seed)
    pipeline = create_transform(
        SIDE,
        is_training=True,
        color_jitter=0.4,
        auto_augment=RAND_AUGMENT,
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    )
    part = {type(transform).__name__: transform for transform in pipeline.transforms}
    values = draw_crops(part["RandomResizedCropAndInterpolation"])
    values |= draw_flips(part["RandomHorizontalFlip"])
    values |= draw_operations(part["RandAugment"])
    values |= draw_erasing(part["RandomErasing"])
    values |= draw_mixing()
    posterize = ImageOps.posterize

    def posterize_to_any(image, bits):
        return posterize(image, bits) if bits else Image.new("RGB", image.size)

    with mock.patch.object(ImageOps, "posterize", posterize_to_any):
        values |= draw_images(pipeline)
    np.savez(target, **values)


if __name__ == "__main__":
    main()
