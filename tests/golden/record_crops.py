"""Records what torchvision and timm make of two photographs, for tests/data/test_decoding.py.

    python tests/golden/record_crops.py --photos

needs timm 1.0.31, torchvision 0.29 and Pillow 13; `--photos` also makes the two small JPEG files anew and then needs
scikit-learn. Their sources and licence are in crops_README.md.
"""

import argparse
import hashlib
import random
from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import functional

HERE = Path(__file__).parent
PHOTOS = {name: HERE / f"crops_{name}.jpg" for name in ("china", "flower")}
BICUBIC = transforms.InterpolationMode.BICUBIC
# (height, width), area shares, aspect ratios: the last ones hardly ever fit, so that the fallback is taken.
BOXES = [
    ((375, 500), (0.08, 1.0), (3 / 4, 4 / 3)),
    ((28, 28), (0.08, 1.0), (3 / 4, 4 / 3)),
    ((160, 240), (0.9, 1.0), (3 / 4, 4 / 3)),
    ((40, 400), (0.5, 1.0), (3 / 4, 4 / 3)),
    ((400, 40), (0.5, 1.0), (3 / 4, 4 / 3)),
    ((100, 100), (0.99, 1.0), (0.5, 2.0)),
]
DRAWS = 20
CROPS = [(0, 0, 160, 160), (17, 33, 100, 90), (60, 100, 31, 45), (3, 5, 40, 150)]  # top, left, height, width
CROP_SIZE = 40
# Evaluation protocols: timm's own transform at the crop_pct of its pretrained DeiT; mmpretrain's pipelines (its configs
# imagenet_bs64_swin_224.py and _384.py: shorter edge to 256 and centre 224, or resize to 384 x 384) written in torchvision.
TIMM = {224: 0.9, 384: 1.0}
MMPRETRAIN = {
    224: [transforms.Resize(256, interpolation=BICUBIC), transforms.CenterCrop(224)],
    384: [transforms.Resize((384, 384), interpolation=BICUBIC)],
}
DEIT = {224: 256, 384: 438}  # released code: the shorter side is resized to int(size / 0.875)
CENTERS = [(64, 0.875), (48, 1.0), (37, 0.8), (96, 0.9), (170, 0.95)]  # size, crop ratio; the last enlarges


def make_photos():
    from sklearn.datasets import load_sample_image

    for name, path in PHOTOS.items():
        photo = Image.fromarray(load_sample_image(f"{name}.jpg"))
        photo.resize((240, 160), Image.Resampling.BICUBIC).save(path, quality=85)


def digest(image):
    return np.asarray(hashlib.sha256(np.asarray(image).tobytes()).hexdigest())


def protocols(size):
    """The evaluation transforms from a PIL image to a PIL image, by name."""
    timm = create_transform(size, interpolation="bicubic", crop_pct=TIMM[size]).transforms
    assert [type(step).__name__ for step in timm[2:]] == ["MaybeToTensor", "Normalize"]
    deit = [transforms.Resize(DEIT[size], interpolation=BICUBIC), transforms.CenterCrop(size)]
    steps = {"deit": deit, "timm": timm[:2], "mmpretrain": MMPRETRAIN[size]}
    return {name: transforms.Compose(some) for name, some in steps.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", action="store_true")
    if parser.parse_args().photos:
        make_photos()
    golden = {}
    for number, ((height, width), scale, ratio) in enumerate(BOXES):
        image = Image.new("RGB", (width, height))
        random.seed(number)
        draws = [RandomResizedCropAndInterpolation.get_params(image, scale, ratio) for _ in range(DRAWS)]
        golden[f"boxes_{number}"] = np.asarray(draws, np.int32)
        golden[f"boxes_{number}_arguments"] = np.asarray([height, width, *scale, *ratio])
    for name, path in PHOTOS.items():
        photo = pil_loader(path)
        golden[f"{name}_sha256"] = digest(photo)
        golden[f"{name}_crops"] = np.stack(
            [np.asarray(functional.resized_crop(photo, *box, [CROP_SIZE] * 2, BICUBIC)) for box in CROPS]
        )
        for turned, image in (("", photo), ("_portrait", photo.transpose(Image.Transpose.ROTATE_90))):
            for size, ratio in CENTERS if turned and name == "china" else CENTERS[:2]:
                evaluate = transforms.Compose(
                    [transforms.Resize(int(size / ratio), interpolation=BICUBIC), transforms.CenterCrop(size)]
                )
                golden[f"{name}{turned}_center_{size}_{ratio}"] = np.asarray(evaluate(image))
        for size in TIMM:
            for protocol, transform in protocols(size).items():
                golden[f"{name}_protocol_{protocol}_{size}"] = digest(transform(photo))
                # the same from far more pixels, so that the resize shrinks
                large = photo.resize((900, 620), Image.Resampling.NEAREST)
                golden[f"{name}_large_protocol_{protocol}_{size}"] = digest(transform(large))
        random.seed(7)
        train = RandomResizedCropAndInterpolation(CROP_SIZE, interpolation="bicubic")
        golden[f"{name}_train"] = np.stack([np.asarray(train(photo)) for _ in range(3)])
    golden["crop_boxes"] = np.asarray(CROPS, np.int32)
    np.savez_compressed(HERE / "crops.npz", **golden)


if __name__ == "__main__":
    main()
