"""The paper's data sets by TFDS name: what to read of each, and how to get it.

Sizes are the published ones (Table 6). Other names are read by their `image` and `label`.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

_IN_ANOTHER_ENVIRONMENT = (
    "`pip install tensorflow tensorflow-datasets` in another environment and run `{command}` there"
)


@dataclasses.dataclass(frozen=True)
class KnownSet:
    """A data set of the paper.

    `train_split` is "" if there are no training images; `train_images` is the published number of images.
    """

    name: str  # TFDS's, without a configuration
    title: str  # in the paper
    num_classes: int
    train_split: str
    eval_split: str
    train_images: int
    label_key: str = "label"  # TFDS's feature
    manual_files: tuple[str, ...] = ()  # files that TFDS cannot download and reads from --manual_dir
    manual_source: str = ""  # where to get them
    folders_only: str = ""  # why TFDS cannot be used, if so


_IMAGE_NET = "image-net.org/download-images, after registration"

# name, title, classes, train split, evaluation split, training images
_SETS = (
    KnownSet(
        "imagenet2012", "ImageNet", 1000, "train", "validation", 1_281_167,
        manual_files=("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"), manual_source=_IMAGE_NET,
    ),
    KnownSet(
        "imagenet2012_real", "ImageNet ReaL", 1000, "", "validation", 0,
        label_key="real_label", manual_files=("ILSVRC2012_img_val.tar",), manual_source=_IMAGE_NET,
    ),
    KnownSet("imagenet_v2", "ImageNet V2", 1000, "", "test", 0),
    KnownSet("i_naturalist2018", "iNaturalist 2018", 8142, "train", "validation", 437_513),
    KnownSet(
        "i_naturalist2019", "iNaturalist 2019", 1010, "train", "validation", 265_240,
        folders_only="TFDS does not have it",
    ),
    KnownSet("oxford_flowers102", "Flowers-102", 102, "train+validation", "test", 2_040),
    KnownSet(
        "cars196", "Stanford Cars", 196, "train", "test", 8_144,
        folders_only="the URL that TFDS downloads it from is gone (tensorflow/datasets issue 5656)",
    ),
    KnownSet("cifar100", "CIFAR-100", 100, "train", "test", 50_000),
    KnownSet("cifar10", "CIFAR-10", 10, "train", "test", 50_000),
)  # fmt: skip
KNOWN_SETS = {known.name: known for known in _SETS}


def known_set(name: str) -> KnownSet | None:
    """Returns the known set for a TFDS name, with or without a configuration and version; None if there is none."""
    return KNOWN_SETS.get(name.split("/")[0].split(":")[0])


def how_to_get(name: str, data_dir: str = "") -> str:
    """Returns an instruction, part of a sentence, for getting a TFDS data set, e.g. into `data_dir` ("": TFDS's default)."""
    known = known_set(name)
    if known is not None and known.folders_only:
        return (
            f"{known.folders_only}: sort its images into one folder per class (docs/data.md, Named sets) and use "
            "data.source=folder"
        )
    command = f"tfds build {name} --file_format=array_record" + (f" --data_dir={data_dir}" if data_dir else "")
    files = ""
    if known is not None and known.manual_files:
        files = f"get {' and '.join(known.manual_files)} ({known.manual_source}) into a folder DIR, "
        command += " --manual_dir=DIR"
    return f"{files}{_IN_ANOTHER_ENVIRONMENT.format(command=command)}, or use data.source=folder"


def imagenet_extra_sets() -> ConfigDict:
    """Returns ReaL and V2 (matched frequency) from TFDS for `config.evaluation.extra`, as in the paper's Table 5."""

    def from_tfds(name: str) -> ConfigDict:
        known = KNOWN_SETS[name.split("/")[0]]
        return ConfigDict({"source": "tfds", "name": name, "path": "", "split": known.eval_split, "labels": ""})

    return ConfigDict({"real": from_tfds("imagenet2012_real"), "v2": from_tfds("imagenet_v2/matched-frequency")})
