"""RegNetY teachers trained on ImageNet-1k with DeiT's data and augmentation, by SGD (section 5 of the paper's ICML version).

    python run.py --config=configs/teacher.py:regnety_160 --workdir=TEACHER_WORKDIR

Argument: regnety_040 | regnety_080 | regnety_120 | regnety_160 (Table 2) or any other RegNetY; then, after a comma, `runlocal`.
The student takes it with --config.teacher.weights=TEACHER_WORKDIR.

The authors did not publish their teachers' optimizer settings. Those below are of the usual kind for a RegNet (Nesterov momentum
0.9, rate 0.2 for 512 images, weight decay 5e-5, cosine, 5 epochs of warm-up, 100 epochs); not yet run on ImageNet.
"""

from ml_collections import ConfigDict

from deit_jax.config import ConfigError, default_config, run_locally
from deit_jax.models import list_models

_PUBLISHED = {"regnety_040": 80.0, "regnety_080": 81.7, "regnety_120": 82.4, "regnety_160": 82.9}  # Table 2


def get_config(argument: str = "regnety_160") -> ConfigDict:
    name, *options = argument.split(",")
    known = [model for model in list_models() if model.startswith("regnety")]
    if name not in known or set(options) - {"runlocal"}:
        raise ConfigError(f"configs/teacher.py:{argument}: give one of {', '.join(known)}, then perhaps ',runlocal'")

    config = default_config()
    config.model.name = name
    config.num_classes = 1000
    config.model.drop_path_rate = 0.0
    config.train.epochs = 100
    config.optimizer.name = "sgd"
    config.optimizer.weight_decay = 5e-5
    config.schedule.kind = "plain"
    config.schedule.base_learning_rate = 0.2
    config.schedule.warmup_learning_rate = 0.02
    config.schedule.min_learning_rate = 0.0
    if name in _PUBLISHED:
        with config.unlocked():
            config.published["the authors' teacher, ImageNet validation (Table 2)"] = _PUBLISHED[name]
    if "runlocal" in options:
        run_locally(config)
    return config
