"""Records the state dicts and answers of the libraries whose layouts of weights we read and write.

    python tests/golden/record_layouts.py transformers4|transformers5|mmpretrain|torchvision|pycls

run by an interpreter with torch, NumPy, Pillow and the named library (transformers 4 and 5 need one each; pycls takes
its models' settings from timm). Each run replaces its own part of tests/golden/layouts_names.json.gz and layouts.npz.
The models run in float64, so that a comparison measures our rounding errors alone; the error of the library's own
float32 run is printed beside it.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent
sys.path[:0] = [str(GOLDEN.parent / "models"), str(GOLDEN.parent / "weights")]
import layout_golden as golden  # noqa: E402
import timm_names  # noqa: E402

NAMES = GOLDEN / "layouts_names.json.gz"
ANSWERS = GOLDEN / "layouts.npz"
REGNETS = ("002", "004", "006", "008", "016", "032", "040", "064", "080", "120", "160", "320")
Settings = dict[str, int]
Shapes = dict[str, tuple[int, ...]]


def deits() -> Iterator[tuple[str, bool, Settings]]:
    """timm's name of each DeiT and of the small ones, whether it is distilled, and its settings."""
    for distilled in (False, True):
        infix = "_distilled" if distilled else ""
        for size, width, heads, pixels in (
            ("tiny", 192, 3, 224),
            ("small", 384, 6, 224),
            ("base", 768, 12, 224),
            ("base", 768, 12, 384),
        ):
            settings = {"image_size": pixels, "patch_size": 16, "embed_dim": width, "depth": 12, "num_heads": heads}
            yield f"deit_{size}{infix}_patch16_{pixels}", distilled, {**settings, "num_classes": 1000}
        yield "small_distilled" if distilled else "small_plain", distilled, golden.SMALL


def shapes_of(model: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@torch.no_grad()
def fill(model: torch.nn.Module) -> torch.nn.Module:
    """The model in evaluation mode and float64, its weights written by the formula."""
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            tensor.copy_(torch.from_numpy(golden.layout_tensor(name, tuple(tensor.shape))))
    return model.double().eval()


@torch.no_grad()
def run(label: str, model: torch.nn.Module, x: torch.Tensor, call: Callable = lambda model, x: model(x)) -> np.ndarray:
    """The answer in float64, rounded; prints how far the library's float32 answer is from it."""
    fill(model)
    answer = call(model, x.double())
    single = call(model.float(), x).double()
    error = float((single - answer).norm() / answer.norm())
    print(f"{label:28} std {float(answer.std()):.3f}   its float32 relative error {error:.1e}")
    return answer.float().numpy()


def photographs(size: int) -> torch.Tensor:
    """The normalised photographs as the libraries take them: [B, 3, size, size]."""
    return torch.from_numpy(timm_names.photographs(golden.PHOTOGRAPHS, size).transpose(0, 3, 1, 2).copy())


def record_transformers(layout: str, names: dict, answers: dict) -> None:
    """transformers' classes; `layout`_disk holds the names in the files of version 5, which are not its modules'."""
    import transformers
    from safetensors import safe_open

    transformers.utils.logging.disable_progress_bar()

    def build(distilled: bool, settings: Settings) -> torch.nn.Module:
        prefix = "DeiT" if distilled else "ViT"
        config = getattr(transformers, f"{prefix}Config")(
            hidden_size=settings["embed_dim"],
            num_hidden_layers=settings["depth"],
            num_attention_heads=settings["num_heads"],
            intermediate_size=golden.MLP_RATIO * settings["embed_dim"],
            image_size=settings["image_size"],
            patch_size=settings["patch_size"],
            num_labels=settings["num_classes"],
            layer_norm_eps=golden.LAYER_NORM_EPSILON,
        )
        return getattr(transformers, f"{prefix}ForImageClassification{'WithTeacher' if distilled else ''}")(config)

    def saved(model: torch.nn.Module) -> Shapes:
        with tempfile.TemporaryDirectory() as folder:
            model.to_empty(device="cpu").save_pretrained(folder, max_shard_size="5GB")
            with safe_open(Path(folder) / "model.safetensors", "pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    def heads(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        answer = model(x)
        return torch.stack([answer.cls_logits, answer.distillation_logits, answer.logits])

    names[layout], on_disk = {}, {}
    for name, distilled, settings in deits():
        with torch.device("meta"):
            model = build(distilled, settings)
        names[layout][name] = shapes_of(model)
        on_disk[name] = saved(model)
    if layout == "hf_v5":
        names["hf_v5_disk"] = on_disk
    else:
        assert on_disk == names[layout]
    x = photographs(golden.SMALL["image_size"])
    answers[f"{layout}/plain"] = run(f"{layout} plain", build(False, golden.SMALL), x, lambda model, x: model(x).logits)
    answers[f"{layout}/distilled"] = run(f"{layout} distilled", build(True, golden.SMALL), x, heads)


def record_mmpretrain(names: dict, answers: dict) -> None:
    from mmpretrain.models import build_classifier

    def build(distilled: bool, settings: Settings) -> torch.nn.Module:
        width = settings["embed_dim"]
        architecture = {
            "embed_dims": width,
            "num_layers": settings["depth"],
            "num_heads": settings["num_heads"],
            "feedforward_channels": golden.MLP_RATIO * width,
        }
        backbone = {
            "type": "DistilledVisionTransformer" if distilled else "VisionTransformer",
            "arch": architecture,
            "img_size": settings["image_size"],
            "patch_size": settings["patch_size"],
        }
        head = "DeiTClsHead" if distilled else "VisionTransformerClsHead"
        head = {"type": head, "num_classes": settings["num_classes"], "in_channels": width}
        return build_classifier({"type": "ImageClassifier", "backbone": backbone, "head": head})

    def heads(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        class_token, distillation_token = model.extract_feat(x)[-1]
        layers = model.head.layers
        return torch.stack([layers.head(class_token), layers.head_dist(distillation_token), model(x)])

    names["mmpretrain"] = {name: shapes_of(build(distilled, settings)) for name, distilled, settings in deits()}
    x = photographs(golden.SMALL["image_size"])
    answers["mmpretrain/plain"] = run("mmpretrain plain", build(False, golden.SMALL), x)
    answers["mmpretrain/distilled"] = run("mmpretrain distilled", build(True, golden.SMALL), x, heads)


def record_torchvision(names: dict, answers: dict) -> None:
    from torchvision import models

    names["torchvision"] = {}
    for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf"):
        names["torchvision"][f"regnet_y_{size}"] = shapes_of(getattr(models, f"regnet_y_{size}")())
    x = photographs(golden.REGNET_IMAGE_SIZE)
    answers["torchvision/regnet_y_400mf"] = run("torchvision regnet_y_400mf", models.regnet_y_400mf(), x)


def record_pycls(names: dict, answers: dict) -> None:
    """pycls's networks, from timm's table of their settings. They take the channels in the order blue, green, red."""
    from pycls.core.config import cfg
    from pycls.models.regnet import RegNet
    from timm.models.regnet import model_cfgs

    def build(name: str) -> torch.nn.Module:
        settings = model_cfgs[name]
        cfg.MODEL.NUM_CLASSES = 1000
        cfg.REGNET.SE_ON = True
        cfg.REGNET.SE_R = settings.se_ratio
        cfg.REGNET.DEPTH = settings.depth
        cfg.REGNET.W0, cfg.REGNET.WA, cfg.REGNET.WM = settings.w0, settings.wa, settings.wm
        cfg.REGNET.GROUP_W = settings.group_size
        return RegNet()

    names["pycls"] = {}
    for size in REGNETS:
        with torch.device("meta"):
            names["pycls"][f"regnety_{size}"] = shapes_of(build(f"regnety_{size}"))
    x = photographs(golden.REGNET_IMAGE_SIZE).flip(1)
    answers["pycls/regnety_002"] = run("pycls RegNetY-200MF", build("regnety_002"), x)


SECTIONS = {
    "transformers4": lambda names, answers: record_transformers("hf_v4", names, answers),
    "transformers5": lambda names, answers: record_transformers("hf_v5", names, answers),
    "mmpretrain": record_mmpretrain,
    "torchvision": record_torchvision,
    "pycls": record_pycls,
}


def main() -> None:
    torch.set_num_threads(1)
    names = json.loads(gzip.decompress(NAMES.read_bytes())) if NAMES.exists() else {}
    answers = dict(np.load(ANSWERS)) if ANSWERS.exists() else {}
    for section in sys.argv[1:]:
        SECTIONS[section](names, answers)
    text = json.dumps(dict(sorted(names.items())), separators=(",", ":"))
    NAMES.write_bytes(gzip.compress(text.encode(), mtime=0))
    np.savez_compressed(ANSWERS, **dict(sorted(answers.items())))
    for path in (NAMES, ANSWERS):
        print(f"{path.stat().st_size:8} {path.name}")


if __name__ == "__main__":
    main()
