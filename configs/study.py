"""The paper's comparisons in miniature: kinds of distillation, teachers and augmentation, on Fashion-MNIST and CPU.

    python benchmarks/study.py --test=full_test.npz --workdir=runs/study

runs all rows with three seeds and prints the table of docs/results.md. To run a single row, after its teacher:

    python run.py --config=configs/study.py:convnet --workdir=runs/convnet
    python run.py --config=configs/study.py:token --workdir=runs/token --config.teacher.weights=runs/convnet

Argument: a kind, then any of the changes, as in configs/study.py:token,mixing.

    convnet       the teacher, a small RegNetY
    none          a DeiT without token, trained on the labels (also the transformer teacher)
    soft, hard    the same DeiT distilled from a convnet, by soft (tau 3, weight 0.1) or hard distillation (Table 3)
    token         with a distillation token, by hard distillation: the paper's method
    token_soft    with a distillation token, by soft distillation
    two_tokens    no teacher; a second class token with the same labels (the control of section 4)

    transformer   the teacher is a plain DeiT (the row none)
    repeated      repeated augmentation, three copies
    mixing        mixup and cutmix
    erasing       random erasing
    no_drop_path  without stochastic depth

10,000 training images; six epochs of a DeiT with four blocks and 64 channels; a minute or two per row on one CPU core.
"""

from ml_collections import ConfigDict

from deit_jax.config import ConfigError
from deit_jax.recipes.small import fashion_mnist

KINDS = ("convnet", "none", "soft", "hard", "token", "token_soft", "two_tokens")
TAUGHT = ("soft", "hard", "token", "token_soft")
CHANGES = ("transformer", "repeated", "mixing", "erasing", "no_drop_path")
STUDENT = dict(patch_size=7, embed_dim=64, depth=4, num_heads=2)
TEACHER = dict(w0=32, wa=32.0, wm=2.0, depth=4, group_width=32)


def get_config(argument: str = "token") -> ConfigDict:
    kind, *changes = argument.split(",")
    unknown = [word for word in changes if word not in CHANGES]
    if kind not in KINDS or unknown:
        wrong = unknown[0] if kind in KINDS else kind
        raise ConfigError(
            f"configs/study.py:{argument}: {wrong!r} is not known; give one of {', '.join(KINDS)}, "
            f"then any of {', '.join(CHANGES)}"
        )
    ignored = {"convnet": ("transformer", "no_drop_path")}.get(kind, () if kind in TAUGHT else ("transformer",))
    for word in changes:
        if word in ignored:
            why = "has no teacher" if word == "transformer" else "has no stochastic depth"
            raise ConfigError(
                f"configs/study.py:{argument}: {kind} {why}, so {word!r} would change nothing: leave it out"
            )
    config = _common()
    if kind == "convnet":
        config.model.name = "regnety_002"
        with config.unlocked():
            config.model.overrides = dict(TEACHER)
        config.model.drop_path_rate = 0.0
        config.train.epochs = 5
        config.schedule.base_learning_rate = 1e-2
    else:
        token = kind in ("token", "token_soft", "two_tokens")
        config.model.name = f"deit_tiny{'_distilled' if token else ''}_patch16_224"
        with config.unlocked():
            config.model.overrides = dict(STUDENT)
    if kind in ("soft", "token_soft"):
        # The weight as in the paper's equation; the released code also divides by the number of classes.
        config.distillation.update(dict(kind="soft", alpha=0.1, tau=3.0, kl_mean="batch"))
    elif kind in ("hard", "token"):
        config.distillation.kind = "hard"
    elif kind == "two_tokens":
        config.distillation.kind = "labels"
    if kind in TAUGHT:
        config.teacher.name = "deit_tiny_patch16_224" if "transformer" in changes else "regnety_002"
    if "repeated" in changes:
        config.data.repeats = 3
    if "mixing" in changes:
        config.augment.mixup_alpha, config.augment.cutmix_alpha = 0.8, 1.0
    if "erasing" in changes:
        config.augment.erase_probability = 0.25
    if "no_drop_path" in changes:
        config.model.drop_path_rate = 0.0
    return config


def _common() -> ConfigDict:
    config = fashion_mnist()
    config.augment.max_group_size = 16
    config.train.epochs = 6
    config.schedule.base_learning_rate = 1e-3
    config.schedule.warmup_epochs = 1.0
    config.evaluation.every_epochs = 0
    config.evaluation.teacher = False
    return config
