"""Fine-tunes a published DeiT on your own images: a folder with one folder of images per class.

    python run.py --config=configs/own_images.py --workdir=runs/flowers --config.data.path=FLOWERS

    FLOWERS/rose/1.jpg, FLOWERS/rose/2.jpg, ..., FLOWERS/tulip/1.jpg, ...

A fifth of every class is held out for evaluation, unless FLOWERS contains the folders `train` and `val` with class folders in
each. The published ImageNet weights are downloaded from the Hugging Face hub; --config.model.weights accepts a file or a workdir
instead. Argument, as in configs/own_images.py:small,distilled:

    tiny        DeiT-Ti, minutes on a CPU for a hundred images; or small | base, for a GPU or TPU
    distilled   with the token; no teacher knows your classes, so both heads are trained on the labels
    384px       at 384 pixels

The number and names of the classes are those of the folders. The batch size of 16 suits a few dozen images; for thousands
--config.train.batch_size=128 is faster, and the learning rate scales with it. The recipe is a common one for small data sets
(AdamW, 5e-5, crops of at least a third of the area, flips, label smoothing; no mixing, erasing or RandAugment), not the paper's
for transfer, whose 1000 epochs are in configs/transfer.py. Not yet run from the published weights.
"""

from ml_collections import ConfigDict

from deit_jax.config import default_config
from deit_jax.recipes.files import pick
from deit_jax.recipes.imagenet import SIZES


def get_config(argument: str = "tiny") -> ConfigDict:
    words = pick("own_images.py", argument, size=SIZES, token=("distilled",), image_size=("384px",))
    size, distilled = words["size"] or "tiny", bool(words["token"])
    config = default_config()
    config.model.name = f"deit_{size}{'_distilled' if distilled else ''}_patch16_224"
    if words["image_size"]:
        config.image_size = 384
        if size == "base":  # published weights of that size have their own model name
            config.model.name = config.model.name.replace("_224", "_384")
    config.model.weights = "pretrained"
    config.model.reset_heads = True  # even if there are a thousand classes, they are not ImageNet's
    if distilled:
        config.distillation.kind = "labels"

    config.data.source = "folder"
    config.data.held_out = 0.2
    config.data.crop_scale = (0.35, 1.0)
    config.augment.label_smoothing = 0.1
    config.augment.groups_per_block = 1  # there is no mixing
    config.model.drop_path_rate = 0.1

    config.train.batch_size = 16
    config.train.epochs = 20
    config.optimizer.weight_decay = 0.05
    config.schedule.base_learning_rate, config.schedule.base_batch_size = 5e-5, 16
    config.schedule.warmup_epochs = 1.0
    config.schedule.min_learning_rate = 1e-6
    config.evaluation.batch_size = 16
    config.log.every_steps = 10
    return config
