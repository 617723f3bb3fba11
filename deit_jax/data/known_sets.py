"""The data sets of the paper by their TFDS names: what to read of each, and how to get it.

Sizes are the published ones (Table 6). A name that is not here is read all the same, by its `image` and `label`.
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

    `train_split` is "" where there is nothing to train on; `train_images` is the published number of images.
    """

    name: str  # TFDS's, without a configuration
    title: str  # the paper's
    num_classes: int
    train_split: str
    eval_split: str
    train_images: int
    label_key: str = "label"  # TFDS's feature
    manual_files: tuple[str, ...] = ()  # that TFDS cannot fetch and asks for in --manual_dir
    manual_source: str = ""  # where they are to be had
    folders_only: str = ""  # why TFDS cannot be asked, if it cannot


_IMAGE_NET = "image-net.org/download-images, after registration"

KNOWN_SETS = {
    known.name: known
    for known in (
        KnownSet(
            name="imagenet2012", title="ImageNet", num_classes=1000, train_split="train", eval_split="validation",
            train_images=1_281_167,
            manual_files=("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"), manual_source=_IMAGE_NET,
        ),
        KnownSet(
            name="imagenet2012_real", title="ImageNet ReaL", num_classes=1000, train_split="", eval_split="validation",
            train_images=0, label_key="real_label",
            manual_files=("ILSVRC2012_img_val.tar",), manual_source=_IMAGE_NET,
        ),
        KnownSet(
            name="imagenet_v2", title="ImageNet V2", num_classes=1000, train_split="", eval_split="test",
            train_images=0,
        ),
        KnownSet(
            name="i_naturalist2018", title="iNaturalist 2018", num_classes=8142, train_split="train", eval_split="validation",
            train_images=437_513,
        ),
        KnownSet(
            name="i_naturalist2019", title="iNaturalist 2019", num_classes=1010, train_split="train", eval_split="validation",
            train_images=265_240, folders_only="TFDS does not have it",
        ),
        KnownSet(
            name="oxford_flowers102", title="Flowers-102", num_classes=102, train_split="train+validation", eval_split="test",
            train_images=2_040,
        ),
        KnownSet(
            name="cars196", title="Stanford Cars", num_classes=196, train_split="train", eval_split="test",
            train_images=8_144,
            folders_only="the address that TFDS would fetch it from is gone (tensorflow/datasets issue 5656)",
        ),
        KnownSet(
            name="cifar100", title="CIFAR-100", num_classes=100, train_split="train", eval_split="test",
            train_images=50_000,
        ),
        KnownSet(
            name="cifar10", title="CIFAR-10", num_classes=10, train_split="train", eval_split="test",
            train_images=50_000,
        ),
    )
}  # fmt: skip


def known_set(name: str) -> KnownSet | None:
    """What is known of a TFDS name, with or without a configuration and version; None if nothing is."""
    return KNOWN_SETS.get(name.split("/")[0].split(":")[0])


def how_to_get(name: str, data_dir: str = "") -> str:
    """What to do to have the images of a TFDS data set, in `data_dir` ("": TFDS's default) or otherwise; half a sentence."""
    known = known_set(name)
    if known is not None and known.folders_only:
        return (
            f"{known.folders_only}: sort its images into a folder a class (docs/data.md, Named sets) and use "
            "data.source=folder"
        )
    command = f"tfds build {name} --file_format=array_record" + (f" --data_dir={data_dir}" if data_dir else "")
    files = ""
    if known is not None and known.manual_files:
        files = f"get {' and '.join(known.manual_files)} ({known.manual_source}) into a folder DIR, "
        command += " --manual_dir=DIR"
    return f"{files}{_IN_ANOTHER_ENVIRONMENT.format(command=command)}, or use data.source=folder"


def imagenet_extra_sets() -> ConfigDict:
    """ReaL and V2 (matched frequency) from TFDS, for `config.evaluation.extra`: the further columns of the paper's Table 5."""

    def from_tfds(name: str) -> ConfigDict:
        known = KNOWN_SETS[name.split("/")[0]]
        return ConfigDict({"source": "tfds", "name": name, "path": "", "split": known.eval_split, "labels": ""})

    return ConfigDict({"real": from_tfds("imagenet2012_real"), "v2": from_tfds("imagenet_v2/matched-frequency")})
