"""Weights of unsupported models are identified by name, and DeiT of another size by its size.

Names are those of the models' state dicts; tensors are small, and of blocks and stages there are one or two.
"""

import numpy as np
import pytest

import deit_jax
from deit_jax.weights import MisfitError, WeightsError, load_weights, timm
from deit_jax.weights.loading import fit_weights
from deit_jax.weights.relatives import relative
from tests.models.timm_names import state_dict_shapes

from .layout_golden import SMALL, layout_state

MODEL = deit_jax.create_model("deit_tiny_patch16_224", **SMALL)
REGNET = deit_jax.create_model("regnety_002", w0=8, wa=8.0, wm=1.5, depth=5, group_width=4)
WIDTH, PATCHES = 48, 16


def both(*names):
    return [f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")]


def shaped(names, patch=8, positions=PATCHES + 1):
    """Tensors under these names, with the shapes that matter."""
    shapes = {
        "patch_embed.proj.weight": (WIDTH, 3, patch, patch),
        "pos_embed": (1, positions, WIDTH),
    }
    found = {}
    for name in names:
        shape = next((shape for end, shape in shapes.items() if name.endswith(end)), (WIDTH,))
        found[name] = np.broadcast_to(np.float32(0.5), shape)
    return found


def vit(*more, block=(), blocks="blocks.0.", positions=PATCHES + 1, patch=8, leave_out=()):
    """A ViT in timm's names with additional tensors, also in each block."""
    own = both("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    names = ["cls_token", "pos_embed", *both("patch_embed.proj", "norm", "head")]
    names += [blocks + name for name in [*own, *block]]
    names = [name for name in [*names, *more] if not name.endswith(leave_out)]
    return shaped(names, patch, positions)


def hf(*more, prefix="", layer="encoder.layer.0.", own=("layernorm_before", "layernorm_after"), block=()):
    """A ViT in transformers' names."""
    names = ["embeddings.cls_token", "embeddings.position_embeddings", *both("embeddings.patch_embeddings.projection")]
    names += both(*(f"{layer}attention.attention.{part}" for part in ("query", "key", "value")))
    names += both(*(layer + it for it in own), f"{layer}attention.output.dense", "layernorm")
    names += [layer + it for it in block]
    return shaped([prefix + name for name in names] + list(more))


RELATIVES = {
    "DeiT III": [
        vit(block=["gamma_1", "gamma_2"], positions=PATCHES),
        vit(block=["ls1.gamma", "ls2.gamma"], positions=PATCHES),
    ],
    "CaiT": [
        vit(
            *both("blocks_token_only.0.norm1", "blocks_token_only.0.attn.q"),
            "blocks_token_only.0.gamma_1",
            block=["gamma_1", "gamma_2", *both("attn.proj_l", "attn.proj_w")],
            positions=PATCHES,
        )
    ],
    "XCiT": [
        vit(*both("cls_attn_blocks.0.norm1", "blocks.0.local_mp.conv1"), "blocks.0.gamma1", leave_out=("pos_embed",))
    ],
    "DINO weights": [vit(*both("head.mlp.0"), "head.last_layer.weight_g", leave_out=("head.weight", "head.bias"))],
    "DINOv2": [
        vit("mask_token", block=["ls1.gamma", "ls2.gamma"], patch=14),
        vit("mask_token", "register_tokens", block=["ls1.gamma", "ls2.gamma"], patch=14),
        vit("mask_token", block=["ls1.gamma", "ls2.gamma"], blocks="blocks.0.0.", patch=14),
        vit(block=["ls1.gamma", "ls2.gamma"], patch=14, leave_out=("head.weight", "head.bias")),
        vit("reg_token", block=["ls1.gamma", "ls2.gamma"], patch=14, positions=PATCHES),
        vit("mask_token", block=["ls1.gamma", *both("mlp.w12", "mlp.w3")], leave_out=("fc1.weight", "fc2.weight")),
        hf("embeddings.mask_token", own=("norm1", "norm2"), block=["layer_scale1.lambda1", "layer_scale2.lambda1"]),
        hf(
            "dinov2_with_registers.embeddings.mask_token",
            "dinov2_with_registers.embeddings.register_tokens",
            prefix="dinov2_with_registers.",
            own=("norm1", "norm2"),
            block=["layer_scale1.lambda1", *both("mlp.fc1")],
        ),
    ],
    "DINOv3": [
        vit("storage_tokens", "mask_token", "rope_embed.periods", block=["ls1.gamma"], leave_out=("pos_embed",)),
        vit("reg_token", block=["gamma_1", "gamma_2"], leave_out=("pos_embed",)),
        shaped(
            [
                "embeddings.cls_token",
                "embeddings.mask_token",
                "embeddings.register_tokens",
                "layer.0.layer_scale1.lambda1",
            ]
            + both("embeddings.patch_embeddings", "layer.0.attention.q_proj", "layer.0.mlp.up_proj", "norm")
        ),
    ],
    "MAE weights": [
        vit("mask_token", "decoder_pos_embed", *both("decoder_embed", "decoder_blocks.0.norm1", "decoder_pred")),
        hf(
            *["decoder.mask_token", *both("decoder.decoder_embed", "decoder.decoder_layers.0.layernorm_before")],
            prefix="vit.",
        ),
    ],
    "averages its patches": [vit(*both("fc_norm"))],
    "BEiT": [
        vit(
            "mask_token",
            block=["gamma_1", "attn.q_bias", "attn.v_bias", "attn.relative_position_bias_table"],
            leave_out=("pos_embed", "attn.qkv.bias"),
        ),
        vit("rel_pos_bias.relative_position_bias_table", block=["gamma_1", "attn.q_bias"], leave_out=("pos_embed",)),
        hf(
            "beit.embeddings.mask_token",
            prefix="beit.",
            block=["lambda_1", "attention.attention.relative_position_bias.relative_position_bias_table"],
        ),
    ],
    "EVA": [
        vit(block=["attn.q_bias", "attn.v_bias"], patch=14),
        vit(block=both("attn.q_proj", "mlp.fc1_g", "mlp.norm"), leave_out=("attn.qkv.weight", "attn.qkv.bias")),
        vit(block=["attn.q_bias", *both("mlp.w1", "mlp.w2", "attn.inner_attn_ln")], leave_out=("qkv.bias",)),
    ],
    "CLIP": [
        shaped(
            ["visual.class_embedding", "visual.conv1.weight", "visual.positional_embedding", "logit_scale"]
            + ["visual.transformer.resblocks.0.attn.in_proj_weight", "token_embedding.weight", "text_projection"]
        ),
        shaped(
            ["vision_model.embeddings.class_embedding", "vision_model.embeddings.patch_embedding.weight", "logit_scale"]
            + both("vision_model.pre_layrnorm", "vision_model.encoder.layers.0.layer_norm1")
            + both("text_model.final_layer_norm")
        ),
        vit(*both("norm_pre"), leave_out=("patch_embed.proj.bias",)),
        {f"visual.{name}": tensor for name, tensor in vit(block=["attn.q_bias", "attn.v_bias"]).items()},
    ],
    "SigLIP": [
        shaped(
            ["vision_model.head.probe", "vision_model.head.attention.in_proj_weight", "logit_bias"]
            + both("vision_model.embeddings.patch_embedding", "vision_model.encoder.layers.0.self_attn.q_proj")
        ),
        vit("attn_pool.latent", *both("attn_pool.q", "attn_pool.kv"), leave_out=("cls_token", "head.weight")),
        {
            f"visual.trunk.{name}": tensor
            for name, tensor in vit("attn_pool.latent", *both("attn_pool.kv"), leave_out=("cls_token",)).items()
        },
    ],
    "pre-logits": [
        vit(*both("pre_logits.fc")),
        hf("vit.pooler.dense.weight", prefix="vit."),
        hf("pooler.dense.weight"),
    ],
    "google-research/vision_transformer": [
        shaped(
            ["cls", "embedding/kernel", "head/kernel", "Transformer/posembed_input/pos_embedding", "pre_logits/kernel"]
            + ["Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"]
        )
    ],
    "torchvision's ViT": [
        shaped(
            ["class_token", "encoder.pos_embedding", "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"]
            + both("conv_proj", "heads.head", "encoder.layers.encoder_layer_0.ln_1", "encoder.ln")
        )
    ],
    "normalised queries": [vit(block=both("attn.q_norm", "attn.k_norm"))],
    "hybrid": [vit("patch_embed.backbone.stem.conv.weight")],
    "ViT with layer scale": [vit(block=["ls1.gamma", "ls2.gamma"])],
    "Swin weights": [
        shaped(
            [f"layers.{i}.blocks.0.attn.relative_position_bias_table" for i in range(4)]
            + both(*(f"layers.{i}.blocks.0.attn.qkv" for i in range(4)), "patch_embed.proj", "norm", "head.fc")
        ),
        shaped(
            ["swin.encoder.layers.0.blocks.0.attention.self.relative_position_bias_table"]
            + both("swin.embeddings.patch_embeddings.projection", "swin.layernorm", "classifier")
        ),
    ],
    "Swin V2": [
        shaped(
            ["layers.0.blocks.0.attn.logit_scale", "layers.0.blocks.0.attn.cpb_mlp.0.weight"]
            + both("layers.0.blocks.0.attn.qkv", "patch_embed.proj")
        ),
        shaped(
            ["swinv2.encoder.layers.0.blocks.0.attention.self.continuous_position_bias_mlp.0.weight"]
            + both("swinv2.embeddings.patch_embeddings.projection")
        ),
    ],
    "ConvNeXt weights": [
        shaped(["stages.0.blocks.0.gamma", *both("stem.0", "stages.0.blocks.0.conv_dw", "head.fc")]),
        shaped(["stages.0.0.gamma", *both("downsample_layers.0.0", "stages.0.0.dwconv")]),
        shaped(["features.1.0.layer_scale", *both("features.0.0", "features.1.0.block.0")]),
        shaped(both("convnext.encoder.stages.0.layers.0.dwconv", "classifier")),
    ],
    "ConvNeXt V2": [
        shaped(both("stem.0", "stages.0.blocks.0.conv_dw", "stages.0.blocks.0.mlp.grn")),
        shaped(
            ["convnextv2.encoder.stages.0.layers.0.grn.weight", *both("convnextv2.encoder.stages.0.layers.0.dwconv")]
        ),
    ],
    "ResNet": [
        shaped(["conv1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.running_mean", *both("bn1", "fc")]),
        shaped(["resnet.encoder.stages.0.layers.0.layer.0.convolution.weight"]),
    ],
    "EfficientNet": [
        shaped(["conv_stem.weight", "blocks.0.0.conv_dw.weight", "conv_head.weight", *both("bn1", "classifier")]),
        shaped(["features.0.0.weight", "features.1.0.block.0.0.weight", *both("classifier.1")]),
        shaped(["efficientnet.encoder.blocks.0.depthwise_conv.depthwise_conv.weight"]),
    ],
    "RegNetX": [
        shaped(["stem.conv.weight", "s1.b1.conv1.conv.weight", "s1.b1.conv3.bn.running_var", *both("head.fc")]),
        shaped(["stem.0.weight", "trunk_output.block1.block1-0.f.a.0.weight", *both("fc")]),
        shaped(["stem.conv.weight", "s1.b1.f.a.weight", *both("head.fc")]),
    ],
}


@pytest.mark.parametrize(
    ("title", "number"), [(title, i) for title, them in RELATIVES.items() for i in range(len(them))]
)
def test_other_models_are_identified(title, number):
    for prefix in ("", "model.", "student._orig_mod."):
        description = relative({prefix + name: tensor for name, tensor in RELATIVES[title][number].items()})
        assert (
            title in description and "deit_jax " in description and "\n" not in description and len(description) < 200
        )
        assert not [other for other in RELATIVES if other in description and other not in title], description


@pytest.mark.parametrize(
    "title", ["DeiT III", "DINOv2", "MAE weights", "BEiT", "CaiT", "pre-logits", "Swin weights", "ResNet", "CLIP"]
)
def test_error_is_one_line_with_the_model(tmp_path, title):
    np.savez(tmp_path / "a.npz", **RELATIVES[title][0])
    for source in (
        tmp_path / "a.npz",
        {"state_dict": {f"net.{name}": it for name, it in RELATIVES[title][-1].items()}},
    ):
        with pytest.raises(WeightsError, match=rf"^(the mapping|\S*a\.npz) holds .*{title}.*: ") as error:
            load_weights(source, MODEL, heads="reset_if_needed")
        assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_other_convnets_are_identified():
    with pytest.raises(
        WeightsError, match=r"holds RegNetX weights \(no squeeze and excitation\): deit_jax supports RegNetY"
    ):
        load_weights(RELATIVES["RegNetX"][0], REGNET)


def test_integers_do_not_hide_the_model():
    tensors = RELATIVES["BEiT"][0] | {"blocks.0.attn.relative_position_index": np.zeros((17, 17), np.int64)}
    with pytest.raises(WeightsError, match="holds BEiT weights"):
        load_weights(tensors, MODEL)


def test_convnet_outside_the_weights_is_ignored():
    tensors = {f"net.{name}": it for name, it in vit().items()}
    tensors |= {f"perceptual_loss.{name}": it for name, it in RELATIVES["ResNet"][0].items()}
    with pytest.raises(
        MisfitError,
        match=r"the mapping \(net\.\*\) \(timm\) does not fit the model: it holds a ViT \(width 48, depth 1, ",
    ):
        load_weights(tensors, MODEL)


def test_attributes_list_missing_names():
    with pytest.raises(MisfitError) as error:
        load_weights(RELATIVES["ViT with layer scale"][0], MODEL)
    assert set(error.value.unexpected) == {"blocks.0.ls1.gamma", "blocks.0.ls2.gamma"}


def test_own_models_are_not_misidentified(recorded_shapes):
    for models in (state_dict_shapes(), *recorded_shapes.values()):
        for name, shapes in models.items():
            tensors = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
            assert relative(tensors) is None, name


# --- DeiT and RegNetY of another size -------------------------------------------------------------------------------


def stand_in(name):
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in state_dict_shapes()[name].items()}


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        (
            "deit_tiny_patch16_224",
            "deit_small_patch16_224",
            r"holds deit_tiny_patch16_224 \(width 192, depth 12, patches of 16 pixels, made for 224 pixels\); "
            r"the model is deit_small_patch16_224 \(width 384, depth 12,",
        ),
        (
            "deit_base_patch16_384",
            "deit_tiny_patch16_224",
            r"holds deit_base_patch16_384 .*made for 384 pixels\); the model",
        ),
        ("deit_small_distilled_patch16_224", "deit_tiny_patch16_224", r"holds deit_small_distilled_patch16_224 "),
        ("regnety_016", "regnety_002", r"holds regnety_016; the model is regnety_002"),
        ("regnety_160", "deit_tiny_patch16_224", r"holds regnety_160; the model is deit_tiny_patch16_224 "),
        (
            "deit_tiny_distilled_patch16_224",
            "regnety_004",
            r"holds deit_tiny_distilled_patch16_224 .*model is regnety_004",
        ),
    ],
)
def test_another_size_is_identified(given, wanted, message):
    with pytest.raises(MisfitError, match=message) as error:
        load_weights(stand_in(given), deit_jax.create_model(wanted), heads="reset_if_needed")
    assert "\n" not in str(error.value) and len(str(error.value)) < 900


@pytest.mark.parametrize("layout", ["hf_v4", "hf_v5", "mmpretrain"])
def test_another_size_is_identified_in_every_layout(recorded_shapes, layout):
    tensors = {
        key: np.broadcast_to(np.float32(0), shape)
        for key, shape in recorded_shapes[layout]["deit_small_patch16_224"].items()
    }
    with pytest.raises(MisfitError, match=r"holds deit_small_patch16_224 .*; the model is deit_tiny_patch16_224 "):
        load_weights(tensors, deit_jax.create_model("deit_tiny_patch16_224"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"patch_size": 32}, r"a ViT \(width 192, depth 12, patches of 32 pixels, made for 224 pixels\)"),
        ({"depth": 6}, r"a ViT \(width 192, depth 6, patches of 16 pixels, made for 224 pixels\)"),
        ({"embed_dim": 240}, r"a ViT \(width 240, depth 12, patches of 16 pixels, made for 224 pixels\)"),
        (
            {"image_size": 320},
            r"deit_tiny_patch16_224 \(width 192, depth 12, patches of 16 pixels, made for 320 pixels\)",
        ),
    ],
)
def test_other_fields_are_described(fields, words):
    given = timm.expected_tensors(deit_jax.create_model("deit_tiny_patch16_224", **fields))
    with pytest.raises(MisfitError, match=rf"holds {words}; the model is deit_base_patch16_224 "):
        load_weights(given, deit_jax.create_model("deit_base_patch16_224"))


def test_image_size_alone_is_the_same_model(recorded_shapes):
    fitted = fit_weights(layout_state(recorded_shapes["hf_v4"]["small_plain"]), MODEL.clone(image_size=48))
    assert fitted.resized == "4x4 to 6x6"
