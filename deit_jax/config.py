"""Every configuration field once, with its meaning, unit and source.

The defaults are neutral: no regularisation, no augmentation but flips and crops, a plain cosine schedule. The paper's recipe is
in `configs/deit.py`; files under `configs/` start from that recipe or from `default_config()`. Values derived from others (scaled
learning rate, number of steps, image size) are computed by `deit_jax.training.plan.resolve` after the command line's overrides.
What cannot be run is refused by `deit_jax.config_check.validate`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from deit_jax.errors import UserError
from deit_jax.loss_kinds import loss_kind

# Parameter names ("/"-joined) that AdamW does not decay: every 1-D tensor is a bias or a normalisation scale, and the released
# code exempts cls_token and pos_embed, not dist_token (its authors confirm that dist_token is meant to decay).
RELEASED_NO_DECAY = (r"(^|/)(bias|scale)$", r"^(cls_token|pos_embed)$")

# model.weights of a configuration that continues from a trained model, until its user says which; training is refused, what needs
# no weights (compile, preview, eval of a workdir) is not.
MUST_BE_GIVEN = "???"


class ConfigError(UserError):
    """A configuration that cannot be run. The message is one line: which field, what is wrong, what to do."""


def default_config() -> ConfigDict:
    """DeiT-S from labels alone, with nothing switched on. Locked: unknown keys are refused."""
    config = ConfigDict()
    config.seed = 0  # of everything random: the initial weights, the data's order, augmentations, dropping
    config.num_classes = placeholder(int)  # None: as many as the data set has
    config.image_size = placeholder(int)  # pixels; None: the size in the model's name
    config.compute_dtype = "auto"  # auto: bfloat16 on TPU and GPU, float32 on CPU; parameters are always float32

    # modules that are imported first, by name: they register models, data sources and losses of your own (docs/extending.md)
    config.plugins = ()

    # a loss or gradient that is not finite: stop | skip (leave the step out) | rollback (to the last checkpoint, then other data)
    config.on_nonfinite = "stop"

    config.model = model = ConfigDict()
    model.name = "deit_small_patch16_224"  # any of deit_jax.list_models()
    model.overrides = ConfigDict()  # fields of the model: --config.model.overrides.depth=6, in a file dict(depth=6)
    # start from: a workdir of this project, a weights file (as teacher.weights), or "pretrained"; "": a random start. Heads
    # of another number of classes start from scratch, position embeddings are resized; all else must fit
    model.weights = ""
    model.variables = "raw"  # which weights of a workdir or training checkpoint: raw or ema
    model.reset_heads = False  # start the heads from scratch even if they fit: other classes, as many
    model.drop_path_rate = 0.0  # stochastic depth of the last block; rates grow linearly from 0
    model.dropout_rate = 0.0  # after the position embedding, attention projection and MLP layers
    # the type in which what dropout and stochastic depth keep is divided by the keep probability: float32 (PyTorch's) | compute
    # (compute_dtype: bfloat16 rounds the probability itself, by up to 0.4 %, as versions before this field did)
    model.drop_dtype = "float32"
    # the type of a transformer's residual stream, the sum of its blocks: compute (compute_dtype) | float32, as under PyTorch's
    # mixed precision and so in the released code; it changes bfloat16 runs only (docs/parity.md)
    model.residual_dtype = "compute"
    # a RegNet's random start: timm_0.5 (timm since 0.5: fan_out within a convolution group, squeeze-and-excitation biases 0) |
    # timm_0.3 (timm 0.3.2, which the released code pins: fan_out of all groups, those biases PyTorch's uniform)
    model.regnet_init = "timm_0.5"
    # xla: written out; dot_product: jax.nn's; cudnn: its fused kernel, for bfloat16 on NVIDIA GPUs
    model.attention = "xla"
    # computed again in the backward pass instead of kept: none | dots (all but matrix products) | full
    model.remat = "none"
    model.scan_blocks = False  # one compiled block for all: compiles faster; without remat it needs more memory
    # how two heads become one: the mean of their logits (released code) | of their softmax (paper) | class: the class head alone
    model.fusion = "logits"

    config.distillation = distillation = ConfigDict()
    # none: only for a model without a distillation token | soft | hard: with a distillation token the teacher teaches that token,
    # else the class token. Without a teacher, for a model with a distillation token: labels, which each head learns (section 4's
    # control) | labels_mean, which the mean of the two heads' logits learns (how the released code fine-tuned) | labels_class,
    # which the class head alone learns (an answer of the authors'; with model.fusion=class). Or the name of a registered loss,
    # which has a section of its own, config.<kind>
    distillation.kind = "none"
    distillation.alpha = 0.5  # weight of the teacher's term; 1 - alpha is the labels'. The paper's soft rows use 0.1
    distillation.tau = 1.0  # temperature of soft distillation. The paper's soft rows use 3.0
    distillation.kl = "released"  # released: KL(teacher||student), as published code; paper: KL(student||teacher)
    distillation.kl_mean = "elements"  # KL's sum over: elements (batch * classes, published code) | batch (timm's)

    config.teacher = teacher = ConfigDict()
    teacher.name = "regnety_160"  # several, separated by commas, teach by the mean of their probabilities
    teacher.overrides = ConfigDict()  # as model.overrides
    # a workdir trained by this project; a weights file of timm, torchvision, pycls, transformers or mmpretrain; "pretrained":
    # the published weights, from the Hugging Face hub; "embedded": the quick start's teacher, which comes with the package; or
    # "random" (only to try a configuration). As many as there are names
    teacher.weights = ""
    teacher.variables = "raw"  # which weights of a workdir or training checkpoint: raw or ema
    teacher.on_change = "stop"  # other weights than the run began with: stop | continue with them
    # of RGB in [0, 1], that the teacher was trained with; None: as the student's images are normalised
    teacher.mean = placeholder(tuple)
    teacher.std = placeholder(tuple)  # as mean
    # which of the teacher's classes is each of the student's, e.g. (0, 217, 482); None: the same classes
    teacher.classes = placeholder(tuple)
    teacher.recipe = placeholder(ConfigDict)  # a whole config: the teacher is first trained by it, in <workdir>/teacher

    config.data = data = ConfigDict()
    data.source = "tfds"  # fashion_mnist_10k (embedded) | npz | folder | tfds, or the name of a registered source
    data.name = "imagenet2012"  # TFDS name; a registered source may use it, the others do not
    data.path = (
        ""  # npz: the file; folder: the root that holds the splits' folders; tfds: data_dir ("" = TFDS's default)
    )
    data.train_split = "train"  # a split's name, or a part of one: "train[:90%]", "train[1000:]" (docs/data.md)
    data.eval_split = "validation"  # likewise
    data.images_per_class = placeholder(int)  # train on so many images of each class, to try few labels; None: on all
    # folder, where there is no folder of eval_split: the share of every class's training images that is evaluated instead of
    # trained on; path may then hold the class folders themselves. 0: the folder must be there
    data.held_out = 0.0
    # folder: where the list of its files is kept for the next start: a folder (several hosts may share it), "auto" for deit_jax
    # in the user's cache folder, of several processes for .deit_jax-UID beside the workdir, "" for nowhere
    data.index = "auto"
    data.repeats = 1  # repeated augmentation: copies of an image in the sampling order (paper, section 6: 3); 1 = off
    # random_resized | padded (random crop after zero padding, the reference's for <= 32 px) | center (the evaluation's, as FixRes
    # fine-tunes)
    data.train_crop = "random_resized"
    data.crop_scale = (0.08, 1.0)  # random_resized: share of the area
    data.crop_ratio = (3 / 4, 4 / 3)  # random_resized: aspect ratio
    data.crop_padding = 4  # padded: pixels on each side
    data.max_eval_images = placeholder(int)  # None: all; else only the first so many are evaluated
    # an image that cannot be used: stop, naming the file | replace: train on the next one instead, leave it out of scores
    data.on_bad_image = "stop"
    # images added or removed since the run began: stop | continue with those that are there; the epochs stay as long
    data.on_change = "stop"
    # decoding threads, of each worker if there are any; 0: read between the steps; None: by the cores
    data.num_threads = placeholder(int)
    data.num_workers = 0  # decoding processes; 0 = threads only
    data.prefetch_batches = 2  # made ahead of the step

    config.augment = augment = ConfigDict()
    augment.mean = (0.485, 0.456, 0.406)  # of RGB in [0, 1]
    augment.std = (0.229, 0.224, 0.225)  # likewise
    augment.flip_probability = 0.5  # left and right
    augment.rand_augment = ""  # timm's notation, e.g. rand-m9-mstd0.5-inc1; "" = off
    augment.auto_augment = ""  # timm's notation: original, originalr, v0 or v0r, with -mstdX or without; "" = off
    augment.color_jitter = 0.0  # brightness, contrast and saturation by factors in 1 -+ this; needs the two above off
    augment.erase_probability = 0.0  # that an image loses a box
    augment.erase_mode = "pixel"  # pixel: a normal draw a pixel; rand: one colour a box; const: zero (the mean colour)
    augment.erase_count = 1  # most boxes of an erased image, which share the area
    augment.mixup_alpha = 0.0  # Beta parameter; 0 = off
    augment.cutmix_alpha = 0.0  # Beta parameter; 0 = off
    augment.mix_mode = "batch"  # one draw for: a group (batch, the reference's) | a pair of rows (pair) | a row (elem)
    augment.mix_probability = 1.0  # that a group is mixed at all
    augment.switch_probability = 0.5  # that a mixed group gets cutmix rather than mixup, when both are on
    augment.label_smoothing = 0.0  # share of the target that all classes get alike
    # rows that share one mixing draw; None: the largest number, up to max_group_size, that suits the batch
    augment.group_size = placeholder(int)
    augment.max_group_size = 256  # the reference's batch of one GPU (Ti and S 256, B 64)
    # consecutive copies of an image are dealt to this many groups, at least data.repeats; None: 4 if that suits the batch
    augment.groups_per_block = placeholder(int)
    augment.plan = "auto"  # how operations run: sequential | chunked | auto (CPU: sequential; TPU and GPU: chunked)

    config.train = train = ConfigDict()
    train.batch_size = 1024  # images of a step over all devices, repeats counted
    train.epochs = 100  # an epoch is as many images as the data set has, repeats counted
    train.max_steps = placeholder(int)  # stop early, the schedule unchanged
    # False: modules run as in evaluation, without dropping and with BatchNorm's running statistics, as the released
    # 384-pixel models were fine-tuned
    train.train_mode = True
    train.accumulation_steps = 1  # microbatches of a step; the result is that of the whole batch
    train.clip_norm = placeholder(float)  # global gradient norm; None: no clipping

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"  # adamw | sgd (Nesterov)
    optimizer.betas = (0.9, 0.999)  # adamw: decay of the mean gradient, and of its square
    optimizer.eps = 1e-8  # adamw: added to the root of the mean square
    optimizer.momentum = 0.9  # of sgd
    optimizer.weight_decay = 0.0  # adamw: decoupled, times the learning rate; sgd: added to the gradient
    optimizer.trainable = (".*",)  # regular expressions over "/"-joined parameter names; the rest stays as it is
    optimizer.no_decay = RELEASED_NO_DECAY  # regular expressions over "/"-joined parameter names

    config.schedule = schedule = ConfigDict()
    # plain: a cosine after a linear warm-up; released: epoch e runs at the rate of epoch e - 1 (as the published weights did)
    schedule.kind = "plain"
    schedule.base_learning_rate = 5e-4  # for base_batch_size images
    schedule.base_batch_size = 512  # peak rate = base_learning_rate * batch_size / base_batch_size
    schedule.warmup_epochs = 0.0  # in which the rate rises linearly
    schedule.warmup_learning_rate = 1e-6  # the first epoch's; not scaled
    schedule.min_learning_rate = 0.0  # not scaled
    schedule.per_step = True  # the rate moves every step; False: every epoch

    config.ema = ema = ConfigDict()
    ema.decay = 0.0  # of weights and BatchNorm statistics, every step; 0 = off

    config.evaluation = evaluation = ConfigDict()
    evaluation.batch_size = 1024  # over all devices
    evaluation.every_epochs = 1  # 0: only at the end
    evaluation.protocol = "deit"  # whose resize and crop: deit (with crop_ratio) | timm | mmpretrain (docs/data.md)
    evaluation.crop_ratio = 0.875  # deit: the image is resized to image_size / crop_ratio before the centre crop
    evaluation.teacher = True  # measure the teacher on the same images first
    # GiB of each process, to keep the cropped images between evaluations if they fit; 0: none
    evaluation.memory_gib = 2.0
    # further sets to score at the end, by name: ConfigDicts of source, name, path and split, as in config.data (and labels: a
    # file of ReaL's labels, or ""). One that is not there is left out with a warning
    evaluation.extra = ConfigDict()

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_steps = placeholder(int)  # None: once an epoch
    checkpoint.keep = 2  # newest checkpoints kept; besides them the one with the best top-1

    config.log = log = ConfigDict()
    log.every_steps = 50  # a row of metrics.jsonl and a line on the console
    log.tensorboard = True  # write WORKDIR/tensorboard (docs/logging.md)
    log.wandb = False  # log to Weights & Biases too; mode, login and server by wandb's own settings (docs/logging.md)
    log.wandb_project = ""  # "": WANDB_PROJECT of the environment, else deit_jax
    log.wandb_entity = ""  # "": WANDB_ENTITY, else the user's default
    log.wandb_name = ""  # of the run; "": WANDB_NAME, else the workdir's name
    # pictures to both: training images as the model saw them, at the start; what the report draws, at the end
    log.images = True
    log.report = True  # a finished run writes WORKDIR/report.html (docs/report.md)
    # Of one device in the type computed in, for the MFU; None: the published bfloat16 peak of chips that are listed
    # (aot/topologies.py), no MFU on others.
    log.peak_tflops = placeholder(float)
    log.profile_steps = 0  # steps whose profile is written to WORKDIR/tensorboard; 0: none
    log.profile_after = 10  # steps of this start that pass before

    config.parallel = parallel = ConfigDict()
    parallel.fsdp = 1  # devices that share one copy of parameters, optimizer state and EMA; 1: each has its own
    # (regular expression over "/"-joined names of the state, "fsdp" or "replicate"); the first that matches holds
    parallel.sharding_rules = ((".*", "fsdp"),)
    parallel.fsdp_min_size = 4096  # values; smaller arrays are replicated
    parallel.xla_options = (
        ""  # "name=value,name=value": of XLA for the train step, over those of parallel/xla_options.py
    )
    # folder of compiled programs, which later runs take; auto: ~/.cache/deit_jax, of several processes .deit_jax-UID
    # beside the workdir; "": none
    parallel.compilation_cache = "auto"
    # several processes: one that is silent for this many seconds counts as gone, and the others stop
    parallel.heartbeat_seconds = 60
    parallel.join_seconds = 300  # several processes: so long the first to start waits for the last
    parallel.keep_host_memory = True  # CPU: with glibc, keep freed step buffers mapped

    # Published or earlier figures, printed beside this run's in the closing table: {"what": top-1 in percent}.
    config.published = ConfigDict()
    return config.lock()


# What a field meant before it existed: how to read a config.json that does not have it; the default may be another today. Whoever
# adds a field adds it here, and an entry never changes. Only log, parallel and checkpoint are left out: they change no number.
BEFORE_IT_EXISTED: dict[str, Any] = {
    # Not yet in every workdir of format 1:
    "on_nonfinite": "stop",
    "model.weights": "",
    "model.variables": "raw",
    "model.reset_heads": False,
    "model.attention": "xla",
    "model.remat": "none",
    "model.scan_blocks": False,
    "distillation.kl_mean": "elements",
    "teacher.mean": None,
    "teacher.std": None,
    "teacher.classes": None,
    "data.held_out": 0.0,
    "data.on_bad_image": "stop",
    "augment.auto_augment": "",
    "augment.color_jitter": 0.0,
    "augment.erase_count": 1,
    "augment.mix_mode": "batch",
    "augment.max_group_size": 256,
    "augment.plan": "auto",
    "train.train_mode": True,
    "optimizer.trainable": (".*",),
    "evaluation.protocol": "deit",
    "evaluation.extra": {},
    # Not yet in the first workdirs of version 0.1.0 (max_group_size bounds what they have recorded):
    "teacher.on_change": "stop",
    "data.index": "auto",
    "data.on_change": "stop",
    "data.images_per_class": None,
    "evaluation.memory_gib": 2.0,
    "model.drop_dtype": "compute",
    "model.residual_dtype": "compute",
    "model.regnet_init": "timm_0.5",
    "plugins": (),
}


def completed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a config.json, nested, what it does not have by `BEFORE_IT_EXISTED`, in JSON's types."""
    found = {name: dict(value) if isinstance(value, Mapping) else value for name, value in fields.items()}
    for name, value in BEFORE_IT_EXISTED.items():
        section, _, field = name.rpartition(".")
        (found.setdefault(section, {}) if section else found).setdefault(field, json.loads(json.dumps(value)))
    return found


def recorded_config(record: Mapping[str, Any]) -> ConfigDict:
    """The configuration of a workdir from its config.json, without the teacher's section; unlocked. See `completed`."""
    config = default_config().unlock()
    for section, fields in completed(record["config"]).items():
        if section == "teacher":
            continue
        if isinstance(fields, Mapping) and isinstance(config.get(section), ConfigDict):
            config[section].update(fields)
        else:
            config[section] = fields
    return config


def needs_teacher(config: ConfigDict) -> bool:
    """Whether the configuration distils from a teacher."""
    kind = loss_kind(config.distillation.kind)
    return kind is not None and kind.needs_teacher


def listed_names(text: str) -> list[str]:
    """The parts of a field that holds one or several, separated by commas."""
    return [part.strip() for part in text.split(",")]


def differing_fields(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of the fields in which two configurations, as nested mappings, differ. ~ equals the home folder's path."""
    names: list[str] = []
    for key in sorted(set(first) | set(second)):
        one, other = first.get(key), second.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            names += differing_fields(one, other, f"{prefix}{key}.")
        elif one != other and _without_tilde(one) != _without_tilde(other):
            names.append(prefix + key + ("." if isinstance(one, Mapping) or isinstance(other, Mapping) else ""))
    return names


def _without_tilde(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    parts = value.split(",")  # weights of several teachers
    return ",".join(os.path.expanduser(part.strip()) if part.lstrip().startswith("~") else part for part in parts)
