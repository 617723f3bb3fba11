"""Records what timm and Pillow do to small crops of two photographs, for tests/augment.

Run in this directory with an interpreter that has timm (recorded: 1.0.31), torch, Pillow (13.0) and scikit-learn:

    python record_augment.py

It writes augment_operations.npz (operations and levels), augment_mixing.npz (mixup, CutMix, erasing) and augment_draws.npz
(what timm draws: operations of its policies, erased boxes, mixing). In the first two random calls inside timm are replaced
by scripted values, which are recorded beside the results.
"""

import math
import random
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import auto_augment, mixup, random_erasing

FILL = (124, 116, 104)
LEVELS = (0.0, 1.0, 1.3, 2.0, 2.5, 3.0, 4.0, 4.99, 5.0, 6.0, 7.0, 7.49, 7.5, 8.0, 9.0, 9.7, 10.0)
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
# (level, sign is negative, photo) of the recorded images.
CASES = (
    (9.0, True, "china"),
    (9.0, False, "flower"),
    (3.1, True, "roof"),
    (0.7, False, "petals"),
    (6.2, True, "flower"),
    (10.0, False, "china"),
)
# 36 x 44 pixels: no square, no power of two.
CROPS = {
    "china": ("china", np.s_[200:236, 300:344]),
    "roof": ("china", np.s_[60:96, 340:384]),
    "flower": ("flower", np.s_[150:186, 250:294]),
    "petals": ("flower", np.s_[260:296, 330:374]),
}
DRAWS = 20_000


def argument_at(name: str, level: float, negative: bool) -> float:
    with mock.patch.object(auto_augment, "_randomly_negate", lambda value: -value if negative else value):
        function = auto_augment.LEVEL_TO_ARG[name]
        return float(function(level, {"translate_pct": 0.45})[0]) if function else 0.0


def record_operations() -> dict[str, np.ndarray]:
    photos = {name: load_sample_image(f"{photo}.jpg")[crop] for name, (photo, crop) in CROPS.items()}
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
    recorded["original_bits"] = np.array([argument_at("PosterizeOriginal", level, False) for level in LEVELS])
    for name, (timm_name, _) in NAMES.items():
        integer = name in ("Posterize", "Solarize", "SolarizeAdd")
        seen = set()
        for case, (level, negative, photo) in enumerate(CASES):
            argument = argument_at(timm_name, level, negative)
            options = {"fillcolor": FILL, "resample": Image.Resampling.BICUBIC}
            arguments = (int(argument) if integer else argument,) if auto_augment.LEVEL_TO_ARG[timm_name] else ()
            if (photo, arguments) in seen:
                continue
            seen.add((photo, arguments))
            if name == "Posterize" and argument == 0:  # black by the definition; Pillow 13 raises ValueError
                image = np.zeros_like(photos[photo])
            else:
                image = auto_augment.NAME_TO_OP[timm_name](Image.fromarray(photos[photo]), *arguments, **options)
            recorded[f"{name}_{case}"] = np.asarray(image)
            recorded[f"{name}_{case}_argument"] = np.float64(argument)
    recorded["cases"] = np.array(CASES, dtype=object).astype(str)
    for name in ("original", "originalr", "v0", "v0r"):
        pairs = auto_augment.auto_augment_policy(name, {"img_mean": FILL})
        recorded[f"policy_{name}"] = np.array([[(o.name, o.prob, o.magnitude) for o in pair] for pair in pairs], str)
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


def record_mixing_by_rows() -> dict[str, np.ndarray]:
    """timm's modes "pair" and "elem" on one batch of eight: mixup, CutMix and unmixed rows side by side."""
    rng = np.random.default_rng(2)
    images = rng.normal(size=(8, 3, 12, 16)).astype(np.float32)
    labels = rng.integers(0, 10, 8)
    lam = np.array([0.3, 0.75, 0.75, 0.6, 0.1, 0.75, 0.2, 0.9])  # CutMix: sides of 6 x 8, where timm's versions agree
    cutmix = np.array([False, True, True, False, False, True, False, False])
    mixed = np.array([True, True, True, False, True, True, True, True])
    center = rng.integers(0, (12, 16), (8, 2))
    recorded = {
        "rows_images": images.transpose(0, 2, 3, 1),
        "rows_labels": labels,
        "rows_lam": lam,
        "rows_cutmix": cutmix,
        "rows_mixed": mixed,
        "rows_center": center,
    }
    for mode, count in (("pair", 4), ("elem", 8)):
        mixer = mixup.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=10, mode=mode)
        fake = mock.Mock()
        fake.rand.side_effect = [np.where(cutmix, 0.0, 0.9)[:count], np.where(mixed, 0.0, 1.0)[:count]]
        fake.beta.side_effect = lambda *_, size: lam[:size]
        fake.randint.side_effect = center[:count][(cutmix & mixed)[:count]].ravel().tolist()
        with mock.patch.object(mixup.np, "random", fake):
            x, y = mixer(torch.tensor(images), torch.tensor(labels))
        recorded[f"{mode}_images"] = x.numpy().transpose(0, 2, 3, 1)
        recorded[f"{mode}_targets"] = y.numpy()
    return recorded


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


def draw_of_policy(policy: Callable, draws: int) -> tuple[np.ndarray, dict[str, list[float]]]:
    """Runs one of timm's policies: the share of images by number of operations applied, and arguments by operation."""
    applied, arguments_of = [], {}

    def record(name):
        name = name.replace("Increasing", "").replace("Original", "").replace("Rel", "")

        def apply(image, *arguments, **_):
            applied[-1] += 1
            arguments_of.setdefault(name, []).append(float(arguments[0]) if arguments else 0.0)
            return image

        return apply

    for pair in getattr(policy, "policy", None) or [policy.ops]:
        for operation in pair:
            operation.aug_fn = record(operation.name)
    for _ in range(draws):
        applied.append(0)
        policy("image")
    return np.bincount(applied, minlength=4) / draws, arguments_of


def record_draws() -> dict[str, np.ndarray]:
    """Frequencies and quantiles of what timm draws by itself."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    recorded = {"quantiles": np.linspace(0, 1, 41)}
    options = {"img_mean": FILL, "translate_pct": 0.45}
    for text in ("rand-m9-mstd0.5-inc1", "rand-m7-n3-mstd101-p0.8", "original-mstd0.5", "v0"):
        make = auto_augment.rand_augment_transform if text.startswith("rand") else auto_augment.auto_augment_transform
        recorded[f"{text}/applied"], arguments_of = draw_of_policy(make(text, dict(options)), DRAWS)
        for name in NAMES:
            values = arguments_of.get(name, [])
            recorded[f"{text}/{name}/share"] = np.float64(len(values) / DRAWS)
            if values:
                recorded[f"{text}/{name}/arguments"] = np.quantile(values, recorded["quantiles"])

    image = torch.ones(3, 56, 56)
    for count in (1, 3):
        eraser = random_erasing.RandomErasing(probability=0.25, max_count=count, mode="const", device="cpu")
        erased = np.array([(eraser(image.clone())[0] == 0).float().mean().item() for _ in range(DRAWS)])
        recorded[f"erased_{count}/share"] = np.mean(erased > 0)
        recorded[f"erased_{count}/area"] = np.quantile(erased[erased > 0], recorded["quantiles"])

    mixer = mixup.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=10)
    lams: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(DRAWS):
        lam, cutmix = mixer._params_per_batch()
        if cutmix:
            _, lam = mixup.cutmix_bbox_and_lam((3, 224, 224), lam)
        lams[bool(cutmix)].append(float(lam))
    recorded["cutmix_share"] = np.float64(len(lams[True]) / DRAWS)
    recorded["cutmix_lam"] = np.quantile(lams[True], recorded["quantiles"])
    recorded["mixup_lam"] = np.quantile(lams[False], recorded["quantiles"])
    return recorded


if __name__ == "__main__":
    np.savez_compressed("augment_operations.npz", **record_operations())
    np.savez_compressed("augment_mixing.npz", **record_mixing(), **record_mixing_by_rows(), **record_erasing())
    np.savez_compressed("augment_draws.npz", **record_draws())
