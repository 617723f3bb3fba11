"""The options of the configuration: type, default, meaning with unit and source, and allowed values of each.

The defaults are neutral: no regularisation, only flips and crops as augmentation, a plain cosine schedule. The paper's recipe is
in `configs/deit.py`; files under `configs/` start from that recipe or from `default_config()`. Derived values (scaled learning
rate, number of steps, image size) are computed by `deit_jax.training.plan.resolve`, after the overrides of the command line.

A class is a section, config.<name>, and its attributes are the fields. Everything else follows: `default_config`, the checks of
`deit_jax.config_check.validate`, the parsing of --config.FIELD=VALUE, --help=config, docs/options.md, and how a config.json older
than a field is read. See `deit_jax.options.Option` for what can be declared.
"""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from deit_jax.errors import UserError
from deit_jax.loss_kinds import loss_kind
from deit_jax.options import Option, declared, option

# Parameter names ("/"-joined) without weight decay. Every 1-D tensor is a bias or a normalisation scale. The released code also
# exempts cls_token and pos_embed, but not dist_token (its authors confirm that dist_token is meant to decay).
RELEASED_NO_DECAY = (r"(^|/)(bias|scale)$", r"^(cls_token|pos_embed)$")

# model.weights of a configuration that continues from a trained model, until the user sets it. Training is then refused, but not
# compile, preview or eval of a workdir, which do not need the weights.
MUST_BE_GIVEN = "???"

OPTIONS: dict[str, Option] = {}  # by dotted name
SECTIONS: dict[str, str] = {}  # descriptions


def _section(name: str) -> Callable[[type], type]:
    """Declares the fields of config.<name> by a class; "": those at the top level."""

    def declare(section: type) -> type:
        SECTIONS[name] = section.__doc__ or ""
        OPTIONS.update({f"{name}.{field}".lstrip("."): found for field, found in declared(section)})
        return section

    return declare


# fmt: off
@_section("")
class _General:
    """The run as a whole."""

    seed: int = option(0, "seed of initial weights, data order, augmentations, dropout and stochastic depth", at_least=0)
    num_classes: int | None = option(None, "None: the number of classes of the data set", at_least=1)
    image_size: int | None = option(None, "pixels; None: the size in the model's name", at_least=1)
    compute_dtype: str = option("auto", "auto: bfloat16 on TPU and GPU, float32 on CPU; parameters are always float32",
        choices=("auto", "float32", "bfloat16"))
    plugins: tuple[str, ...] = option((), "names of modules to import first, which register your own models, data sources "
        "and losses (docs/extending.md)", before=())
    on_nonfinite: str = option("stop", "if a loss or gradient is not finite: stop, skip the update, or rollback (to the last "
        "checkpoint, then continue with other data)", choices=("stop", "skip", "rollback"), before="stop")
    published: ConfigDict = option({}, "published or earlier results, printed in the closing table for comparison: "
        '{"what": top-1 in percent}. Those of a configuration file are removed if num_classes or data.name changes')


@_section("model")
class _Model:
    """The model and its initial weights."""

    name: str = option("deit_small_patch16_224", "one of deit_jax.list_models()")
    overrides: ConfigDict = option({}, "fields of the model, e.g. --config.model.overrides.depth=6, or in a file dict(depth=6)")
    weights: str = option("", 'initial weights: a workdir of this project, a weights file (as teacher.weights), "hf:OWNER/NAME" '
        '(a repository of the Hugging Face hub; @REVISION may follow) or "pretrained"; '
        '"": random. Heads with another number of classes start from scratch, position embeddings are resized; everything else '
        "must fit", before="")
    variables: str = option("raw", "the weights of a workdir or training checkpoint to use",
        choices="weights.loading.WHICH", before="raw", only_if_typed=True)
    reset_heads: bool = option(False, "start the heads from scratch even if they fit: for a different set of classes of the "
        "same size", before=False)
    drop_path_rate: float = option(0.0, "stochastic depth rate of the last block; rates grow linearly from 0",
        at_least=0, at_most=0.999, of_model=True, only_if_typed=True)
    dropout_rate: float = option(0.0, "dropout after the position embedding, attention projection and MLP layers",
        at_least=0, at_most=0.999, of_model=True, only_if_typed=True)
    patch_keep_rate: float = option(1.0, "part of the patch tokens that a training step computes, drawn for each image and step; "
        "1 - timm's patch_drop_rate. Evaluation computes all", above=0, at_most=1, before=1.0, of_model=True,
        only_if_typed=True)
    drop_dtype: str = option("float32", "dtype in which dropout and stochastic depth divide by the keep probability: float32 "
        "(as PyTorch) or compute (compute_dtype; bfloat16 rounds the probability itself by up to 0.4 %, as in "
        "versions before this field)", choices="models.layers.DIVISIONS", before="compute", of_model=True)
    residual_dtype: str = option("compute", "dtype of the residual stream of a transformer: compute (compute_dtype) or float32, "
        "as in PyTorch's mixed precision and therefore the released code; it affects only bfloat16 runs (docs/parity.md)",
        choices="models.vit.RESIDUALS", before="compute", of_model=True)
    gradient_dtype: str = option("compute", "dtype in which the gradients of a transformer's dense kernels are added over "
        "devices: compute (each device's rounded to compute_dtype) or float32 (as PyTorch's DDP under autocast; twice the "
        "bytes). It affects only bfloat16 runs", choices="models.layers.GRADIENTS", before="compute", of_model=True)
    regnet_init: str = option("timm_0.5", "random initialisation of a RegNet: timm_0.5 (timm since 0.5: fan_out within a "
        "convolution group, squeeze-and-excitation biases 0) or timm_0.3 (timm 0.3.2, which the released code pins: fan_out of "
        "all groups, those biases uniform as in PyTorch)", choices="models.regnet.INITIALISATIONS", before="timm_0.5",
        of_model=True, only_if_typed=True)
    fusion: str = option("logits", "how two heads are combined: logits (mean of the logits, released code), softmax (mean "
        "of the softmax, paper), or class (only the class head)", choices="models.protocol.FUSIONS", of_model=True)
    attention: str = option("auto", "xla: plain operations; dot_product: jax.nn.dot_product_attention; pallas: this project's "
        "fused kernel, on TPUs; cudnn: cuDNN's, for bfloat16 on NVIDIA GPUs; auto: a fused kernel where it is known to compile "
        "and to be reproducible, else xla; what a run started with is recorded (docs/performance.md)",
        choices="models.attention.ATTENTIONS", before="xla", of_model=True)
    remat: str = option("none", "what the backward pass recomputes instead of storing: none, dots (all except matrix products) "
        "or full", choices="models.vit.REMAT_POLICIES", before="none", of_model=True)
    scan_blocks: bool = option(False, "compile one block for all: compiles faster, but needs more memory without remat",
        before=False, of_model=True)


@_section("distillation")
class _Distillation:
    """The loss, with or without a teacher."""

    kind: str = option("none", "none: labels only, for a model without a distillation token. soft, hard: the teacher trains the "
        "distillation token, or the class token of a model without one. Without a teacher, if there is a distillation token: "
        "labels (labels train each head; the control in section 4), labels_mean (they train the mean of the two heads' logits; "
        "how the released code fine-tuned) or labels_class (they train only the class head; suggested by the authors; with "
        "model.fusion=class). Or the name of a registered loss, which has its own section, config.<kind>",
        choices="loss_kinds.loss_kinds")
    alpha: float = option(0.5, "weight of the teacher's term; the labels' is 1 - alpha. The paper's soft rows use 0.1",
        at_least=0, at_most=1)
    tau: float = option(1.0, "temperature of soft distillation. The paper's soft rows use 3.0", at_least=1e-6)
    kl: str = option("released", "released: KL(teacher||student), as in the released code; paper: KL(student||teacher)",
        choices=("released", "paper"))
    kl_mean: str = option("elements", "divisor of the KL sum: elements (batch * classes, released code) or batch (timm)",
        choices=("elements", "batch"), before="elements")


@_section("teacher")
class _Teacher:
    """The teacher, if distillation.kind needs one."""

    name: str = option("regnety_160", "teacher model name; several, separated by commas, are averaged in probability",
        only_if_typed=True)
    overrides: ConfigDict = option({}, "as model.overrides", only_if_typed=True)
    weights: str = option("", "a workdir of this project; a weights file of timm, torchvision, pycls, transformers or "
        "mmpretrain; \"hf:OWNER/NAME\": a repository of the Hugging Face hub (@REVISION may follow); \"pretrained\": published "
        "weights from there; \"embedded\": the teacher of the quick start, "
        'included in the package; or "random" (only to try a configuration). One for each name')
    variables: str = option("raw", "the weights of a workdir or training checkpoint to use", choices="weights.loading.WHICH")
    on_change: str = option("stop", "if the weights differ from those at the start of the run: stop, or continue with them",
        choices=("stop", "continue"), before="stop")
    mean: tuple[float, float, float] | None = option(None, "channel means (RGB in [0, 1]) used to train the "
        "teacher; None: the student's normalisation", at_least=0, at_most=1, before=None)
    std: tuple[float, float, float] | None = option(None, "channel standard deviations used to train the teacher; None: "
        "the student's", above=0, before=None)
    classes: tuple[int, ...] | None = option(None, "for each class of the student its number in the teacher, e.g. (0, 217, "
        "482); None: the same classes", at_least=0, before=None)
    each: ConfigDict = option({}, "several teachers: fields of single ones by their position, for those that differ, e.g. "
        "--config.teacher.each.2.mean=0.5,0.5,0.5; overrides, variables, mean, std and classes", before={})
    fused: bool = option(True, "on TPUs, compute a frozen RegNet in a form that the compiler fuses better (docs/performance.md); "
        "False: as versions before this field, whose logits differ in the last digits", before=False, only_if_typed=True)
    recipe: ConfigDict | None = option(None, "a complete config with which the teacher is trained first, in WORKDIR/teacher")
    answers: str = option("", "a folder of recorded answers (from --mode=record or a training with teacher.record) that replace "
        "the teacher: none is loaded or computed (docs/distillation.md)", before="")
    answers_timeout: int = option(600, "seconds that a training waits for answers while their recorder makes no progress",
        at_least=1, before=600, only_if_typed=True)
    record: str = option("", "a folder to which a training writes its teacher's answers, for other trainings", before="")
    record_as: str = option("auto", "what is recorded; auto: decisions if distillation.kind is hard and top_k is None, "
        "otherwise logits",
        choices="answers.kinds.NAMES", before="auto", only_if_typed=True)
    top_k: int | None = option(None, "record only this many of the logits, the largest, and the log-sum-exp of the rest at "
        "distillation.tau; None: all", at_least=1, before=None, only_if_typed=True)


@_section("features")
class _Features:
    """Distillation of features: what the student learns from inside of the teacher, added to the loss (docs/distillation.md)."""

    pairs: tuple[str, ...] = option((), 'features that are compared, each "STUDENT:TEACHER", e.g. patch_4:s2,class_12:final. '
        "Of a transformer: patch_N, class_N, distillation_N (tokens after block N, from 1) and final; of a RegNet: stem, s1 to "
        "s4 and final (pooled); block_N: the teacher's tokens of the student's kind. (): off", before=())
    mse: float = option(0.0, "weight of the mean squared error to the teacher's normalised features", at_least=0, before=0.0)
    cosine: float = option(0.0, "weight of 1 - cosine similarity", at_least=0, before=0.0)
    local_guidance: float = option(0.0, "weight of the mean squared error to the teacher's features as they are, on the larger "
        "of the two grids; Locality Guidance (arXiv 2207.10026) uses 2.5 for the sum over three pairs, here 7.5",
        at_least=0, before=0.0)


@_section("data")
class _Data:
    """The images, and how they are read and cropped."""

    source: str = option("tfds", "fashion_mnist_10k is embedded; or the name of a registered source",
        choices="data.registry.source_names")
    name: str = option("imagenet2012", "TFDS name; parquet: its columns, if several fit (\"image,label\"); registered "
        "sources may use it, the others do not", only_if_typed=True)
    path: str = option("", "npz: the file; folder: the parent of the splits' folders; tar, parquet, array_record: the shards' "
        "folder, or a pattern of their names; imagenet_tars: the folder of ImageNet's three files; tfds: data_dir (\"\": TFDS's "
        "default)")
    train_split: str = option("train", "name of a split, or a part of one: \"train[:90%]\", \"train[1000:]\" (docs/data.md)")
    eval_split: str = option("validation", "as train_split")
    images_per_class: int | None = option(None, "use this many training images of each class, to try few labels; None: all",
        at_least=1, before=None)
    held_out: float = option(0.0, "folder, tar, parquet, array_record: if there are no images for eval_split, the share of "
        "every class's training images held out for evaluation; a folder's path may then contain the class folders themselves. "
        "0: those images are required",
        at_least=0, at_most=0.99, before=0.0)
    index: str = option("auto", "folder, tar, imagenet_tars: where the list of images is cached for the next start: a folder "
        "(hosts may share it), \"auto\" (deit_jax in the user's cache folder; with several processes .deit_jax-UID next to the "
        'workdir), or "" (not cached)', before="auto")
    copies_gib: float = option(64.0, "tar, parquet, array_record in a bucket: keep so much of what was read on disk, per split, "
        "in GiB, but at most half of the free space (deit_jax/copies in the user's cache folder); 0: nothing",
        at_least=0, before=64.0, only_if_typed=True)
    repeats: int = option(1, "repeated augmentation: copies of an image in the sampling order (paper, section 6: 3); 1: off",
        at_least=1)
    train_crop: str = option("random_resized", "random_resized, padded (random crop after zero padding; the reference's for <= "
        "32 px) or center (as in evaluation, for fine-tuning as in FixRes)", choices=("random_resized", "padded", "center"))
    crop_scale: tuple[float, float] = option((0.08, 1.0), "random_resized: range of the area", above=0, at_most=1, ordered=True)
    crop_ratio: tuple[float, float] = option((3 / 4, 4 / 3), "random_resized: range of the aspect ratio",
        at_least=1e-3, at_most=1e3, ordered=True)
    crop_padding: int = option(4, "padded: pixels on each side", at_least=0)
    max_eval_images: int | None = option(None, "evaluate only this many images; None: all", at_least=1)
    on_bad_image: str = option("stop", "if an image cannot be read: stop and name the file, or replace (train on the next one, "
        "exclude it from scores)", choices=("stop", "replace"), before="stop")
    on_change: str = option("stop", "if images were added or removed since the start of the run: stop, or continue with the "
        "current ones; the length of an epoch does not change", choices=("stop", "continue"), before="stop")
    num_threads: int | None = option(None, "decoding threads, per worker if there are any; 0: read between steps; None: by the "
        "number of cores", at_least=0)
    num_workers: int = option("auto", "decoding processes; 0: only threads; auto: 0 up to 16 cores, otherwise one per 16 cores "
        "(images in memory: 0)", at_least=0, words=("auto",))
    prefetch_batches: int = option(2, "batches prepared in advance in the memory of the host", at_least=1)
    batches_ahead: int = option(2, "batches sent to the devices in advance, by a thread of its own (docs/data.md)",
        at_least=1, at_most=16, before=2)


@_section("unlabelled")
class _Unlabelled:
    """Further training images, which only the teacher labels (docs/distillation.md)."""

    source: str = option("", "as data.source; a folder needs no class folders, and labels are ignored. \"\": no such images",
        before="")
    name: str = option("", "as data.name", before="")
    path: str = option("", "folder: all images in it, at any depth; otherwise as data.path", before="")
    split: str = option("", "name of a split, or a part of one, as data.train_split. \"\": for a folder all of its images, for "
        "other sources train", before="")
    share: float = option(0.5, "share of each batch's rows that are unlabelled images, rounded to what mixing groups allow",
        above=0, below=1, before=0.5)


@_section("augment")
class _Augment:
    """Augmentation of training images and labels, on the device."""

    mean: tuple[float, float, float] = option((0.485, 0.456, 0.406), "channel means (RGB in [0, 1])", at_least=0, at_most=1)
    std: tuple[float, float, float] = option((0.229, 0.224, 0.225), "channel standard deviations", above=0)
    flip_probability: float = option(0.5, "horizontal flip", at_least=0, at_most=1)
    rand_augment: str = option("", "in timm's notation, e.g. rand-m9-mstd0.5-inc1; \"\": off")
    auto_augment: str = option("", "in timm's notation: original, originalr, v0 or v0r, optionally with -mstdX; \"\": off",
        before="")
    color_jitter: float = option(0.0, "brightness, contrast and saturation by factors in 1 +- this; not with the two above",
        at_least=0, before=0.0)
    erase_probability: float = option(0.0, "probability of random erasing", at_least=0, at_most=1)
    erase_mode: str = option("pixel", "pixel: normal noise per pixel; rand: one colour per box; const: zero (the mean colour)",
        choices="augment.erasing.MODES")
    erase_count: int = option(1, "maximum number of boxes of an erased image, which share the area", at_least=1, before=1)
    mixup_alpha: float = option(0.0, "parameter of the Beta distribution; 0: off", at_least=0)
    cutmix_alpha: float = option(0.0, "parameter of the Beta distribution; 0: off", at_least=0)
    mix_mode: str = option("batch", "one draw per group (batch, as the reference), pair of rows (pair) or row (elem)",
        choices="augment.mixing.MODES", before="batch")
    mix_probability: float = option(1.0, "probability that a group is mixed", at_least=0, at_most=1)
    switch_probability: float = option(0.5, "probability of cutmix in a mixed group, if both are on",
        at_least=0, at_most=1)
    label_smoothing: float = option(0.0, "share of the target that is spread evenly over all classes", at_least=0, below=1)
    group_size: int | None = option(None, "rows that share one mixing draw; None: the largest number up to max_group_size that "
        "fits the batch", at_least=1)
    max_group_size: int = option(256, "the reference's batch per GPU (Ti and S 256, B 64)",
        at_least=1, before=256, only_if_typed=True)
    groups_per_block: int | None = option(None, "number of groups that consecutive copies of an image are distributed to, at "
        "least data.repeats; None: 4 if that fits the batch", at_least=1)
    plan: str = option("auto", "how operations are executed; auto: sequential on CPU, chunked on TPU and GPU",
        choices="augment.plans.CHOICES", before="auto")


@_section("train")
class _Train:
    """The training steps."""

    batch_size: int = option(1024, "images per step over all devices, including repeats", at_least=1)
    epochs: int = option(100, "an epoch has as many images as the data set, including repeats, rounded down to a multiple of 256 "
        "(of 500 images 256, drawn from all; fewer than 256 are not rounded), then to whole batches", at_least=1)
    max_steps: int | None = option(None, "stop early, without changing the schedule", at_least=1)
    train_mode: bool = option(True, "False: modules run as in evaluation, without dropout, patch dropout and stochastic depth "
        "and with BatchNorm's running statistics, as the released 384-pixel models were fine-tuned", before=True)
    accumulation_steps: int = option(1, "microbatches per step; the result is that of the whole batch", at_least=1)
    clip_norm: float | None = option(None, "maximum global gradient norm; None: no clipping", above=0)


@_section("optimizer")
class _Optimizer:
    """The optimizer."""

    name: str = option("adamw", "adamw, or sgd (Nesterov)", choices=("adamw", "sgd"))
    betas: tuple[float, float] = option((0.9, 0.999), "adamw: decay rates of the first and second moments",
        at_least=0, below=1)
    eps: float = option(1e-8, "adamw: added to the square root of the second moment", at_least=0)
    momentum: float = option(0.9, "sgd: momentum", at_least=0, below=1)
    weight_decay: float = option(0.0, "adamw: decoupled, times the learning rate; sgd: added to the gradient", at_least=0)
    trainable: tuple[str, ...] = option((".*",), 'regular expressions over "/"-joined parameter names; the rest is frozen',
        patterns=True, before=(".*",))
    no_decay: tuple[str, ...] = option(RELEASED_NO_DECAY, 'regular expressions over "/"-joined names of parameters without decay',
        patterns=True)


@_section("schedule")
class _Schedule:
    """The learning rate."""

    kind: str = option("plain", "plain: cosine after a linear warm-up; released: epoch e has the rate of epoch e - 1 (as for the "
        "published weights)", choices=("released", "plain"))
    base_learning_rate: float = option(5e-4, "for a batch of base_batch_size", above=0)
    base_batch_size: int = option(512, "peak rate = base_learning_rate * batch_size / base_batch_size", at_least=1)
    warmup_epochs: float = option(0.0, "epochs in which the rate rises linearly", at_least=0)
    warmup_learning_rate: float = option(1e-6, "rate at the start of the warm-up: of the first step, without per_step of the "
        "first epoch; not scaled", at_least=0, only_if_typed=True)
    min_learning_rate: float = option(0.0, "rate at the end; not scaled", at_least=0)
    per_step: bool = option(True, "update the rate every step; False: every epoch")


@_section("ema")
class _Ema:
    """The moving average of the weights."""

    decay: float = option(0.0, "per step, for weights and BatchNorm statistics; 0: off", at_least=0, below=1)


@_section("evaluation")
class _Evaluation:
    """What is evaluated, when and how."""

    batch_size: int = option(1024, "over all devices", at_least=1)
    every_epochs: int = option(1, "epochs between evaluations; 0: only at the end", at_least=0)
    protocol: str = option("deit", "resize and crop of deit (with crop_ratio), timm or mmpretrain (docs/data.md)",
        choices=("deit", "timm", "mmpretrain"), before="deit")
    crop_ratio: float = option(0.875, "deit: images are resized to image_size / crop_ratio before the centre crop",
        at_least=0.01, at_most=1)
    teacher: bool = option(True, "evaluate the teacher on the same images first", only_if_typed=True)
    memory_gib: float = option(2.0, "GiB per process for keeping the cropped images between evaluations, if they fit; 0: none",
        at_least=0, before=2.0)
    extra: ConfigDict = option({}, "more data sets to score at the end, by name: ConfigDicts of source, name, path and split as "
        "in config.data (and labels: a file of ReaL's labels, or \"\"). A missing one is left out with a warning",
        before={})


@_section("checkpoint")
class _Checkpoint:
    """When checkpoints are saved."""

    every_steps: int | None = option(None, "None: every epoch", at_least=1)
    keep: int = option(2, "number of newest checkpoints kept, besides the one with the best top-1", at_least=1)


@_section("log")
class _Log:
    """Logs, profiles and the report."""

    every_steps: int = option(50, "interval of rows in metrics.jsonl and lines on the console", at_least=1)
    tensorboard: bool = option(True, "write WORKDIR/tensorboard (docs/logging.md)")
    wandb: bool = option(False, "also log to Weights & Biases; mode, login and server are wandb's settings (docs/logging.md)")
    wandb_project: str = option("", '"": the environment variable WANDB_PROJECT, else deit_jax')
    wandb_entity: str = option("", "\"\": WANDB_ENTITY, else the user's default")
    wandb_name: str = option("", "name of the run; \"\": WANDB_NAME, else the workdir's name")
    images: bool = option(True, "also log pictures: training images as the model sees them at the start, the report's at the end")
    report: bool = option(True, "a finished run writes WORKDIR/report.html (docs/report.md)")
    peak_tflops: float | None = option(None, "peak of one device in the compute dtype, for the MFU; None: the published bfloat16 "
        "peak of the chips in aot/topologies.py, and no MFU on others", above=0)
    profile_steps: int = option(0, "steps to profile, written to WORKDIR/tensorboard; 0: none", at_least=0)
    profile_after: int = option(10, "steps after the start before profiling begins", at_least=1)


@_section("parallel")
class _Parallel:
    """Devices and processes."""

    fsdp: int = option(1, "devices that share one copy of parameters, optimizer state and EMA; 1: each has its own", at_least=1)
    sharding_rules: tuple[tuple[str, str], ...] = option(((".*", "fsdp"),), '(regular expression over "/"-joined names of the '
        'state, "fsdp" or "replicate"); the first match applies', patterns=True)
    fsdp_min_size: int = option(4096, "elements; smaller arrays are replicated", at_least=0)
    gather_once: bool = option(False, "with fsdp: a step first gathers all parameters, kernels in compute_dtype, and computes as "
        "without fsdp; only state and update are split (ZeRO-1). False: the compiler decides what to gather, and when")
    xla_options: str = option("", '"name=value,name=value": XLA options of the train step; they override those in '
        "parallel/xla_options.py")
    compilation_cache: str = option("auto", "folder of compiled programs, which later runs reuse; auto: ~/.cache/deit_jax, with "
        'several processes .deit_jax-UID next to the workdir; "": none')
    heartbeat_seconds: int = option(60, "several processes: a process that is silent for this many seconds counts as lost, and "
        "the others stop", at_least=10)
    join_seconds: int = option(300, "several processes: how many seconds the first waits for the last to start", at_least=1)
    keep_host_memory: bool = option(True, "CPU: with glibc, keep freed step buffers mapped")
# fmt: on


class ConfigError(UserError):
    """A configuration that cannot be run. The message is one line: the field, what is wrong, and what to do."""


def default_config() -> ConfigDict:
    """Returns the configuration with every option at its default: a plain DeiT-S. Locked, so that unknown keys are refused."""
    config = ConfigDict({name: {} for name in SECTIONS if name})
    for name, each in OPTIONS.items():
        section, _, field = name.rpartition(".")
        place = config[section] if section else config
        if each.default is None:
            place[field] = placeholder(each.kind.base)
        elif each.kind.words:
            place[field] = FieldReference(each.default, field_type=object)  # numbers and words
        else:
            place[field] = ConfigDict(each.default) if each.kind.base is ConfigDict else each.default
    return config.lock()


def needs_logits(config: ConfigDict) -> bool:
    """Whether the loss reads the teacher's logits."""
    kind = loss_kind(config.distillation.kind)
    return kind is not None and kind.needs_teacher


def needs_teacher(config: ConfigDict) -> bool:
    """Whether the configuration distils from a teacher: from its logits, its features, or both."""
    return needs_logits(config) or bool(config.features.pairs)


def asks_teacher(config: ConfigDict) -> bool:
    """Returns whether a run computes a teacher, i.e. distils, but not from recorded answers."""
    return needs_teacher(config) and not config.teacher.answers


def listed_names(text: str) -> list[str]:
    """Splits a field that contains one or more names, separated by commas."""
    return [part.strip() for part in text.split(",")]
