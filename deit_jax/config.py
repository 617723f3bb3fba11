"""Every option of the configuration once: its type, default, meaning, unit and source, and the values that it may have.

The defaults are neutral: no regularisation, no augmentation but flips and crops, a plain cosine schedule. The paper's recipe is
in `configs/deit.py`; files under `configs/` start from that recipe or from `default_config()`. Values derived from others (scaled
learning rate, number of steps, image size) are computed by `deit_jax.training.plan.resolve` after the command line's overrides.

A class is a section, config.<name>, and an attribute a field of it. All follows from these lines: `default_config`, the checks of
`deit_jax.config_check.validate`, what --config.FIELD=VALUE means, --help=config, docs/options.md, and how to read the
config.json of a run that began before a field existed. `deit_jax.options.Option` says what can be declared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from deit_jax.errors import UserError
from deit_jax.loss_kinds import loss_kind
from deit_jax.options import ALWAYS_RECORDED, Option, declared, option

# Parameter names ("/"-joined) that AdamW does not decay: every 1-D tensor is a bias or a normalisation scale, and the released
# code exempts cls_token and pos_embed, not dist_token (its authors confirm that dist_token is meant to decay).
RELEASED_NO_DECAY = (r"(^|/)(bias|scale)$", r"^(cls_token|pos_embed)$")

# model.weights of a configuration that continues from a trained model, until its user says which; training is refused, what needs
# no weights (compile, preview, eval of a workdir) is not.
MUST_BE_GIVEN = "???"

OPTIONS: dict[str, Option] = {}  # by dotted name
SECTIONS: dict[str, str] = {}  # what each section is about


def _section(name: str) -> Callable[[type], type]:
    """Declare the fields of config.<name> by a class; "": of the configuration itself."""

    def declare(section: type) -> type:
        SECTIONS[name] = section.__doc__ or ""
        OPTIONS.update({f"{name}.{field}".lstrip("."): found for field, found in declared(section)})
        return section

    return declare


# fmt: off
@_section("")
class _General:
    """The run as a whole."""

    seed: int = option(0, "of everything random: the initial weights, the data's order, augmentations, dropping", at_least=0)
    num_classes: int | None = option(None, "None: as many as the data set has", at_least=1)
    image_size: int | None = option(None, "pixels; None: the size in the model's name", at_least=1)
    compute_dtype: str = option("auto", "auto: bfloat16 on TPU and GPU, float32 on CPU; parameters are always float32",
        choices=("auto", "float32", "bfloat16"))
    plugins: tuple[str, ...] = option((), "modules that are imported first, by name: they register models, data sources and "
        "losses of your own (docs/extending.md)", before=())
    on_nonfinite: str = option("stop", "a loss or gradient that is not finite: stop, skip (leave the step out) or rollback (to "
        "the last checkpoint, then other data)", choices=("stop", "skip", "rollback"), before="stop")
    published: ConfigDict = option({}, "published or earlier figures, printed beside this run's in the closing table: "
        '{"what": top-1 in percent}')


@_section("model")
class _Model:
    """The network, and what its weights start from."""

    name: str = option("deit_small_patch16_224", "any of deit_jax.list_models()")
    overrides: ConfigDict = option({}, "fields of the model: --config.model.overrides.depth=6, in a file dict(depth=6)")
    weights: str = option("", 'start from: a workdir of this project, a weights file (as teacher.weights), or "pretrained"; '
        '"": a random start. Heads of another number of classes start from scratch, position embeddings are resized; all else '
        "must fit", before="")
    variables: str = option("raw", "which weights of a workdir or training checkpoint",
        choices="weights.loading.WHICH", before="raw", only_if_typed=True)
    reset_heads: bool = option(False, "start the heads from scratch even if they fit: other classes, as many", before=False)
    drop_path_rate: float = option(0.0, "stochastic depth of the last block; rates grow linearly from 0",
        at_least=0, at_most=0.999, of_model=True)
    dropout_rate: float = option(0.0, "after the position embedding, attention projection and MLP layers",
        at_least=0, at_most=0.999, of_model=True)
    drop_dtype: str = option("float32", "the type in which what dropout and stochastic depth keep is divided by the keep "
        "probability: float32 (PyTorch's) or compute (compute_dtype: bfloat16 rounds the probability itself, by up to 0.4 %, "
        "as versions before this field did)", choices="models.layers.DIVISIONS", before="compute", of_model=True)
    residual_dtype: str = option("compute", "the type of a transformer's residual stream, the sum of its blocks: compute "
        "(compute_dtype) or float32, as under PyTorch's mixed precision and so in the released code; it changes bfloat16 runs "
        "only (docs/parity.md)", choices="models.vit.RESIDUALS", before="compute", of_model=True)
    regnet_init: str = option("timm_0.5", "a RegNet's random start: timm_0.5 (timm since 0.5: fan_out within a convolution "
        "group, squeeze-and-excitation biases 0) or timm_0.3 (timm 0.3.2, which the released code pins: fan_out of all groups, "
        "those biases PyTorch's uniform)", choices="models.regnet.INITIALISATIONS", before="timm_0.5", of_model=True)
    fusion: str = option("logits", "how two heads become one: the mean of their logits (released code), of their softmax "
        "(paper), or class: the class head alone", choices="models.protocol.FUSIONS", of_model=True)
    attention: str = option("xla", "xla: written out; dot_product: jax.nn's; cudnn: its fused kernel, for bfloat16 on NVIDIA "
        "GPUs", choices="models.vit.ATTENTIONS", before="xla", of_model=True)
    remat: str = option("none", "what is computed again in the backward pass instead of kept: none, dots (all but matrix "
        "products) or full", choices="models.vit.REMAT_POLICIES", before="none", of_model=True)
    scan_blocks: bool = option(False, "one compiled block for all: compiles faster; without remat it needs more memory",
        before=False, of_model=True)


@_section("distillation")
class _Distillation:
    """The loss: from labels alone, or also from a teacher."""

    kind: str = option("none", "none: only for a model without a distillation token. soft, hard: with a distillation token the "
        "teacher teaches that token, else the class token. Without a teacher, for a model with a distillation token: labels, "
        "which each head learns (section 4's control); labels_mean, which the mean of the two heads' logits learns (how the "
        "released code fine-tuned); labels_class, which the class head alone learns (an answer of the authors'; with "
        "model.fusion=class). Or the name of a registered loss, which has a section of its own, config.<kind>",
        choices="loss_kinds.loss_kinds")
    alpha: float = option(0.5, "weight of the teacher's term; 1 - alpha is the labels'. The paper's soft rows use 0.1",
        at_least=0, at_most=1)
    tau: float = option(1.0, "temperature of soft distillation. The paper's soft rows use 3.0", at_least=1e-6)
    kl: str = option("released", "released: KL(teacher||student), as published code; paper: KL(student||teacher)",
        choices=("released", "paper"))
    kl_mean: str = option("elements", "KL's sum is divided by: elements (batch * classes, published code) or batch (timm's)",
        choices=("elements", "batch"), before="elements")


@_section("teacher")
class _Teacher:
    """Who teaches, if distillation.kind needs a teacher."""

    name: str = option("regnety_160", "several, separated by commas, teach by the mean of their probabilities",
        only_if_typed=True)
    overrides: ConfigDict = option({}, "as model.overrides", only_if_typed=True)
    weights: str = option("", "a workdir trained by this project; a weights file of timm, torchvision, pycls, transformers or "
        "mmpretrain; \"pretrained\": the published weights, from the Hugging Face hub; \"embedded\": the quick start's "
        'teacher, which comes with the package; or "random" (only to try a configuration). As many as there are names')
    variables: str = option("raw", "which weights of a workdir or training checkpoint", choices="weights.loading.WHICH")
    on_change: str = option("stop", "other weights than the run began with: stop, or continue with them",
        choices=("stop", "continue"), before="stop")
    mean: tuple[float, float, float] | None = option(None, "of RGB in [0, 1], that the teacher was trained with; None: as the "
        "student's images are normalised", at_least=0, at_most=1, before=None)
    std: tuple[float, float, float] | None = option(None, "as mean", above=0, before=None)
    classes: tuple[int, ...] | None = option(None, "which of the teacher's classes is each of the student's, e.g. (0, 217, "
        "482); None: the same classes", at_least=0, before=None)
    recipe: ConfigDict | None = option(None, "a whole config: the teacher is first trained by it, in <workdir>/teacher")


@_section("data")
class _Data:
    """The images, and how they are read and cropped."""

    source: str = option("tfds", "fashion_mnist_10k is embedded; or the name of a registered source",
        choices="data.registry.source_names")
    name: str = option("imagenet2012", "TFDS name; a registered source may use it, the others do not", only_if_typed=True)
    path: str = option("", "npz: the file; folder: the root that holds the splits' folders; tfds: data_dir (\"\" = TFDS's "
        "default)")
    train_split: str = option("train", "a split's name, or a part of one: \"train[:90%]\", \"train[1000:]\" (docs/data.md)")
    eval_split: str = option("validation", "likewise")
    images_per_class: int | None = option(None, "train on so many images of each class, to try few labels; None: on all",
        at_least=1, before=None)
    held_out: float = option(0.0, "folder, where there is no folder of eval_split: the share of every class's training images "
        "that is evaluated instead of trained on; path may then hold the class folders themselves. 0: the folder must be there",
        at_least=0, at_most=0.99, before=0.0)
    index: str = option("auto", "folder: where the list of its files is kept for the next start: a folder (several hosts may "
        "share it), \"auto\" for deit_jax in the user's cache folder, of several processes for .deit_jax-UID beside the "
        'workdir, "" for nowhere', before="auto")
    repeats: int = option(1, "repeated augmentation: copies of an image in the sampling order (paper, section 6: 3); 1 = off",
        at_least=1)
    train_crop: str = option("random_resized", "random_resized, padded (random crop after zero padding, the reference's for <= "
        "32 px) or center (the evaluation's, as FixRes fine-tunes)", choices=("random_resized", "padded", "center"))
    crop_scale: tuple[float, float] = option((0.08, 1.0), "random_resized: share of the area", above=0, at_most=1, ordered=True)
    crop_ratio: tuple[float, float] = option((3 / 4, 4 / 3), "random_resized: aspect ratio",
        at_least=1e-3, at_most=1e3, ordered=True)
    crop_padding: int = option(4, "padded: pixels on each side", at_least=0)
    max_eval_images: int | None = option(None, "None: all; else only the first so many are evaluated", at_least=1)
    on_bad_image: str = option("stop", "an image that cannot be used: stop, naming the file, or replace: train on the next one "
        "instead, leave it out of scores", choices=("stop", "replace"), before="stop")
    on_change: str = option("stop", "images added or removed since the run began: stop, or continue with those that are there; "
        "the epochs stay as long", choices=("stop", "continue"), before="stop")
    num_threads: int | None = option(None, "decoding threads, of each worker if there are any; 0: read between the steps; "
        "None: by the cores", at_least=0)
    num_workers: int = option(0, "decoding processes; 0 = threads only", at_least=0)
    prefetch_batches: int = option(2, "made ahead of the step", at_least=1)


@_section("augment")
class _Augment:
    """What happens to training images and labels on the device."""

    mean: tuple[float, float, float] = option((0.485, 0.456, 0.406), "of RGB in [0, 1]", at_least=0, at_most=1)
    std: tuple[float, float, float] = option((0.229, 0.224, 0.225), "likewise", above=0)
    flip_probability: float = option(0.5, "left and right", at_least=0, at_most=1)
    rand_augment: str = option("", "timm's notation, e.g. rand-m9-mstd0.5-inc1; \"\" = off")
    auto_augment: str = option("", "timm's notation: original, originalr, v0 or v0r, with -mstdX or without; \"\" = off",
        before="")
    color_jitter: float = option(0.0, "brightness, contrast and saturation by factors in 1 -+ this; needs the two above off",
        at_least=0, before=0.0)
    erase_probability: float = option(0.0, "that an image loses a box", at_least=0, at_most=1)
    erase_mode: str = option("pixel", "pixel: a normal draw a pixel; rand: one colour a box; const: zero (the mean colour)",
        choices="augment.erasing.MODES")
    erase_count: int = option(1, "most boxes of an erased image, which share the area", at_least=1, before=1)
    mixup_alpha: float = option(0.0, "Beta parameter; 0 = off", at_least=0)
    cutmix_alpha: float = option(0.0, "Beta parameter; 0 = off", at_least=0)
    mix_mode: str = option("batch", "one draw for: a group (batch, the reference's), a pair of rows (pair) or a row (elem)",
        choices="augment.mixing.MODES", before="batch")
    mix_probability: float = option(1.0, "that a group is mixed at all", at_least=0, at_most=1)
    switch_probability: float = option(0.5, "that a mixed group gets cutmix rather than mixup, when both are on",
        at_least=0, at_most=1)
    label_smoothing: float = option(0.0, "share of the target that all classes get alike", at_least=0, below=1)
    group_size: int | None = option(None, "rows that share one mixing draw; None: the largest number, up to max_group_size, "
        "that suits the batch", at_least=1)
    max_group_size: int = option(256, "the reference's batch of one GPU (Ti and S 256, B 64)",
        at_least=1, before=256, only_if_typed=True)
    groups_per_block: int | None = option(None, "consecutive copies of an image are dealt to this many groups, at least "
        "data.repeats; None: 4 if that suits the batch", at_least=1)
    plan: str = option("auto", "how operations run; auto: sequential on CPU, chunked on TPU and GPU",
        choices="augment.plans.CHOICES", before="auto")


@_section("train")
class _Train:
    """The steps."""

    batch_size: int = option(1024, "images of a step over all devices, repeats counted", at_least=1)
    epochs: int = option(100, "an epoch is as many images as the data set has, repeats counted", at_least=1)
    max_steps: int | None = option(None, "stop early, the schedule unchanged", at_least=1)
    train_mode: bool = option(True, "False: modules run as in evaluation, without dropping and with BatchNorm's running "
        "statistics, as the released 384-pixel models were fine-tuned", before=True)
    accumulation_steps: int = option(1, "microbatches of a step; the result is that of the whole batch", at_least=1)
    clip_norm: float | None = option(None, "global gradient norm; None: no clipping", above=0)


@_section("optimizer")
class _Optimizer:
    """The update of the parameters."""

    name: str = option("adamw", "adamw, or sgd (Nesterov)", choices=("adamw", "sgd"))
    betas: tuple[float, float] = option((0.9, 0.999), "adamw: decay of the mean gradient, and of its square",
        at_least=0, below=1)
    eps: float = option(1e-8, "adamw: added to the root of the mean square", at_least=0)
    momentum: float = option(0.9, "of sgd", at_least=0, below=1)
    weight_decay: float = option(0.0, "adamw: decoupled, times the learning rate; sgd: added to the gradient", at_least=0)
    trainable: tuple[str, ...] = option((".*",), 'regular expressions over "/"-joined parameter names; the rest stays as it is',
        patterns=True, before=(".*",))
    no_decay: tuple[str, ...] = option(RELEASED_NO_DECAY, 'regular expressions over "/"-joined parameter names', patterns=True)


@_section("schedule")
class _Schedule:
    """The learning rate."""

    kind: str = option("plain", "plain: a cosine after a linear warm-up; released: epoch e runs at the rate of epoch e - 1 (as "
        "the published weights did)", choices=("released", "plain"))
    base_learning_rate: float = option(5e-4, "for base_batch_size images", at_least=0)
    base_batch_size: int = option(512, "peak rate = base_learning_rate * batch_size / base_batch_size", at_least=1)
    warmup_epochs: float = option(0.0, "in which the rate rises linearly", at_least=0)
    warmup_learning_rate: float = option(1e-6, "the first epoch's; not scaled", at_least=0)
    min_learning_rate: float = option(0.0, "not scaled", at_least=0)
    per_step: bool = option(True, "the rate moves every step; False: every epoch")


@_section("ema")
class _Ema:
    """A moving average of the weights."""

    decay: float = option(0.0, "of weights and BatchNorm statistics, every step; 0 = off", at_least=0, at_most=1)


@_section("evaluation")
class _Evaluation:
    """What is scored, when and how."""

    batch_size: int = option(1024, "over all devices", at_least=1)
    every_epochs: int = option(1, "0: only at the end", at_least=0)
    protocol: str = option("deit", "whose resize and crop: deit (with crop_ratio), timm or mmpretrain (docs/data.md)",
        choices=("deit", "timm", "mmpretrain"), before="deit")
    crop_ratio: float = option(0.875, "deit: the image is resized to image_size / crop_ratio before the centre crop",
        at_least=0.01, at_most=1)
    teacher: bool = option(True, "measure the teacher on the same images first", only_if_typed=True)
    memory_gib: float = option(2.0, "GiB of each process, to keep the cropped images between evaluations if they fit; 0: none",
        at_least=0, before=2.0)
    extra: ConfigDict = option({}, "further sets to score at the end, by name: ConfigDicts of source, name, path and split, as "
        "in config.data (and labels: a file of ReaL's labels, or \"\"). One that is not there is left out with a warning",
        before={})


@_section("checkpoint")
class _Checkpoint:
    """When a run is saved."""

    every_steps: int | None = option(None, "None: once an epoch", at_least=1)
    keep: int = option(2, "newest checkpoints kept; besides them the one with the best top-1", at_least=1)


@_section("log")
class _Log:
    """What is written down of a run."""

    every_steps: int = option(50, "a row of metrics.jsonl and a line on the console", at_least=1)
    tensorboard: bool = option(True, "write WORKDIR/tensorboard (docs/logging.md)")
    wandb: bool = option(False, "log to Weights & Biases too; mode, login and server by wandb's own settings (docs/logging.md)")
    wandb_project: str = option("", '"": WANDB_PROJECT of the environment, else deit_jax')
    wandb_entity: str = option("", "\"\": WANDB_ENTITY, else the user's default")
    wandb_name: str = option("", "of the run; \"\": WANDB_NAME, else the workdir's name")
    images: bool = option(True, "pictures to both: training images as the model saw them, at the start; what the report draws, "
        "at the end")
    report: bool = option(True, "a finished run writes WORKDIR/report.html (docs/report.md)")
    peak_tflops: float | None = option(None, "of one device in the type computed in, for the MFU; None: the published bfloat16 "
        "peak of chips that are listed (aot/topologies.py), no MFU on others", above=0)
    profile_steps: int = option(0, "steps whose profile is written to WORKDIR/tensorboard; 0: none", at_least=0)
    profile_after: int = option(10, "steps of this start that pass before", at_least=1)


@_section("parallel")
class _Parallel:
    """Devices and processes."""

    fsdp: int = option(1, "devices that share one copy of parameters, optimizer state and EMA; 1: each has its own", at_least=1)
    sharding_rules: tuple[tuple[str, str], ...] = option(((".*", "fsdp"),), '(regular expression over "/"-joined names of the '
        'state, "fsdp" or "replicate"); the first that matches holds', patterns=True)
    fsdp_min_size: int = option(4096, "values; smaller arrays are replicated", at_least=0)
    xla_options: str = option("", '"name=value,name=value": of XLA for the train step, over those of parallel/xla_options.py')
    compilation_cache: str = option("auto", "folder of compiled programs, which later runs take; auto: ~/.cache/deit_jax, of "
        'several processes .deit_jax-UID beside the workdir; "": none')
    heartbeat_seconds: int = option(60, "several processes: one that is silent for this many seconds counts as gone, and the "
        "others stop", at_least=10)
    join_seconds: int = option(300, "several processes: so long the first to start waits for the last", at_least=1)
    keep_host_memory: bool = option(True, "CPU: with glibc, keep freed step buffers mapped")
# fmt: on

# What a field meant before it existed: how to read a config.json that does not have it; the default may be another today.
# test_record.py asks it of every field that the first version did not have, without log, parallel and checkpoint, which change no
# number.
BEFORE_IT_EXISTED = {name: each.before for name, each in OPTIONS.items() if each.before is not ALWAYS_RECORDED}


class ConfigError(UserError):
    """A configuration that cannot be run. The message is one line: which field, what is wrong, what to do."""


def default_config() -> ConfigDict:
    """DeiT-S from labels alone, with nothing switched on: every option at its default. Locked: unknown keys are refused."""
    config = ConfigDict({name: {} for name in SECTIONS if name})
    for name, each in OPTIONS.items():
        section, _, field = name.rpartition(".")
        place = config[section] if section else config
        if each.default is None:
            place[field] = placeholder(each.kind.base)
        else:
            place[field] = ConfigDict(each.default) if each.kind.base is ConfigDict else each.default
    return config.lock()


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
