"""Vision transformer with an optional distillation token (DeiT, arXiv 2012.12877, sections 3 and 4).

Parameter names are a contract with checkpoints, decay rules and converters, and follow timm's, with "/" for ".":

    patch_embed/proj/{kernel,bias}  cls_token  dist_token  pos_embed
    blocks_<i>/norm1/{scale,bias}  blocks_<i>/attn/{qkv,proj}/{kernel,bias}
    blocks_<i>/norm2/{scale,bias}  blocks_<i>/mlp/{fc1,fc2}/{kernel,bias}
    norm/{scale,bias}  head/{kernel,bias}  head_dist/{kernel,bias}

With scan_blocks the blocks' parameters are blocks/..., with a leading axis for the block.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import Mesh

from deit_jax.errors import require_choice
from deit_jax.models.attention import ATTENTIONS, FUSED, Attention, Choice, Fused, choose
from deit_jax.models.layers import (
    DIVISIONS,
    GRADIENTS,
    RNG_NAME,
    Dense,
    Dropout,
    LayerNorm,
    PatchDropout,
    embedding_init,
    gelu,
    uniform_init,
)
from deit_jax.models.protocol import FUSIONS, Features, ModelOutput, fuse
from deit_jax.models.vit_parameters import resize_position_embedding, unstack_blocks

RESIDUALS = ("compute", "float32")
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class _DropoutArguments(TypedDict):
    """Arguments of `Dropout.__call__`."""

    train: bool
    positions: jax.Array | None


class PatchEmbed(nn.Module):
    """Images float[B, H, W, C] to patch tokens [B, H/p * W/p, D]: a convolution whose stride equals its kernel size."""

    patch_size: int
    embed_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        patch = (self.patch_size, self.patch_size)
        init = uniform_init(self.patch_size**2 * images.shape[-1])
        inits: dict[str, Any] = {"kernel_init": init, "bias_init": init}
        conv = nn.Conv(self.embed_dim, patch, patch, padding="VALID", dtype=self.dtype, **inits, name="proj")
        x = conv(images)
        return rearrange(x, "b h w d -> b (h w) d")


class Mlp(nn.Module):
    """Two dense layers with the exact (erf) GELU between them; Flax's default is the tanh approximation."""

    hidden_dim: int
    dropout_rate: float
    drop_dtype: str
    dtype: Any
    gradient_dtype: str = "compute"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, positions: jax.Array | None) -> jax.Array:
        width = x.shape[-1]
        dense = functools.partial(Dense, dtype=self.dtype, gradients=self.gradient_dtype)
        dropout = functools.partial(Dropout, self.dropout_rate, division=self.drop_dtype)
        x = gelu(dense(self.hidden_dim, name="fc1")(x))
        x = dropout()(x, train=train, positions=positions)
        x = dense(width, name="fc2")(x)
        return dropout()(x, train=train, positions=positions)


class Block(nn.Module):
    """Pre-norm transformer block; stochastic depth draws independently for the two branches.

    float[B, N, D] to the same dtype, that of the residual stream; the branches compute in `dtype`. drop_path_rate: a number, or a
    float32 scalar in scanned blocks. queries: return only this many tokens, the first ones; None: all.
    """

    num_heads: int
    mlp_ratio: float
    dropout_rate: float
    drop_dtype: str
    attention: str | Fused
    dtype: Any
    gradient_dtype: str = "compute"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        drop_path_rate: float | jax.Array,
        positions: jax.Array | None,
        train: bool,
        queries: int | None,
    ) -> jax.Array:
        kwargs: _DropoutArguments = {"train": train, "positions": positions}
        drop_path = functools.partial(Dropout, drop_path_rate, whole_images=True, division=self.drop_dtype)
        y = LayerNorm(dtype=self.dtype, name="norm1")(x)
        attention = Attention(
            self.num_heads,
            self.dropout_rate,
            self.drop_dtype,
            self.attention,
            self.dtype,
            self.gradient_dtype,
            name="attn",
        )
        x = x[:, :queries] + drop_path()(attention(y, queries=queries, **kwargs), **kwargs)
        y = LayerNorm(dtype=self.dtype, name="norm2")(x)
        hidden_dim = int(x.shape[-1] * self.mlp_ratio)
        fields = (self.dropout_rate, self.drop_dtype, self.dtype, self.gradient_dtype)
        y = Mlp(hidden_dim, *fields, name="mlp")(y, **kwargs)
        return x + drop_path()(y, **kwargs)


class VisionTransformer(nn.Module):
    """DeiT: normalised images float[B, image_size, image_size, 3] to `ModelOutput` of float32[B, num_classes].

    With `distilled`, a second head reads a second learned token, which follows the class token. Raises ValueError for images of
    another size, a size that is not a multiple of the patch size, or a width that is not a multiple of the number of heads.

    attention: one of `ATTENTIONS`, or as in `Attention`; `on_mesh` determines what computes it. remat: what the backward pass
    recomputes: "none", "dots" (all except the matrix products) or "full" (each block). scan_blocks: compile one block for all,
    with parameters stacked under `blocks` (models/vit_parameters.py converts); compiles faster, and without remat needs more
    memory. None of the three changes the output, except its rounding.

    residual_dtype: dtype of the residual stream, from the tokens to the last LayerNorm: "compute" is `dtype`, "float32" is as in
    PyTorch's mixed precision. drop_dtype: `division` of `Dropout`. Neither has an effect if `dtype` is float32.

    gradient_dtype: `gradients` of `Dense`. patch_keep_rate: `rate` of `PatchDropout`.
    """

    num_classes: int = 1000
    image_size: int = 224
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    distilled: bool = False
    dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    patch_keep_rate: float = 1.0
    drop_dtype: str = "float32"
    residual_dtype: str = "compute"
    gradient_dtype: str = "compute"
    fusion: str = "logits"
    attention: str | Fused = "xla"
    remat: str = "none"
    scan_blocks: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}")
        if not 0 < self.patch_keep_rate <= 1:
            raise ValueError(f"patch_keep_rate={self.patch_keep_rate} is not above 0 and at most 1")
        for field, choices in (
            ("fusion", FUSIONS),
            ("remat", tuple(REMAT_POLICIES)),
            ("drop_dtype", DIVISIONS),
            ("residual_dtype", RESIDUALS),
            ("gradient_dtype", GRADIENTS),
        ):
            require_choice(field, getattr(self, field), choices, ValueError)
        if not isinstance(self.attention, Fused):
            require_choice("attention", self.attention, ATTENTIONS, ValueError)

    # --- See models/protocol.py --------------------------------------------------------------------------------------------

    family = "vit"

    @property
    def num_prefix_tokens(self) -> int:
        """1 for the class token, plus 1 for the distillation token."""
        return 1 + self.distilled

    @property
    def feature_widths(self) -> tuple[int, ...]:
        """The width of each block's tokens."""
        return (self.embed_dim,) * self.depth

    @property
    def feature_names(self) -> tuple[str, ...]:
        """`<token>_<n>` after block n, from 1: `patch` is a map, the others vectors; `final`: the class head's input."""
        tokens = ("patch", "class", "distillation") if self.distilled else ("patch", "class")
        return *(f"{token}_{i + 1}" for token in tokens for i in range(self.depth)), "final"

    @property
    def grid(self) -> int:
        """Number of patches per row and per column."""
        return self.image_size // self.patch_size

    @nn.nowrap
    def portable_form(self, variables: dict[str, Any]) -> tuple[VisionTransformer, dict[str, Any]]:
        """Selects XLA's attention and separate blocks."""
        model = self.clone(attention="xla", remat="none", scan_blocks=False, gradient_dtype="compute")
        return model, {**variables, "params": unstack_blocks(variables["params"])}

    @nn.nowrap
    def resize_variables(self, variables: dict[str, Any], method: str = "bicubic") -> dict[str, Any]:
        """Resizes the position embedding to this model's grid."""
        embedding = resize_position_embedding(
            jnp.asarray(variables["params"]["pos_embed"]), (self.grid, self.grid),
            num_prefix_tokens=self.num_prefix_tokens, method=method,
        )  # fmt: skip
        return {**variables, "params": {**variables["params"], "pos_embed": embedding}}

    @nn.nowrap
    def on_mesh(self, mesh: Mesh) -> VisionTransformer:
        """Determines the attention on the devices of `mesh`."""
        if isinstance(self.attention, Fused):
            return self
        name = self.attention_on(mesh).name
        return self.clone(attention=Fused(name, mesh) if name in FUSED else name)

    @nn.nowrap
    def attention_on(self, mesh: Mesh) -> Choice:
        """Returns which attention `on_mesh` takes, and why."""
        if isinstance(self.attention, Fused):
            return Choice(self.attention.name, "as configured")
        tokens = self.grid**2 + self.num_prefix_tokens
        sizes = {"tokens": tokens, "width": self.embed_dim, "num_heads": self.num_heads}
        return choose(self.attention, mesh, **sizes, dtype=self.dtype)

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        positions: jax.Array | None = None,
        features: tuple[str, ...] = (),
    ) -> ModelOutput | tuple[ModelOutput, Features]:
        """Training with dropout or stochastic depth needs rngs={"dropout": key}; positions as in `Dropout`.

        features: some of `feature_names`, returned by name as a second value.
        """
        if images.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(
                f"images of {images.shape[1]}x{images.shape[2]} pixels for a model of image_size={self.image_size}; "
                "create the model for this size or resize the images"
            )
        kwargs: _DropoutArguments = {"train": train, "positions": positions}
        x = PatchEmbed(self.patch_size, self.embed_dim, self.dtype, name="patch_embed")(images.astype(self.dtype))
        if self.residual_dtype == "float32":
            x = x.astype(jnp.promote_types(x.dtype, jnp.float32))

        names = ("cls_token", "dist_token") if self.distilled else ("cls_token",)
        tokens = [self.param(name, embedding_init, (1, 1, self.embed_dim)) for name in names]
        tokens = [jnp.broadcast_to(t.astype(x.dtype), (x.shape[0], 1, self.embed_dim)) for t in tokens]
        x = jnp.concatenate([*tokens, x], axis=1)

        pos_embed = self.param("pos_embed", embedding_init, (1, x.shape[1], self.embed_dim))
        x = Dropout(self.dropout_rate, division=self.drop_dtype)(x + pos_embed.astype(x.dtype), **kwargs)
        if train and self.patch_keep_rate < 1 and any(name.startswith("patch_") for name in features):
            raise ValueError(f"patch_keep_rate={self.patch_keep_rate} leaves no map of patch tokens in training")
        x = PatchDropout(self.patch_keep_rate, self.num_prefix_tokens)(x, **kwargs)

        x, by_block = self._blocks(x, positions, train, features)
        x = LayerNorm(dtype=self.dtype, name="norm")(x)

        head = functools.partial(Dense, self.num_classes, dtype=self.dtype, gradients=self.gradient_dtype)
        class_logits = head(name="head")(x[:, 0]).astype(jnp.float32)
        heads: tuple[jax.Array, jax.Array, jax.Array | None] = (class_logits, class_logits, None)
        if self.distilled:
            distillation_logits = head(name="head_dist")(x[:, 1]).astype(jnp.float32)
            heads = (fuse(class_logits, distillation_logits, self.fusion), class_logits, distillation_logits)
        output = ModelOutput(*heads)
        if not features:
            return output
        return output, {name: x[:, 0] if name == "final" else self._feature(name, by_block) for name in features}

    def _feature(self, name: str, by_block: Sequence[jax.Array] | jax.Array) -> jax.Array:
        """Returns a feature of `feature_names` from each block's output."""
        token, _, block = name.partition("_")
        x = by_block[int(block) - 1]
        if token == "patch":
            return rearrange(x[:, self.num_prefix_tokens :], "b (h w) d -> b h w d", h=self.grid)
        return x[:, 0 if token == "class" else 1]

    def _blocks(
        self, x: jax.Array, positions: jax.Array | None, train: bool, features: tuple[str, ...]
    ) -> tuple[jax.Array, Any]:
        """Returns the last block's tokens, at least those that the heads read, and each block's output if `features` need it."""
        rates = [self.drop_path_rate * i / max(self.depth - 1, 1) for i in range(self.depth)]
        block = Block
        if self.remat != "none":
            # train and queries are static; a scan already prevents common subexpression elimination.
            block = nn.remat(
                Block, policy=REMAT_POLICIES[self.remat], static_argnums=(4, 5), prevent_cse=not self.scan_blocks
            )
        fields = (
            self.num_heads,
            self.mlp_ratio,
            self.dropout_rate,
            self.drop_dtype,
            self.attention,
            self.dtype,
            self.gradient_dtype,
        )
        if not self.scan_blocks:
            by_block = []
            for i, rate in enumerate(rates):
                # The heads read only the first one or two tokens, so the last block computes only keys and values of the others.
                last = i == self.depth - 1 and f"patch_{self.depth}" not in features
                queries = 1 + self.distilled if last else None
                x = block(*fields, name=f"blocks_{i}")(x, rate, positions, train, queries)
                by_block.append(x)
            return x, by_block

        def one(module: nn.Module, carry: jax.Array, rate: jax.Array) -> tuple[jax.Array, jax.Array | None]:
            carry = module(carry, rate, positions, train, None)
            return carry, carry if features else None

        scan = nn.scan(
            one,
            variable_axes={"params": 0},
            split_rngs={"params": True, RNG_NAME: True},
            length=self.depth,
        )
        return scan(block(*fields, name="blocks"), x, jnp.asarray(rates, jnp.float32))
