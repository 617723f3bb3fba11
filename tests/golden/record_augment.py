"""Records what timm and Pillow do to two small photo crops, for tests/augment.

Run in this directory with an interpreter that has timm (recorded: 1.0.31), torch, Pillow (13.0) and scikit-learn:

    python record_augment.py

It writes augment_operations.npz (RandAugment's operations and levels) and augment_mixing.npz (mixup, CutMix, erasing).
Random calls inside timm are replaced by scripted values, which are recorded beside the results.
"""

import math
from unittest import mock

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import auto_augment, mixup, random_erasing

FILL = (124, 116, 104)
LEVELS = (0.0, 1.3, 2.5, 4.99, 5.0, 7.0, 7.49, 7.5, 9.0, 9.7, 10.0)
# Our name: timm's with magnitudes that increase the strength, timm's without.
NAMES = {
    "AutoContrast": ("AutoContrast",) * 2,
    "Equalize": ("Equalize",) * 2,
    "Invert": ("Invert",) * 2,
    "Posterize": ("PosterizeIncreasing", "Posterize"),
    "Solarize": ("SolarizeIncreasing", "Solarize"),
    "SolarizeAdd": ("SolarizeAdd",) * 2,
    "Color": ("ColorIncreasing", "Color"),
    "Contrast": ("ContrastIncreasing", "Contrast"),
    "Brightness": ("BrightnessIncreasing", "Brightness"),
    "Sharpness": ("SharpnessIncreasing", "Sharpness"),
    "Rotate": ("Rotate",) * 2,
    "ShearX": ("ShearX",) * 2,
    "ShearY": ("ShearY",) * 2,
    "TranslateX": ("TranslateXRel",) * 2,
    "TranslateY": ("TranslateYRel",) * 2,
}
# (level, sign is negative, photo) of the recorded images; the levels are those that the recipe draws, and a mild one.
CASES = ((9.0, True, "china"), (9.0, False, "flower"), (3.1, True, "flower"))
CROPS = {"china": np.s_[200:248, 300:364], "flower": np.s_[150:214, 250:298]}


def argument_at(name: str, level: float, negative: bool) -> float:
    with mock.patch.object(auto_augment, "_randomly_negate", lambda value: -value if negative else value):
        function = auto_augment.LEVEL_TO_ARG[name]
        return float(function(level, {"translate_pct": 0.45})[0]) if function else 0.0


def record_operations() -> dict[str, np.ndarray]:
    photos = {name: load_sample_image(f"{name}.jpg")[crop] for name, crop in CROPS.items()}
    recorded = dict(photos)
    table = [
        [
            [[argument_at(timm_name, level, negative) for negative in (False, True)] for level in LEVELS]
            for timm_name in both
        ]
        for both in NAMES.values()
    ]
    recorded["levels"] = np.array(LEVELS)
    recorded["arguments"] = np.array(table)  # [operation, not increasing, level, negative]
    for name, (timm_name, _) in NAMES.items():
        integer = name in ("Posterize", "Solarize", "SolarizeAdd")
        for case, (level, negative, photo) in enumerate(CASES):
            argument = argument_at(timm_name, level, negative)
            options = {"fillcolor": FILL, "resample": Image.Resampling.BICUBIC}
            arguments = (int(argument) if integer else argument,) if auto_augment.LEVEL_TO_ARG[timm_name] else ()
            image = auto_augment.NAME_TO_OP[timm_name](Image.fromarray(photos[photo]), *arguments, **options)
            recorded[f"{name}_{case}"] = np.asarray(image)
            recorded[f"{name}_{case}_argument"] = np.float64(argument)
            if not arguments and case == 1:
                break
    recorded["cases"] = np.array(CASES, dtype=object).astype(str)
    return recorded


def record_mixing() -> dict[str, np.ndarray]:
    """Three batches of four, mixed by timm one by one: a mixup and two CutMix draws (the second box is clipped)."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 4, 3, 12, 16)).astype(np.float32)
    labels = rng.integers(0, 10, (3, 4))
    # Sides are even (6 x 8), where timm 0.3.2 and 1.x agree.
    draws = [(0.3, False, (0, 0)), (0.75, True, (5, 7)), (0.75, True, (11, 2))]
    mixed, targets = [], []
    for batch, label, (lam, cutmix, center) in zip(images, labels, draws, strict=True):
        mixer = mixup.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=10)
        fake = mock.Mock()
        fake.rand.side_effect = [0.0, 0.0 if cutmix else 0.9]
        fake.beta.return_value = lam
        fake.randint.side_effect = list(center)
        with mock.patch.object(mixup.np, "random", fake):
            x, y = mixer(torch.tensor(batch), torch.tensor(label))
        mixed.append(x.numpy())
        targets.append(y.numpy())
    return {
        "mix_images": images.transpose(0, 1, 3, 4, 2),
        "mix_labels": labels,
        "mix_lam": np.array([draw[0] for draw in draws]),
        "mix_cutmix": np.array([draw[1] for draw in draws]),
        "mix_center": np.array([draw[2] for draw in draws]),
        "mixed_images": np.stack(mixed).transpose(0, 1, 3, 4, 2),
        "mixed_targets": np.stack(targets),
        "smoothed_targets": mixup.mixup_target(torch.tensor(labels[0]), 10, 1.0, 0.1).numpy(),
    }


def record_erasing() -> dict[str, np.ndarray]:
    """Masks of what timm erases from a 20 x 30 image for scripted areas, aspects and corners."""
    rng = np.random.default_rng(1)
    area = rng.uniform(0.02, 1 / 3, (24, 10))
    log_aspect = rng.uniform(math.log(0.3), -math.log(0.3), (24, 10))
    corner = rng.uniform(size=(24, 2))
    # Too tall for the image: the first tries of some rows, every try of the last.
    area[:6, :3], log_aspect[:6, :3] = 0.333, 1.2
    area[-1], log_aspect[-1] = 0.333, 1.2
    masks = []
    for row in range(len(area)):
        fake = mock.Mock()
        fake.random.return_value = 0.0
        fake.uniform.side_effect = np.stack([area[row], log_aspect[row]], 1).ravel().tolist()
        corners = iter(corner[row])
        fake.randint.side_effect = lambda low, high, corners=corners: low + int(next(corners) * (high - low + 1))
        with mock.patch.object(random_erasing, "random", fake):
            eraser = random_erasing.RandomErasing(probability=1.0, mode="const", device="cpu")
            masks.append(eraser(torch.ones(3, 20, 30))[0].numpy() == 0)
    return {"erase_area": area, "erase_log_aspect": log_aspect, "erase_corner": corner, "erased": np.stack(masks)}


if __name__ == "__main__":
    np.savez_compressed("augment_operations.npz", **record_operations())
    np.savez_compressed("augment_mixing.npz", **record_mixing(), **record_erasing())
