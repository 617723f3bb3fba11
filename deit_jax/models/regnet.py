"""RegNetY (arXiv 2003.13678 with squeeze-and-excitation), DeiT's convnet teacher.

Variable names are a contract with checkpoints and converters, and follow timm's, with "/" for ".":

    stem/{conv,bn}   s<stage>/b<block>/conv{1,2,3}/{conv,bn}   s<stage>/b<block>/se/{fc1,fc2}
    s<stage>/b<block>/downsample/{conv,bn}   head/fc
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deit_jax.errors import require_choice
from deit_jax.models.grouped_conv import IMPLEMENTATIONS, GroupedConv, PerDevice, implementation_on
from deit_jax.models.layers import DIVISIONS, Dropout, uniform_init
from deit_jax.models.protocol import Features, ModelOutput
from deit_jax.models.regnet_fused import FUSED, FoldedConv, convolved, gated_product

INITIALISATIONS = ("timm_0.5", "timm_0.3")
BATCH_NORM_EPSILON = 1e-5


def conv_init(groups: int = 1, regnet_init: str = "timm_0.5") -> nn.initializers.Initializer:
    """Returns the initializer of a convolution: normal with variance 2 / fan_out.

    regnet_init: "timm_0.5" counts fan_out within a group, as timm does since version 0.5; "timm_0.3" counts it over all groups,
    as timm 0.3.2 and pycls do, which makes a grouped convolution smaller by the square root of its number of groups.
    """
    return nn.initializers.variance_scaling(2.0 if regnet_init == "timm_0.3" else 2.0 * groups, "fan_out", "normal")


def gate_bias_init(inputs: int, regnet_init: str) -> nn.initializers.Initializer:
    """Returns the initializer of squeeze-and-excitation biases: 0, or with "timm_0.3" PyTorch's uniform for `inputs` channels."""
    return nn.initializers.zeros if regnet_init == "timm_0.5" else uniform_init(inputs)


class StagePlan(NamedTuple):
    """One stage of a RegNet: channels, number of blocks, channels per convolution group."""

    width: int
    depth: int
    group_width: int


def stage_plans(w0: int, wa: float, wm: float, depth: int, group_width: int) -> tuple[StagePlan, ...]:
    """Returns the stages of a RegNet with these design space parameters (arXiv 2003.13678, section 4.1).

    Widths grow linearly (u_j = w0 + wa * j) and are rounded to w0 times powers of wm, then to multiples of 8 and of the group
    width, half to even, as in pycls and timm. Raises ValueError if the parameters do not define valid widths.
    """
    try:
        powers = [round(math.log((w0 + wa * block) / w0) / math.log(wm)) for block in range(depth)]
        widths = [round(w0 * wm**power / 8) * 8 for power in powers]
        groups = {width: min(group_width, width) for width in sorted(set(widths))}
        return tuple(StagePlan(round(w / group) * group, widths.count(w), group) for w, group in groups.items())
    except (ArithmeticError, ValueError) as error:  # e.g. log(wm) = 0
        raise ValueError(f"w0={w0}, wa={wa} and wm={wm} do not define valid stage widths") from error


class ConvOptions(NamedTuple):
    """Options that all convolutions of a RegNet share; see `RegNet`."""

    regnet_init: str = "timm_0.5"
    grouped_conv: str | PerDevice = "auto"
    folded: bool = False
    dtype: Any = jnp.float32

    @property
    def fused(self) -> bool:
        """Whether blocks compute as in regnet_fused.py."""
        return self.folded and self.grouped_conv == FUSED


class ConvBatchNorm(nn.Module):
    """Convolution without bias, BatchNorm and, unless `relu` is False, a ReLU: float[B, H, W, C] to [B, H/s, W/s, features].

    options.folded: a bias replaces BatchNorm (see `fold_batch_norm`).
    """

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    relu: bool = True
    scale_init: Any = nn.initializers.ones
    options: ConvOptions = ConvOptions()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        regnet_init, grouped_conv, folded, dtype = self.options
        kernel_init = conv_init(self.groups, regnet_init)
        shape = (self.features, self.kernel_size, self.stride, self.groups)
        implementation = "native" if self.options.fused else grouped_conv
        x = GroupedConv(*shape, kernel_init, implementation, dtype, name="conv")(x)
        if folded:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(dtype)
            return nn.relu(x) if self.relu else x
        # momentum: PyTorch's 0.1 is Flax's 0.9.
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=BATCH_NORM_EPSILON,
            use_fast_variance=False,
            scale_init=self.scale_init,
            dtype=dtype,
            name="bn",
        )(x)
        return nn.relu(x) if self.relu else x


def fold_batch_norm(variables: dict[str, Any], epsilon: float) -> dict[str, Any]:
    """Returns variables for evaluation, with a bias in place of every BatchNorm, in float32.

    variables: {"params", "batch_stats"} in which each `bn` is a sibling of the `conv` whose output it normalises. Equal to the
    original up to the order of float operations.
    """
    params = flax.traverse_util.flatten_dict(variables["params"])
    statistics = flax.traverse_util.flatten_dict(variables["batch_stats"])
    folded = {}
    for path, leaf in params.items():
        *parent, layer, _ = path
        norm = (*parent, "bn")
        if layer == "conv" and (*norm, "mean") in statistics:
            scale = params[(*norm, "scale")] * jax.lax.rsqrt(jnp.asarray(statistics[(*norm, "var")]) + epsilon)
            folded[path] = leaf * scale  # HWIO: the last axis is the output's
            folded[(*parent, "bias")] = params[(*norm, "bias")] - statistics[(*norm, "mean")] * scale
        elif layer != "bn":
            folded[path] = leaf
    return {"params": flax.traverse_util.unflatten_dict(folded)}


def pooled(x: jax.Array, dtype: Any) -> jax.Array:
    """Returns the mean over the image of [B, H, W, C], computed in float32: [B, 1, 1, C] in `dtype`."""
    return jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(dtype)


class SqueezeExcite(nn.Module):
    """Channel attention: `pooled` channels [B, 1, 1, C] to their gate, by a ReLU bottleneck and a sigmoid."""

    bottleneck: int
    regnet_init: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(inputs: jax.Array, features: int, name: str) -> jax.Array:
            # A 1x1 convolution, so that the kernel has timm's shape.
            bias_init = gate_bias_init(inputs.shape[-1], self.regnet_init)
            fields = {"kernel_init": conv_init(), "bias_init": bias_init, "dtype": self.dtype}
            output: jax.Array = nn.Conv(features, (1, 1), **fields, name=name)(inputs)
            return output

        gate = nn.relu(conv(x, self.bottleneck, "fc1"))
        return nn.sigmoid(conv(gate, x.shape[-1], "fc2"))


class Block(nn.Module):
    """RegNetY's residual block, bottleneck ratio 1."""

    plan: StagePlan
    stride: int
    se_ratio: float
    drop_path_rate: float
    drop_dtype: str
    options: ConvOptions

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, positions: jax.Array | None) -> jax.Array:
        width, groups = self.plan.width, self.plan.width // self.plan.group_width
        dtype = self.options.dtype
        layer = functools.partial(ConvBatchNorm, width, options=self.options)
        # The bottleneck is relative to the block's input, not to y: a stage's first block has the previous stage's width.
        gate = SqueezeExcite(round(x.shape[-1] * self.se_ratio), self.options.regnet_init, dtype, name="se")
        if self.options.fused:
            sizes = {"conv1": (1, x.shape[-1]), "conv2": (3, self.plan.group_width), "conv3": (1, width)}
            first, second, third = (FoldedConv(*size, width, dtype, name=name)() for name, size in sizes.items())
            parts = convolved(x, first, second, self.stride, groups)
            means = jnp.concatenate([pooled(part, dtype) for part in parts], axis=-1)
            y = gated_product(parts, gate(means), third, groups)
        else:
            y = layer(1, name="conv1")(x, train=train)
            y = layer(3, self.stride, groups, name="conv2")(y, train=train)
            y = y * gate(pooled(y, dtype))
            # timm initialises the last scale to 0, so that a block starts as its shortcut.
            y = layer(1, relu=False, scale_init=nn.initializers.zeros, name="conv3")(y, train=train)
        drop_path = Dropout(self.drop_path_rate, whole_images=True, division=self.drop_dtype)
        y = drop_path(y, train=train, positions=positions)
        if self.stride != 1 or x.shape[-1] != width:
            x = layer(1, self.stride, relu=False, name="downsample")(x, train=train)
        return nn.relu(x + y)


class Stage(nn.Module):
    """Blocks of one width; the first halves the resolution. `drop_path_rates` has one rate per block."""

    plan: StagePlan
    se_ratio: float
    drop_path_rates: tuple[float, ...]
    drop_dtype: str
    options: ConvOptions

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, positions: jax.Array | None) -> jax.Array:
        for i, rate in enumerate(self.drop_path_rates):
            stride = 2 if i == 0 else 1
            block = Block(self.plan, stride, self.se_ratio, rate, self.drop_dtype, self.options, name=f"b{i + 1}")
            x = block(x, train=train, positions=positions)
        return x


class RegNet(nn.Module):
    """RegNetY: normalised images float[B, H, W, 3] to `ModelOutput` of float32[B, num_classes]; any image size.

    Training (`train=True`) needs mutable=["batch_stats"]: BatchNorm normalises by the statistics of the global batch, on any
    number of devices. `train=False` uses the running statistics. `stem_stride=1` suits images of about 32 pixels. drop_dtype:
    `division` of `Dropout`. regnet_init: see `conv_init` and `gate_bias_init`.
    """

    num_classes: int = 1000
    w0: int = 200
    wa: float = 106.23
    wm: float = 2.48
    depth: int = 18
    group_width: int = 112
    se_ratio: float = 0.25
    stem_width: int = 32
    stem_stride: int = 2
    dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    drop_dtype: str = "float32"
    regnet_init: str = "timm_0.5"
    grouped_conv: str | PerDevice = "auto"  # as in `GroupedConv`; or if folded, FUSED of regnet_fused.py, on TPUs
    folded: bool = False  # for inference only, see `fold_batch_norm`
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.grouped_conv, PerDevice):
            choices = (*IMPLEMENTATIONS, FUSED) if self.folded else IMPLEMENTATIONS
            require_choice("grouped_conv", self.grouped_conv, choices, ValueError)
        require_choice("drop_dtype", self.drop_dtype, DIVISIONS, ValueError)
        require_choice("regnet_init", self.regnet_init, INITIALISATIONS, ValueError)
        stage_plans(self.w0, self.wa, self.wm, self.depth, self.group_width)  # raises for invalid widths

    # --- See models/protocol.py --------------------------------------------------------------------------------------------

    family = "regnet"

    @property
    def stages(self) -> tuple[StagePlan, ...]:
        """The stages, from the design space parameters."""
        return stage_plans(self.w0, self.wa, self.wm, self.depth, self.group_width)

    @property
    def feature_widths(self) -> tuple[int, ...]:
        """The channels of each stage's feature map."""
        return tuple(stage.width for stage in self.stages)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The stem's and the stages' maps, and `final`, the pooled map that the head reads."""
        return "stem", *(f"s{i + 1}" for i in range(len(self.stages))), "final"

    @nn.nowrap
    def inference_form(self, variables: dict[str, Any]) -> tuple[RegNet, dict[str, Any]]:
        """Folds BatchNorm into the convolutions."""
        if self.folded:
            return self, variables
        return self.clone(folded=True), fold_batch_norm(variables, BATCH_NORM_EPSILON)

    @nn.nowrap
    def portable_form(self, variables: dict[str, Any]) -> tuple[RegNet, dict[str, Any]]:
        """Selects XLA's own grouped convolution."""
        return self.clone(grouped_conv="native"), variables

    @nn.nowrap
    def on_mesh(self, mesh: Mesh) -> RegNet:
        """Selects the grouped convolution for the devices, unless one was configured."""
        if self.grouped_conv == FUSED and mesh.devices.flat[0].platform == "tpu":
            return self
        return self.clone(grouped_conv=implementation_on(mesh)) if self.grouped_conv in ("auto", FUSED) else self

    @nn.nowrap
    def fused_form(self) -> RegNet:
        """Selects the blocks of regnet_fused.py, which `on_mesh` keeps on TPUs."""
        return self.clone(grouped_conv=FUSED) if self.folded and self.grouped_conv == "auto" else self

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        positions: jax.Array | None = None,
        features: tuple[str, ...] = (),
    ) -> ModelOutput | tuple[ModelOutput, Features]:
        """positions: as in `Dropout`; rngs={"dropout": key} is needed only with dropout or stochastic depth.

        features: some of `feature_names`, returned by name as a second value. Raises ValueError if a folded network is trained.
        """
        if train and self.folded:
            raise ValueError("a RegNet with BatchNorm folded into its convolutions is frozen: train the original")
        x = images.astype(self.dtype)
        options = ConvOptions(self.regnet_init, self.grouped_conv, self.folded, self.dtype)
        stem = ConvBatchNorm(self.stem_width, 3, self.stem_stride, options=options, name="stem")
        x = stem(x, train=train)
        found = {"stem": x}
        rates = [self.drop_path_rate * i / max(self.depth - 1, 1) for i in range(self.depth)]
        for i, plan in enumerate(self.stages):
            stage_rates = tuple(rates[: plan.depth])
            rates = rates[plan.depth :]
            stage = Stage(plan, self.se_ratio, stage_rates, self.drop_dtype, options, name=f"s{i + 1}")
            x = found[f"s{i + 1}"] = stage(x, train=train, positions=positions)
        x = found["final"] = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        x = Dropout(self.dropout_rate, division=self.drop_dtype)(x, train=train, positions=positions)
        logits = Head(self.num_classes, self.dtype, name="head")(x)
        output = ModelOutput(logits, logits, None)
        return (output, {name: found[name] for name in features}) if features else output


class Head(nn.Module):
    """Pooled features float32[B, C] to logits float32[B, num_classes]."""

    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype, name="fc")
        return dense(x).astype(jnp.float32)
