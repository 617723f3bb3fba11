"""Records what timm's models answer, for tests/models to compare with where there is no PyTorch.

    python tests/golden/record_models.py

run by an interpreter with torch, timm 1.0.31, scikit-learn (the photograph), NumPy and Pillow; JAX is not needed. It
rewrites tests/golden/models.npz, models_photograph.png and models_state_dicts.json.gz. The models run in float64, so
that a comparison measures our rounding errors alone; the error of timm's own float32 run is printed beside it.
"""

from __future__ import annotations

import functools
import gzip
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.layers import trunc_normal_
from timm.models.deit import VisionTransformerDistilled

GOLDEN = Path(__file__).parent
sys.path.insert(0, str(GOLDEN.parent / "models"))
import timm_names as names  # noqa: E402

REGNETS = ("002", "004", "006", "008", "016", "032", "040", "064", "080", "120", "160", "320")
MODELS = [
    *(
        f"deit_{size}{distilled}_{patch}"
        for distilled in ("", "_distilled")
        for size, patch in (
            ("tiny", "patch16_224"),
            ("small", "patch16_224"),
            ("base", "patch16_224"),
            ("base", "patch16_384"),
        )
    ),
    *(f"regnety_{size}" for size in REGNETS),
]


def record_photograph() -> None:
    from sklearn.datasets import load_sample_image

    flower = load_sample_image("flower.jpg")
    Image.fromarray(flower[43:427, 256:640]).save(GOLDEN / "models_photograph.png", optimize=True)


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def record_state_dicts(small_vit: torch.nn.Module) -> None:
    with torch.device("meta"):
        shapes = {name: shapes_of(timm.create_model(name)) for name in MODELS}
    shapes["small_vit"] = shapes_of(small_vit)
    text = json.dumps(shapes, separators=(",", ":"))
    (GOLDEN / "models_state_dicts.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """The model in evaluation mode and float64, its weights written by the formula."""
    state = model.state_dict()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            tensor.copy_(torch.from_numpy(names.timm_tensor(name, tuple(tensor.shape))))
    model.load_state_dict(state)
    return model.double().eval()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def logits(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x)


@torch.no_grad()
def run(label: str, model: torch.nn.Module, images: np.ndarray, call: Callable = logits) -> torch.Tensor:
    """The answer in float64; prints how far timm's float32 answer is from it."""
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    answer = call(model.double(), x.double())
    single = call(model.float(), x)
    model.double()
    print(
        f"{label:42} std {float(answer.std()):.3f}   timm float32 relative error {relative_error(single, answer):.1e}"
    )
    return answer


def heads(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Class logits, distillation logits and the fused answer: [3, B, K]."""
    tokens = model.forward_features(x)
    return torch.stack([model.head(tokens[:, 0]), model.head_dist(tokens[:, 1]), model(x)])


def tokens(model: torch.nn.Module, x: torch.Tensor, indices: Sequence[int] = names.TOKENS) -> torch.Tensor:
    """Some tokens of the first image before the blocks, after each and after the last norm: [depth + 2, tokens, D]."""
    stages = [model._pos_embed(model.patch_embed(x))]
    for block in model.blocks:
        stages.append(block(stages[-1]))
    stages.append(model.norm(stages[-1]))
    return torch.stack(stages)[:, 0, list(indices)]


@torch.no_grad()
def train_step(images: np.ndarray, arrays: dict[str, torch.Tensor]) -> None:
    """One forward pass in training mode: logits, and the running statistics that it leaves."""
    model = fill(timm.create_model("regnety_002")).train()
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).double()
    arrays["regnety_002_train"] = model(x)
    for name in names.TRAINED_STATISTICS:
        layer = model.get_submodule(name)
        arrays[f"regnety_002_train/{name}.running_mean"] = layer.running_mean
        arrays[f"regnety_002_train/{name}.running_var"] = layer.running_var
    answer = arrays["regnety_002_train"]
    single = fill(timm.create_model("regnety_002")).float().train()(x.float())
    print(f"{'regnety_002 in training mode':42} std {float(answer.std()):.3f}   {relative_error(single, answer):.1e}")


def record_position_embedding(arrays: dict[str, torch.Tensor]) -> None:
    """DeiT's resizing of a 14x14 grid of 3 channels: PyTorch's interpolate, corners not aligned, no antialiasing."""
    embedding = torch.from_numpy(names.timm_tensor("pos_embed", (1, 14 * 14, 3))).double()
    grid = embedding.reshape(1, 14, 14, 3).permute(0, 3, 1, 2)
    for method, rows, columns in (("bicubic", 24, 24), ("bicubic", 10, 10), ("bicubic", 9, 20), ("bilinear", 24, 24)):
        resized = torch.nn.functional.interpolate(grid, size=(rows, columns), mode=method, align_corners=False)
        arrays[f"pos_embed/{method}_{rows}x{columns}"] = resized.permute(0, 2, 3, 1).reshape(1, rows * columns, 3)


def released_init(name: str) -> torch.nn.Module:
    """A DeiT as facebookresearch/deit starts it: timm 1.x differs in the class token alone (normal of std 1e-6)."""
    model = timm.create_model(name)
    trunc_normal_(model.cls_token, std=0.02)
    return model


@torch.no_grad()
def record_initialisation(arrays: dict[str, torch.Tensor]) -> None:
    """Mean, standard deviation and two quantiles of every tensor of a fresh model, in the order of its state dict.

    Quantiles and no extremes: PyTorch's trunc_normal_ makes about one weight in 2**24 exactly -2, a hundred deviations out.
    """
    torch.manual_seed(0)
    quantiles = torch.tensor(names.QUANTILES)
    for name, create in (*((name, released_init) for name in names.INITIAL_VITS), ("regnety_002", timm.create_model)):
        rows = [
            torch.stack([tensor.mean(), tensor.std(correction=0), *torch.quantile(tensor, quantiles)])
            for name, tensor in create(name).state_dict().items()
            if not name.endswith("num_batches_tracked")
        ]
        arrays[f"initial/{name}"] = torch.stack(rows)


def main() -> None:
    torch.set_num_threads(2)
    record_photograph()
    settings = {"embed_dim": 384, "num_heads": 6, "depth": names.SMALL_VIT["depth"]}
    sizes = {"img_size": names.SMALL_VIT["image_size"], "patch_size": names.SMALL_VIT["patch_size"]}
    small_vit = VisionTransformerDistilled(**settings, **sizes, num_classes=names.SMALL_VIT["num_classes"])
    record_state_dicts(small_vit)

    arrays: dict[str, torch.Tensor] = {}
    small = names.photographs(2, names.SMALL_VIT["image_size"])
    fill(small_vit)
    arrays["small_vit"] = run("small_vit", small_vit, small, heads)
    arrays["small_vit/tokens"] = run("small_vit, tokens", small_vit, small, tokens)
    for name in MODELS:
        model = fill(timm.create_model(name))
        arrays[name] = run(name, model, names.model_images(name), heads if "_distilled_" in name else logits)
        if name == "deit_tiny_distilled_patch16_224":
            some = functools.partial(tokens, indices=names.FULL_SIZE_TOKENS)
            arrays[f"{name}/tokens"] = run(f"{name}, tokens", model, names.model_images(name), some)
        del model
    stride_1 = timm.create_model("regnety_002")
    stride_1.stem.conv.stride = (1, 1)  # timm has no setting for it
    arrays["regnety_002_stride_1"] = run("regnety_002, stem stride 1", fill(stride_1), names.photographs(2, 32))
    train_step(names.photographs(4, 64), arrays)
    record_position_embedding(arrays)
    record_initialisation(arrays)

    np.savez_compressed(GOLDEN / "models.npz", **{name: tensor.float().numpy() for name, tensor in arrays.items()})
    for path in sorted(GOLDEN.glob("models*")):
        print(f"{path.stat().st_size:8} {path.name}")


if __name__ == "__main__":
    main()
