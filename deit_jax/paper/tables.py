"""The published results: DeiT and RegNetY rows of the tables and Figure 3 of arXiv 2012.12877v2. Table 9 is configs/deit.py.

Accuracies are top-1 in percent on a single crop. Throughputs are images/s of a float32 forward pass on one V100 with 16 GB.
Models have their names in `deit_jax.list_models()`. The paper measured all of this; this project did not.
"""

from __future__ import annotations

from typing import NamedTuple

SOURCE = "arXiv 2012.12877v2"
THROUGHPUT_NOTE = "published, one V100 16 GB, float32 forward pass, largest batch that fits, mean of 30 runs"


class Architecture(NamedTuple):
    """A row of Table 1."""

    model: str
    embed_dim: int
    num_heads: int
    depth: int
    parameters: int  # as printed, to the million
    images_per_second: float  # at 224 pixels


TABLE_1 = (
    Architecture("deit_tiny_patch16_224", 192, 3, 12, 5_000_000, 2536.0),
    Architecture("deit_small_patch16_224", 384, 6, 12, 22_000_000, 940.0),
    Architecture("deit_base_patch16_224", 768, 12, 12, 86_000_000, 292.0),
)


class TeacherRow(NamedTuple):
    """A row of Table 2: a teacher, and the DeiT-B distilled from it through the token, by hard distillation."""

    teacher: str
    teacher_top1: float
    student_top1: float  # at 224 pixels
    student_384_top1: float  # fine-tuned at 384


TABLE_2 = (
    TeacherRow("deit_base_patch16_224", 81.8, 81.9, 83.1),
    TeacherRow("regnety_040", 80.0, 82.7, 83.6),
    TeacherRow("regnety_080", 81.7, 82.7, 83.8),
    TeacherRow("regnety_120", 82.4, 83.1, 84.1),
    TeacherRow("regnety_160", 82.9, 83.1, 84.2),
)


class DistillationRow(NamedTuple):
    """A row of Table 3: a kind of distillation and a head; Ti, S and B at 224 pixels, B fine-tuned at 384."""

    kind: str  # config.distillation.kind
    token: bool  # with a distillation token
    head: str  # "class", "distillation" or "both" (which the paper fuses by softmax)
    tiny: float
    small: float
    base: float
    base_384: float


TABLE_3 = (
    DistillationRow("none", False, "class", 72.2, 79.8, 81.8, 83.1),
    DistillationRow("soft", False, "class", 72.2, 79.8, 81.8, 83.2),
    DistillationRow("hard", False, "class", 74.3, 80.9, 83.0, 84.0),
    DistillationRow("hard", True, "class", 73.9, 80.9, 83.0, 84.2),
    DistillationRow("hard", True, "distillation", 74.6, 81.1, 83.1, 84.4),
    DistillationRow("hard", True, "both", 74.5, 81.2, 83.4, 84.5),
)

# Table 4: the share of ImageNet's validation images on which two classifiers disagree. "DeiT" is trained without distillation.
TABLE_4_NAMES = (
    "ground truth", "RegNetY", "DeiT", "distilled DeiT, class", "distilled DeiT, distillation", "distilled DeiT, both",
)  # fmt: skip
TABLE_4 = (
    (0.000, 0.171, 0.182, 0.170, 0.169, 0.166),
    (0.171, 0.000, 0.133, 0.112, 0.100, 0.102),
    (0.182, 0.133, 0.000, 0.109, 0.110, 0.107),
    (0.170, 0.112, 0.109, 0.000, 0.050, 0.033),
    (0.169, 0.100, 0.110, 0.050, 0.000, 0.019),
    (0.166, 0.102, 0.107, 0.033, 0.019, 0.000),
)


class ModelRow(NamedTuple):
    """A row of Table 5. None: not published."""

    label: str
    model: str  # "" if it is not registered here
    image_size: int  # pixels
    epochs: int | None  # None except for DeiT
    images_per_second: float | None
    imagenet: float
    real: float
    v2: float | None

    @property
    def figures(self) -> dict[str, float]:
        """The published top-1 in percent, by data set."""
        published = {"ImageNet": self.imagenet, "ReaL": self.real, "V2": self.v2}
        return {measure: value for measure, value in published.items() if value is not None}


TABLE_5 = (
    ModelRow("RegNetY-4GF", "regnety_040", 224, None, 1156.7, 80.0, 86.4, 69.4),
    ModelRow("RegNetY-8GF", "regnety_080", 224, None, 591.6, 81.7, 87.4, 70.8),
    ModelRow("RegNetY-16GF", "regnety_160", 224, None, 334.7, 82.9, 88.1, 72.4),
    ModelRow("ViT-B/16 384", "", 384, None, 85.9, 77.9, 83.6, None),
    ModelRow("DeiT-Ti", "deit_tiny_patch16_224", 224, 300, 2536.5, 72.2, 80.1, 60.4),
    ModelRow("DeiT-S", "deit_small_patch16_224", 224, 300, 940.4, 79.8, 85.7, 68.5),
    ModelRow("DeiT-B", "deit_base_patch16_224", 224, 300, 292.3, 81.8, 86.7, 71.5),
    ModelRow("DeiT-B 384", "deit_base_patch16_384", 384, 300, 85.9, 83.1, 87.7, 72.4),
    ModelRow("DeiT-Ti distilled", "deit_tiny_distilled_patch16_224", 224, 300, 2529.5, 74.5, 82.1, 62.9),
    ModelRow("DeiT-S distilled", "deit_small_distilled_patch16_224", 224, 300, 936.2, 81.2, 86.8, 70.0),
    ModelRow("DeiT-B distilled", "deit_base_distilled_patch16_224", 224, 300, 290.9, 83.4, 88.3, 73.2),
    ModelRow("DeiT-Ti distilled", "deit_tiny_distilled_patch16_224", 224, 1000, 2529.5, 76.6, 83.9, 65.4),
    ModelRow("DeiT-S distilled", "deit_small_distilled_patch16_224", 224, 1000, 936.2, 82.6, 87.8, 71.7),
    ModelRow("DeiT-B distilled", "deit_base_distilled_patch16_224", 224, 1000, 290.9, 84.2, 88.7, 73.9),
    ModelRow("DeiT-B distilled 384", "deit_base_distilled_patch16_384", 384, 300, 85.8, 84.5, 89.0, 74.8),
    ModelRow("DeiT-B distilled 384", "deit_base_distilled_patch16_384", 384, 1000, 85.8, 85.2, 89.3, 75.2),
)


class DataSet(NamedTuple):
    """A row of Table 6."""

    train_images: int
    test_images: int
    classes: int


TABLE_6 = {
    "ImageNet": DataSet(1_281_167, 50_000, 1000),
    "iNaturalist 2018": DataSet(437_513, 24_426, 8142),
    "iNaturalist 2019": DataSet(265_240, 3003, 1010),
    "Flowers-102": DataSet(2040, 6149, 102),
    "Stanford Cars": DataSet(8144, 8041, 196),
    "CIFAR-100": DataSet(50_000, 10_000, 100),
    "CIFAR-10": DataSet(50_000, 10_000, 10),
}


class TransferRow(NamedTuple):
    """A row of Table 7: a DeiT pre-trained on ImageNet and fine-tuned on another data set."""

    model: str
    cifar10: float
    cifar100: float
    flowers: float
    cars: float
    inat18: float
    inat19: float


# In the last row the ImageNet column of this table has 84.4, while Tables 3 and 5 have 84.5.
TABLE_7 = (
    TransferRow("deit_base_patch16_224", 99.1, 90.8, 98.4, 92.1, 73.2, 77.7),
    TransferRow("deit_base_patch16_384", 99.1, 90.8, 98.5, 93.3, 79.5, 81.4),
    TransferRow("deit_base_distilled_patch16_224", 99.1, 91.3, 98.8, 92.9, 73.7, 78.4),
    TransferRow("deit_base_distilled_patch16_384", 99.2, 91.4, 98.9, 93.9, 80.1, 83.0),
)
# CIFAR-10 without ImageNet, up to 7200 epochs at 224 pixels.
CIFAR10_FROM_SCRATCH = {"regnety_160": 98.0, "deit_base_patch16_224": 97.5, "deit_base_distilled_patch16_224": 98.5}


class AblationRow(NamedTuple):
    """A row of Table 8: DeiT-B without distillation, pre-trained at 224 pixels, then fine-tuned at 384."""

    change: str  # relative to the first row
    top1: float
    top1_384: float
    trained: bool = True  # False: the training failed


TABLE_8 = (
    AblationRow("none", 81.8, 83.1),
    AblationRow("SGD in pre-training", 74.5, 77.3),
    AblationRow("SGD in fine-tuning", 81.8, 83.1),
    AblationRow("no RandAugment", 79.6, 80.4),
    AblationRow("AutoAugment instead of RandAugment", 81.2, 81.9),
    AblationRow("no mixup", 78.7, 79.8),
    AblationRow("no CutMix", 80.0, 80.6),
    AblationRow("neither mixup nor CutMix", 75.8, 76.7),
    AblationRow("no erasing", 4.3, 0.1, trained=False),
    AblationRow("no stochastic depth", 3.4, 0.1, trained=False),
    AblationRow("no repeated augmentation", 76.5, 77.4),
    AblationRow("with dropout", 81.3, 83.1),
    AblationRow("with EMA", 81.9, 83.1),
)
TABLE_8_DEVIATION = (0.2, 0.1)  # for the two figures of the first row


class ResolutionRow(NamedTuple):
    """A row of Table 10: DeiT-B, trained at 224 pixels and, except for that row, fine-tuned at another size."""

    image_size: int  # pixels
    images_per_second: float
    imagenet: float
    real: float
    v2: float


TABLE_10 = (
    ResolutionRow(160, 609.0, 79.9, 84.8, 67.6),
    ResolutionRow(224, 291.0, 81.8, 86.7, 71.5),
    ResolutionRow(320, 134.0, 82.7, 87.2, 71.9),
    ResolutionRow(384, 86.0, 83.1, 87.7, 72.4),
)

# Figure 3: top-1 of DeiT-B by epochs. Approximate, because read off a plot, except for the points in FIGURE_3_EXACT, which are in
# Tables 3 and 5.
FIGURE_3_EPOCHS = (300, 500, 800, 1000)
FIGURE_3 = {
    "soft distillation": (81.8, 82.2, 81.6, 81.8),
    "hard distillation": (83.0, 83.8, 84.1, 84.1),
    "hard distillation, token": (83.4, 84.1, 84.2, 84.2),
    "hard distillation, token, 384": (84.5, 84.9, 85.1, 85.2),
}
FIGURE_3_EXACT = {  # by curve: the epochs whose values are in a table
    "soft distillation": (300,),
    "hard distillation": (300,),
    "hard distillation, token": (300, 1000),
    "hard distillation, token, 384": (300, 1000),
}
FIGURE_3_NO_DISTILLATION = 82.2  # the dotted line: without a teacher, accuracy saturates here after about 400 epochs

# Section 4: the cosine of the class and the distillation token of the distilled DeiT-B.
TOKEN_COSINE_INPUT = 0.06  # as learned
TOKEN_COSINE_LAST = 0.93  # after the last layer
TWO_CLASS_TOKENS_COSINE = 0.999  # with two class tokens trained on the same labels: they become equal
