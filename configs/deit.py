"""DeiT trained from scratch on ImageNet-1k: the paper's recipe (arXiv 2012.12877, Table 9).

    python run.py --config=configs/deit.py:small --workdir=WORKDIR
    python run.py --config=configs/deit.py:small,distilled --workdir=WORKDIR --config.teacher.weights=TEACHER_WORKDIR

Argument: tiny | small | base, then any of
    distilled   the distillation token, taught by the hard decisions of RegNetY-16GF (Table 3, last rows)
    soft        the same token, taught by soft distillation, alpha 0.1 and tau 3 (section 4)
    500 | 800 | 1000        instead of 300 epochs (Figure 3; Table 5, last rows)
    160px | 320px | 384px   trained at that size from the start: no row of the paper, which fine-tunes (configs/finetune.py)
    runlocal    the same modules and recipe on the embedded images, two steps of sixteen: does it run here?
or vit_base: Table 9's other column, what the first vision transformer trained with on ImageNet alone.

ImageNet comes from TFDS (data.source=tfds) or from folders:
    --config.data.source=folder --config.data.path=FOLDER_WITH_train_AND_val

Published top-1 of the authors' runs: tiny 72.2, small 79.8, base 81.8; distilled 74.5, 81.2, 83.4; distilled for 1000 epochs
76.6, 82.6, 84.2. Base took them 37 hours on 16 V100 (Ti and S less than three days on four). This code has not yet been run on
ImageNet.
"""

from ml_collections import ConfigDict

from deit_jax.config import ConfigError
from deit_jax.recipes.imagenet import EPOCHS, SIZES, TRAIN_SIZES, deit, distil, pixels
from deit_jax.recipes.rows import Row, publish
from deit_jax.recipes.small import run_locally
from deit_jax.recipes.words import pick
from deit_jax.reporting import published


def get_config(argument: str = "small") -> ConfigDict:
    words = pick(
        "deit.py",
        argument,
        size=(*SIZES, "vit_base"),
        teaching=("distilled", "soft"),
        epochs=EPOCHS,
        image_size=TRAIN_SIZES,
        where=("runlocal",),
    )
    size = words["size"] or "small"
    if size == "vit_base" and words["teaching"]:
        raise ConfigError(f"configs/deit.py:{argument}: vit_base has no distillation token")
    config = vit_base() if size == "vit_base" else deit(size, distilled=bool(words["teaching"]))
    if words["teaching"]:
        distil(config, "soft" if words["teaching"] == "soft" else "hard")
    if words["epochs"]:
        config.train.epochs = int(words["epochs"])
    if words["image_size"]:
        config.image_size = pixels(words["image_size"])
    publish(config, ROWS, argument)
    if words["where"] == "runlocal":
        run_locally(config)
    return config


def vit_base() -> ConfigDict:
    """ViT-B's column of Table 9. Not in it, and chosen here: no floor under the cosine, a rate that moves every step."""
    config = deit("base")
    config.train.batch_size = 4096
    config.train.clip_norm = 1.0
    config.optimizer.weight_decay = 0.3
    config.schedule.base_learning_rate, config.schedule.base_batch_size = 3e-3, 4096
    config.schedule.warmup_epochs = 3.4
    config.schedule.warmup_learning_rate = config.schedule.min_learning_rate = 0.0
    config.schedule.kind, config.schedule.per_step = "plain", True
    config.model.dropout_rate, config.model.drop_path_rate = 0.1, 0.0
    config.data.repeats = 1
    config.augment.rand_augment = ""
    config.augment.mixup_alpha = config.augment.cutmix_alpha = 0.0
    config.augment.erase_probability = 0.0
    config.augment.label_smoothing = 0.0
    return config


_LABELS = {"tiny": "DeiT-Ti", "small": "DeiT-S", "base": "DeiT-B"}
_TEACHER = "teacher.py:regnety_160"


def _rows() -> list[Row]:
    rows = [
        Row("Table 1", size, _LABELS[size],
            note=f"{row.parameters / 1e6:g} M parameters, {row.images_per_second:g} images/s")
        for size, row in zip(SIZES, published.TABLE_1, strict=True)
    ]  # fmt: skip
    rows.append(Row("Table 2", "base", "DeiT-B, the teacher", {"ImageNet": published.TABLE_2[0].teacher_top1}))
    none = published.TABLE_3[0]
    rows += [Row("Table 3", size, f"{_LABELS[size]}, no teacher", {"ImageNet": getattr(none, size)}) for size in SIZES]
    rows.append(Row("Table 4", "base", "DeiT", note=f"wrong on {100 * published.TABLE_4[0][2]:.1f} % of the images"))
    for row in published.TABLE_5:
        if not row.model.startswith("deit") or row.image_size != 224:
            continue
        size, distilled = row.model.split("_")[1], "distilled" in row.model
        argument = size + ",distilled" * distilled + ",1000" * (row.epochs == 1000)
        what = row.label + (f", {row.epochs} epochs" if row.epochs != 300 else "")
        rows.append(Row("Table 5", argument, what, row.figures, teacher=_TEACHER if distilled else ""))
    imagenet = published.TABLE_6["ImageNet"]
    vit = next(row for row in published.TABLE_5 if row.label.startswith("ViT-B"))
    middle = next(row for row in published.TABLE_10 if row.image_size == 224)
    rows += [
        Row("Table 6", "base", "ImageNet",
            note=f"{imagenet.train_images:,} / {imagenet.test_images:,} images, {imagenet.classes} classes"),
        Row("Table 9", "base", "DeiT-B's column", {"ImageNet": published.TABLE_8[0].top1}),
        Row("Table 9", "vit_base", "ViT-B's column",
            note=f"{vit.imagenet} after fine-tuning at {vit.image_size} pixels (Table 5)"),
        Row("Table 10", "base", "224 pixels, as trained",
            {"ImageNet": middle.imagenet, "ReaL": middle.real, "V2": middle.v2}),
    ]  # fmt: skip
    rows += [
        Row("Figure 3", f"base,{epochs}" if epochs != 300 else "base", f"no teacher, {epochs} epochs",
            {"ImageNet": published.FIGURE_3_NO_DISTILLATION} if epochs != 300 else {"ImageNet": none.base},
            note="the dotted line: no more after about 400 epochs" if epochs != 300 else "")
        for epochs in published.FIGURE_3_EPOCHS
    ]  # fmt: skip
    return rows


ROWS = _rows()
