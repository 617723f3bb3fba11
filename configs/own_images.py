"""Fine-tunes a published DeiT on your own images: a folder with one folder of images per class.

    python run.py --config=configs/own_images.py --workdir=runs/flowers --config.data.path=FLOWERS
    python run.py --config=configs/own_images.py:distilled --workdir=runs/flowers --config.data.path=FLOWERS

    FLOWERS/rose/1.jpg, FLOWERS/rose/2.jpg, ..., FLOWERS/tulip/1.jpg, ...

A fifth of every class is held out for evaluation, unless FLOWERS contains the folders `train` and `val` with class folders in
each. The published ImageNet weights are downloaded from the Hugging Face hub; --config.model.weights accepts a file or a workdir
instead. Argument, as in configs/own_images.py:small,distilled:

    tiny        DeiT-Ti, minutes on a CPU for a hundred images; or small | base, for a GPU or TPU
    distilled   with the token and a teacher: the published RegNetY-16GF, which is first fine-tuned on the same images
    labels      distilled, but without a teacher: both heads are trained on the labels
    unlabelled  distilled, also on a folder of images without labels, --config.unlabelled.path=MORE, which the teacher labels
    384px       at 384 pixels

The number and names of the classes are those of the folders. The batch size of 16 suits a few dozen images; for thousands
--config.train.batch_size=128 is faster, and the learning rate scales with it. The recipe is a common one for small data sets
(AdamW, 5e-5, crops of at least a third of the area, flips, label smoothing; no mixing, erasing or RandAugment), not the paper's
for transfer, whose 1000 epochs are in configs/transfer.py. Not yet run from the published weights.

The teacher of `distilled` uses the student's images, held-out images and image size. Only its last stage and its classifier are
trained (10 epochs, AdamW, 1e-4), with ImageNet's BatchNorm statistics: a few dozen images are too few for 81 million parameters
or for new statistics, and the frozen layers save two fifths of the computation and store no activations. For thousands of images
on a GPU: --config.teacher.recipe.optimizer.trainable=".*". The student learns the teacher's decisions, as in the paper. Other
teachers:

    --config.teacher.weights=WORKDIR_OR_FILE --config.teacher.name=NAME   a trained network with your classes
    --config.teacher.answers=FOLDER                                       answers that --mode=record has written
    --config.teacher.name=NAME --config.teacher.recipe.model.weights=FILE another RegNetY to fine-tune, e.g. timm's regnety_032
"""

from ml_collections import ConfigDict

from deit_jax.config import ConfigError, default_config
from deit_jax.recipes.files import pick
from deit_jax.recipes.imagenet import SIZES


def get_config(argument: str = "tiny") -> ConfigDict:
    words = pick(
        "own_images.py",
        argument,
        size=SIZES,
        token=("distilled",),
        teacher=("labels", "unlabelled"),
        image_size=("384px",),
    )
    size, distilled = words["size"] or "tiny", bool(words["token"])
    if words["teacher"] and not distilled:
        what = "it trains both heads on the labels" if words["teacher"] == "labels" else "a teacher labels the images"
        raise ConfigError(f"configs/own_images.py:{argument}: {words['teacher']} needs distilled: {what}")
    config = _fine_tuning(f"deit_{size}{'_distilled' if distilled else ''}_patch16_224", epochs=20, rate=5e-5)
    config.model.drop_path_rate = 0.1
    if words["image_size"]:
        config.image_size = 384
        if size == "base":  # published weights of that size have their own model name
            config.model.name = config.model.name.replace("_224", "_384")
    if words["teacher"] == "unlabelled":
        config.unlabelled.source = "folder"
    if words["teacher"] == "labels":
        config.distillation.kind = "labels"
    elif distilled:
        config.distillation.kind = "hard"
        config.teacher.name = "regnety_160"  # the paper's teacher, and the one RegNetY among its published weights
        config.image_size = config.image_size or 224
        config.teacher.recipe = _teacher(config)
    return config


def _fine_tuning(model: str, epochs: int, rate: float) -> ConfigDict:
    """Returns the part of the configuration that student and teacher share."""
    config = default_config()
    config.model.name = model
    config.model.weights = "pretrained"
    config.model.reset_heads = True  # even if there are a thousand classes, they are not ImageNet's

    config.data.source = "folder"
    config.data.held_out = 0.2
    config.data.crop_scale = (0.35, 1.0)
    config.augment.label_smoothing = 0.1
    config.augment.groups_per_block = 1  # there is no mixing

    config.train.batch_size = 16
    config.train.epochs = epochs
    config.optimizer.weight_decay = 0.05
    config.schedule.base_learning_rate, config.schedule.base_batch_size = rate, 16
    config.schedule.warmup_epochs = 1.0
    config.schedule.min_learning_rate = 1e-6
    config.evaluation.batch_size = 16
    config.log.every_steps = 10
    return config


def _teacher(student: ConfigDict) -> ConfigDict:
    """The teacher's fine-tuning. What is given for the student's images, their size and the teacher's name holds for it, too."""
    config = _fine_tuning(student.teacher.name, epochs=10, rate=1e-4)
    config.data = student.data  # the same object
    config.model.name = student.teacher.get_ref("name")
    config.image_size = student.get_ref("image_size")
    config.train.train_mode = False  # BatchNorm by its running statistics
    config.optimizer.trainable = (r"^head/", r"^s4/")
    config.checkpoint.keep = 1  # of hundreds of megabytes
    config.evaluation.every_epochs = 5
    return config
