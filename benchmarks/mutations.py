"""Damaged files for chaos.py."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Changes, cuts off, zeroes, inserts, removes or duplicates some bytes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(min(len(data), rng.choice((64, 700, len(data)))) or 1) if data else 0
        length = rng.choice((1, 2, 16, 500))
        match rng.randrange(7):
            case 0 | 1:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 2:
                del data[at:]
            case 3:
                data[at : at + length] = bytes(min(length, len(data) - at))
            case 4:
                data[at:at] = rng.randbytes(length)
            case 5:
                del data[at : at + length]
            case 6:
                data[at:at] = data[at : at + length]
    return bytes(data)


class MutatedImages:
    """A source of JPEG and PNG files, each damaged differently."""

    class_names = ("only",)

    def __init__(self, count: int, seed: int) -> None:
        import numpy as np
        from PIL import Image

        originals = []
        for name in ("crops_china.jpg", "crops_flower.jpg"):
            with Image.open(ROOT / "tests/golden" / name) as photo:
                small = photo.convert("RGB").resize((96, 64))
            grey, palette = small.convert("L"), small.quantize(32)
            deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
            kinds = [(small, "JPEG", {}), (small, "JPEG", {"progressive": True}), (grey, "JPEG", {})]
            kinds += [(small.convert("CMYK"), "JPEG", {}), (small, "PNG", {}), (palette, "PNG", {}), (deep, "PNG", {})]
            for image, kind, options in kinds:
                file = io.BytesIO()
                image.save(file, kind, **options)
                originals.append(file.getvalue())
        rng = random.Random(seed)
        self.files = [mutate(originals[number % len(originals)], rng) for number in range(count)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        from deit_jax.data.sources import Example

        return Example(self.files[index], 0)

    def describe(self, index: int) -> str:
        return f"mutated image {index}"
