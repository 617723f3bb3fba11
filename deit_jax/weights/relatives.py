"""Identifies weights of other models by names and shapes, for error messages about files that do not fit.

The patterns are names of timm, transformers, torchvision and the models' authors.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from deit_jax.models.registry import create_model, list_models, model_family


@dataclasses.dataclass(frozen=True)
class _Relative:
    """A model and the names that identify it.

    All patterns are regular expressions, matched at the start of a name or after a dot. signs: each matches some name; the value
    describes it in messages ("": omitted). absent: matches no name. marks: as `signs`, but optional.
    """

    title: str
    signs: dict[str, str]
    absent: str = ""
    marks: dict[str, str] = dataclasses.field(default_factory=dict)
    advice: str = "deit_jax does not support this model"


_SCALE = r"(gamma_1|ls1\.gamma|layer_scale1\.lambda1|lambda_1)$"
_LAYER_SCALE = {_SCALE: "layer scale"}
_REGISTERS = {r"(register_tokens|reg_token|storage_tokens)$": "register tokens"}
_MASK = {r"mask_token$": "mask token"}
_OTHER_LAYOUT = "deit_jax does not read this layout: use the same weights from timm or transformers"

# The first match counts: more specific before more general.
# fmt: off
_RELATIVES = (
    _Relative("MAE weights of pre-training",
              {r"(decoder_(blocks|embed|pos_embed|pred)\b|decoder\.(decoder_layers|mask_token|decoder_pos_embed)\b)": "decoder"},
              marks=_MASK),
    _Relative("SigLIP weights", {r"(vision_model\.head\.probe|attn_pool\.(latent|kv\.weight))$": "attention pooling"}),
    _Relative("CLIP weights",
              {r"(visual\.(class_embedding|conv1|transformer\.resblocks|trunk|blocks|cls_token)\b|"
               r"vision_model\.(embeddings\.class_embedding|pre_layrnorm)|text_model\.|norm_pre\.weight$)": "CLIP image encoder"},
              marks={r"(token_embedding\.weight|text_model\..*|text_projection)$": "text encoder"}),
    _Relative("Swin V2 weights",
              {r"layers\.\d+\.blocks\.\d+\.(attn\.cpb_mlp|attention\.self\.continuous_position_bias_mlp)":
               "continuous position bias"}),
    _Relative("Swin weights", {r"layers\.\d+\.blocks\.\d+\..*relative_position_bias_table$": "shifted windows"}),
    _Relative("BEiT weights", {r"relative_position_bias_table$": "relative position bias"},
              marks=_LAYER_SCALE | {r"(q_bias|v_bias)$": "separate biases of q and v"} | _MASK),
    _Relative("DINOv3 weights", {r"(storage_tokens|rope_embed\.periods|qkv\.bias_mask)$": "rotary positions"},
              marks=_LAYER_SCALE | _REGISTERS),
    _Relative("DINOv3 weights",
              {r"(gamma_1|layer_scale1\.lambda1)$": "layer scale", r"(register_tokens|reg_token)$": "register tokens"},
              absent=r"(pos_embed|position_embeddings)$"),
    _Relative("EVA weights",
              {r"(attn\.(q_bias|inner_attn_ln\.weight)|mlp\.(fc1_g|w1|w12)\.weight|rope\.freqs_cos)$": "EVA's blocks"},
              absent=r"ls1\.gamma$"),
    _Relative("XCiT weights", {r"(cls_attn_blocks\.\d+|blocks\.\d+\.local_mp)\.": "cross-covariance attention"}),
    _Relative("CaiT weights", {r"(blocks_token_only\.\d+\.|blocks\.\d+\.attn\.proj_l\.)": "class-attention blocks"},
              marks=_LAYER_SCALE),
    _Relative("DINOv2 weights", _LAYER_SCALE | _REGISTERS, marks=_MASK),
    _Relative("DINOv2 weights", _LAYER_SCALE | _MASK),
    _Relative("DINOv2 weights", _LAYER_SCALE | {r"blocks\.\d+\.\d+\.norm1\.": "blocks in chunks"}),
    _Relative("DINO weights", {r"(head\.mlp\.\d+|head\.last_layer|last_layer)\.(weight|weight_g|bias)$": "projection head"},
              advice="only its backbone is a ViT that deit_jax supports: save only the backbone"),
    _Relative("weights of a hybrid ViT", {r"patch_embed\.backbone\.": "convolutional stem"}),
    _Relative("weights of a ViT with a pre-logits layer",
              {r"(pre_logits\.(fc\.)?(weight|kernel)|pooler\.dense\.weight)$": "pre_logits"}, absent=".*Transformer/",
              advice="deit_jax does not support this layer: use weights that were fine-tuned without it"),
    _Relative("weights of a ViT in the layout of google-research/vision_transformer",
              {r".*Transformer/encoderblock_\d+/": ""}, marks={r".*pre_logits/kernel$": "pre_logits"}, advice=_OTHER_LAYOUT),
    _Relative("weights of torchvision's ViT", {r"encoder\.layers\.encoder_layer_\d+\.": ""}, advice=_OTHER_LAYOUT),
    _Relative("weights of a ViT with normalised queries and keys", {r"attn\.q_norm\.weight$": ""}),
    _Relative("weights of a ViT that averages its patches", {r"fc_norm\.weight$": "fc_norm, as in fine-tuned MAE"}),
    _Relative("ConvNeXt V2 weights", {r"grn\.(weight|gamma)$": "response normalisation"}),
    _Relative("ConvNeXt weights",
              {r"(stages\.\d+\.(blocks\.\d+\.conv_dw|\d+\.dwconv|layers\.\d+\.dwconv)\.|features\.1\.0\.layer_scale$)": ""}),
    _Relative("weights of an EfficientNet or MobileNet",
              {r"((conv_stem\.weight|features\.\d+\.\d+\.block\.0\.0\.weight|features\.1\.conv\.0\.0\.weight)$|"
               r"efficientnet\.encoder\.blocks\.\d+\.)": ""}),
    _Relative("ResNet weights", {r"(layer1\.0\.conv1\.weight$|resnet\.encoder\.stages\.\d+\.layers\.\d+\.)": ""}),
    _Relative("RegNetX weights",
              {r"(s1\.b1\.(conv1\.conv|f\.a)\.weight|block1\.block1-0\.f\.a\.0\.weight)$": "no squeeze and excitation",
               r"stem\.(conv|0)\.weight$": ""}, absent=r"(se|f\.se)\.", advice="deit_jax supports RegNetY, which has it"),
)
# fmt: on


def relative(tensors: Mapping[str, Any]) -> str | None:
    """Returns the end of a sentence: which unsupported model tensors belong to, and what to do. None: unknown.

    tensors: by the names of the file; anything with a shape.
    """
    text = "\n".join(tensors)

    def found(pattern: str) -> bool:
        return re.search(rf"^(.*\.)?{pattern}", text, re.MULTILINE) is not None

    for it in _RELATIVES:
        if all(map(found, it.signs)) and not (it.absent and found(it.absent)):
            marks = ", ".join(what for sign, what in (it.signs | it.marks).items() if what and found(sign))
            return f"{it.title} ({marks}): {it.advice}" if marks else f"{it.title}: {it.advice}"
    if found(_SCALE):
        return f"{_with_layer_scale(tensors)}: {_Relative.advice}"
    return None


def _with_layer_scale(tensors: Mapping[str, Any]) -> str:
    shapes = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in tensors.items()}
    patch = [shape[2] for name, shape in shapes.items() if name.endswith("patch_embed.proj.weight") and len(shape) == 4]
    if patch == [14]:
        return "DINOv2 weights (layer scale, patches of 14 pixels)"
    position = [shape for name, shape in shapes.items() if name.endswith("pos_embed") and len(shape) == 3]
    if position and math.isqrt(position[0][1]) ** 2 == position[0][1]:
        return "DeiT III weights (layer scale, no position of the class token)"
    return "weights of a ViT with layer scale"


# --- DeiT and RegNetY of another size -------------------------------------------------------------------------------


_Architecture = tuple[tuple[int, ...], str]  # numbers that are equal for models of one size, and a description


def other_size(tensors: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Describes tensors and model, both in timm's names, if class or size differ, as the end of a sentence; else None."""
    given, wanted = _architecture(tensors), _architecture(expected)
    return f"{given[1]}; the model is {wanted[1]}" if given and wanted and given[0] != wanted[0] else None


def _architecture(tensors: Mapping[str, Any]) -> _Architecture | None:
    patches = tensors.get("patch_embed.proj.weight")
    if patches is not None and patches.ndim == 4:
        return _vit(tensors, patches.shape[0], patches.shape[2])
    return _regnet(tensors) if "stem.conv.weight" in tensors else None


def _of_family(family: str) -> Iterator[tuple[str, Any]]:
    return ((name, create_model(name)) for name in list_models() if model_family(name) == family)


def _vit(tensors: Mapping[str, Any], width: int, patch: int) -> _Architecture | None:
    depth = sum(re.fullmatch(r"blocks\.\d+\.attn\.qkv\.weight", name) is not None for name in tensors)
    position, distilled = tensors.get("pos_embed"), "dist_token" in tensors
    grid = math.isqrt(position.shape[1] - 1 - distilled) if position is not None and position.ndim == 3 else 0
    size = f", made for {grid * patch} pixels" if grid else ""
    detail = f"width {width}, depth {depth}, patches of {patch} pixels{size}"
    best = ""
    for name, model in _of_family("vit"):
        if (
            model.distilled == distilled
            and (model.embed_dim, model.depth, model.patch_size) == (width, depth, patch)
            and (not best or model.image_size == grid * patch)
        ):
            best = name
    return (width, depth, patch), f"{best or 'a ViT'} ({detail})"


def _regnet(tensors: Mapping[str, Any]) -> _Architecture | None:
    blocks = [
        (int(match[1]), tensor.shape[0])
        for name, tensor in tensors.items()
        if (match := re.fullmatch(r"s(\d+)\.b\d+\.conv1\.conv\.weight", name)) and tensor.ndim == 4
    ]
    stages = sorted({stage for stage, _ in blocks})
    depths = tuple(sum(stage == it for it, _ in blocks) for stage in stages)
    widths = tuple(max(width for it, width in blocks if it == stage) for stage in stages)
    for name, model in _of_family("regnet"):
        if (tuple(it.depth for it in model.stages), tuple(it.width for it in model.stages)) == (depths, widths):
            return (0, *depths, *widths), name
    depth_list, width_list = (", ".join(map(str, it)) for it in (depths, widths))
    return (0, *depths, *widths), f"a RegNet (depths {depth_list}, widths {width_list})"
