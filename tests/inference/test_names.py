"""Invalid strings in the public API raise one line with the choices and the nearest one."""

import pytest

import deit_jax
from deit_jax import Classifier, create_model, load_pretrained, load_weights, save_weights
from deit_jax.inference.onnx_file import export_onnx
from deit_jax.inference.portable import export_jax
from deit_jax.weights import hub
from tests.inference.conftest import CHINA

SMALL = dict(image_size=28, patch_size=14, embed_dim=16, depth=2, num_heads=2)


@pytest.fixture
def given(vit, vit_workdir, monkeypatch):
    monkeypatch.setattr(hub, "fetch_pretrained", lambda *_, **__: pytest.fail("fetched for a wrong argument"))
    return {"vit": vit, "workdir": vit_workdir, "plain": create_model("deit_tiny_patch16_224", **SMALL)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda it: Classifier.from_workdir(it["workdir"], "EMA"),
            "variables='EMA' is none of raw, ema; the nearest is 'ema'",
        ),
        (
            lambda it: Classifier.from_workdir(it["workdir"], variables="Raw"),
            "variables='Raw' .*; the nearest is 'raw'",
        ),
        (lambda it: Classifier.from_workdir(it["workdir"], None), "variables=None is none of raw, ema$"),
        (
            lambda it: Classifier.from_workdir(it["workdir"], checkpoint="latest"),
            "checkpoint='latest' is none of newest .the last one., best .of the highest top-1. and a step",
        ),
        (lambda it: Classifier.from_workdir(it["workdir"], checkpoint=-1), "checkpoint=-1 is none of newest"),
        (
            lambda it: Classifier.from_workdir("ftp://host/run"),
            "ftp://host/run is an address: give a folder, or a bucket's gs://",
        ),
        (lambda it: it["vit"](CHINA, head="Distilation"), "head='Distilation' .*; the nearest is 'distillation'"),
        (lambda it: it["vit"].probabilities(CHINA, head="fused"), "head='fused' .*; the nearest is 'fused_logits'"),
        (lambda it: it["vit"](CHINA, head=0), "head=0 is none of class, "),
        (lambda it: it["vit"](CHINA, top_k="3"), "top_k='3': give 1 or more classes"),
        (
            lambda it: Classifier(it["vit"].model, {}, crop="center"),
            r"crop='center': give a crop, e\.g\. deit_jax\.data\.decoding\.CenterCrop",
        ),
        (
            lambda it: Classifier("deit_tiny_patch16_224", {}, crop=it["vit"].crop),
            "model='deit_tiny_patch16_224' is a name",
        ),
        (
            lambda it: Classifier(it["vit"].model, {}, crop=it["vit"].crop, class_names="abcdefghij"),
            "class_names='abcdefghij' is one string: give a list",
        ),
        (lambda it: Classifier.from_weights("x.pth", "deit_small"), "unknown model 'deit_small'; nearest: deit_small_"),
        (
            lambda it: Classifier.from_weights("https://a.org/x.pth", "deit_small"),
            "path='https://a.org/x.pth' is an address",
        ),
        (
            lambda it: Classifier.from_weights("x.pth", "deit_tiny_patch16_224", class_names="rose"),
            "class_names='rose' is one string",
        ),
        (lambda it: Classifier.from_pretrained("DeiT_base"), "unknown model 'DeiT_base'; nearest: deit_base_"),
        (
            lambda it: Classifier.from_pretrained("deit_tiny_patch16_224", attention="flash"),
            "attention='flash' is none of auto, xla, dot_product, pallas, cudnn",
        ),
        (lambda it: create_model("deit_tiny_patch16_224", fusion="mean"), "fusion='mean' is none of logits, softmax"),
        (lambda it: create_model("regnety_002", grouped_conv="nativ"), "'nativ' .*; the nearest is 'native'"),
        (lambda it: create_model(None), "unknown model None; nearest: "),
        (
            lambda it: load_pretrained("deit_tiny_patch16_224", heads="Reset"),
            "heads='Reset' is none of keep, reset, reset_if_needed; the nearest is 'reset'",
        ),
        (
            lambda it: load_pretrained("deit_tiny_patch16_224", distillation_token="adopt"),
            "distillation_token='adopt' is none of keep, adapt; the nearest is 'adapt'",
        ),
        # Strings are checked before the file.
        (
            lambda it: load_weights("gone.pth", it["plain"], which="EMA"),
            "which='EMA' is none of raw, ema; the nearest is",
        ),
        (
            lambda it: load_weights("gone.pth", it["plain"], heads="reset-if-needed"),
            "; the nearest is 'reset_if_needed'",
        ),
        (
            lambda it: load_weights("hf://timm/x.pth", it["plain"]),
            "source='hf://timm/x.pth' is an address: give a path",
        ),
        (
            lambda it: save_weights(it["vit"].variables, it["vit"].model, "gs://bucket/x.pth"),
            "path='gs://bucket/x.pth' is an address",
        ),
        (lambda it: export_jax(it["vit"], "s3://bucket/folder"), "folder='s3://bucket/folder' is an address"),
        (lambda it: export_onnx(it["vit"], "s3://bucket/x.onnx"), "path='s3://bucket/x.onnx' is an address"),
        (lambda it: load_weights("gone.pth", "deit_tiny_patch16_224"), "is a name: give deit_jax.create_model"),
        (
            lambda it: save_weights(it["vit"].variables, it["vit"].model, "gone", "HF"),
            "layout='HF' is none of timm, hf, mmpretrain, flax; the nearest is 'hf'",
        ),
        (lambda it: save_weights(it["vit"].variables, "deit_tiny_patch16_224", "gone"), "is a name: give the model"),
        (
            lambda it: save_weights(it["vit"].variables, it["vit"].model, "gone", class_names="abcdefghij"),
            "class_names='abcdefghij' is one string",
        ),
    ],
)
def test_invalid_strings_raise_one_line(given, call, message):
    with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
        call(given)


def test_unpublished_weights_and_invalid_hashes():
    with pytest.raises(deit_jax.WeightsError, match=r"no published weights of regnety_040; available: deit_tiny"):
        Classifier.from_pretrained("regnety_040")
    for wrong in ("not-hex", "", "0" * 65):
        with pytest.raises(deit_jax.WeightsError, match=r"^sha256='.*': give the hexadecimal digits"):
            load_pretrained("deit_tiny_patch16_224", sha256=wrong)
