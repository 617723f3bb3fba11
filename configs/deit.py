"""DeiT trained from scratch on ImageNet-1k: the paper's recipe (arXiv 2012.12877, Table 9).

    python run.py --config=configs/deit.py:small --workdir=WORKDIR
    python run.py --config=configs/deit.py:small,distilled --workdir=WORKDIR --config.teacher.weights=TEACHER_WORKDIR

Argument: tiny | small | base, then any of
    distilled   the distillation token, taught by the hard decisions of RegNetY-16GF (Table 3, last rows)
    soft        soft instead of hard distillation, alpha 0.1 and tau 3 (section 4)
    runlocal    the same modules and recipe on the embedded images, two steps of eight: does it run here?

ImageNet comes from TFDS (data.source=tfds) or from folders:
    --config.data.source=folder --config.data.path=FOLDER_WITH_train_AND_val

Published top-1 of the authors' runs: tiny 72.2, small 79.8, base 81.8; distilled 74.5, 81.2, 83.4. This code has not yet been run
on ImageNet, nor on a GPU or TPU.
"""

from ml_collections import ConfigDict

from deit_jax.config import ConfigError, default_config, run_locally

# Rows that share a mixing draw: the batch of one GPU in the authors' runs (4 GPUs of 256 for Ti and S, 16 of 64 for B).
_GROUP_SIZES = {"tiny": 256, "small": 256, "base": 64}
_PUBLISHED = {"tiny": (72.2, 74.5), "small": (79.8, 81.2), "base": (81.8, 83.4)}  # Table 5: plain, distilled


def get_config(argument: str = "small") -> ConfigDict:
    words = argument.split(",")
    size, options = words[0], set(words[1:])
    unknown = options - {"distilled", "soft", "runlocal"}
    if size not in _GROUP_SIZES or unknown:
        wrong = size if size not in _GROUP_SIZES else sorted(unknown)[0]
        raise ConfigError(
            f"configs/deit.py:{argument}: {wrong!r} is not known; give tiny, small or base[,distilled][,soft][,runlocal]"
        )
    distilled = bool(options & {"distilled", "soft"})

    config = default_config()
    config.model.name = f"deit_{size}{'_distilled' if distilled else ''}_patch16_224"
    config.augment.group_size = _GROUP_SIZES[size]
    config.num_classes = 1000
    if distilled:
        config.distillation.kind = "hard"
    if "soft" in options:
        config.distillation.kind, config.distillation.alpha, config.distillation.tau = "soft", 0.1, 3.0
    else:
        with config.unlocked():
            config.published["published, ImageNet validation (Table 5)"] = _PUBLISHED[size][distilled]
    if "runlocal" in options:
        run_locally(config)
    return config
