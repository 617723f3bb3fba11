"""The released DeiT training step on timm's models and PyTorch's AdamW, on given weights and batches.

    python benchmarks/peers/trajectory_timm.py INPUT.npz OUTPUT.npz

needs an interpreter with torch, timm 1.0.31 and NumPy; started by benchmarks/trajectory.py. Models, parameter groups, label loss
and scheduler are timm's; reimplemented from facebookresearch/deit are the teacher's term (losses.py) and the times of the
scheduler's steps (main.py).

INPUT has `settings` (JSON) and the initial weights of both networks with timm's names: `student/<name>` and `teacher/<name>`. Its
batches are either images and labels, `image` uint8[steps, B, H, W, 3] and `label` int32[steps, B], or augmented ones, `image`
float32 and normalised with `target` float32[steps, B, K]. OUTPUT has, one value per step, `loss`, `class_loss`,
`distillation_loss`, `grad_norm` and `learning_rate`; `teacher_logits` [steps, B, K]; and after the last step `params/<name>` and
`ema/<name>`. Without a teacher (kind "none") the student has one head, and there is neither `distillation_loss` nor
`teacher_logits`.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEma


def distillation_loss(outputs: torch.Tensor, teacher: torch.Tensor, kind: str, tau: float) -> torch.Tensor:
    """The teacher's term as in facebookresearch/deit, losses.py."""
    if kind == "hard":
        return F.cross_entropy(outputs, teacher.argmax(dim=1))
    log_student, log_teacher = F.log_softmax(outputs / tau, dim=1), F.log_softmax(teacher / tau, dim=1)
    total = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return total * (tau * tau) / outputs.numel()


def load(model: torch.nn.Module, tensors: dict[str, np.ndarray], dtype: torch.dtype) -> torch.nn.Module:
    """Loads the model strictly: a different name or shape is an error."""
    counters = {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()} | counters)
    return model.to(dtype)


def images_of(arrays: dict[str, np.ndarray], settings: dict, step: int, dtype: torch.dtype) -> torch.Tensor:
    """The batch of a step, normalised: [B, 3, H, W]."""
    images = torch.from_numpy(arrays["image"][step].transpose(0, 3, 1, 2).copy())
    if images.dtype != torch.uint8:
        return images.to(dtype)
    mean, std = (torch.tensor(settings[name], dtype=dtype)[:, None, None] for name in ("mean", "std"))
    return (images.to(dtype).div(255) - mean) / std


def main() -> None:
    torch.set_num_threads(1)
    source, target = sys.argv[1:]
    with np.load(source) as file:
        arrays = dict(file)
    settings = json.loads(str(arrays["settings"]))
    dtype = getattr(torch, settings["dtype"])
    weights = {"student": {}, "teacher": {}}
    for key, value in arrays.items():
        if key.startswith(("student/", "teacher/")):
            network, name = key.split("/")
            weights[network][name] = value

    distilled = settings["kind"] != "none"
    student = (VisionTransformerDistilled if distilled else VisionTransformer)(**settings["student"])
    student = load(student, weights["student"], dtype).train()
    if distilled:
        student.set_distilled_training(True)
        teacher = timm.create_model(settings["teacher"], num_classes=settings["student"]["num_classes"])
        teacher = load(teacher, weights["teacher"], dtype).eval()
    ema = ModelEma(student, decay=settings["ema_decay"])

    # As exempted by the released code; dist_token decays there (no_weight_decay() of current timm exempts it).
    groups = param_groups_weight_decay(
        student, settings["weight_decay"], no_weight_decay_list={"pos_embed", "cls_token"}
    )
    optimizer = create_optimizer_v2(groups, opt="adamw", lr=settings["peak"], betas=tuple(settings["betas"]), eps=1e-8)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=settings["epochs"],
        lr_min=settings["minimum"],
        warmup_t=settings["warmup_epochs"],
        warmup_lr_init=settings["warmup"],
    )
    mixed = "target" in arrays
    base_criterion = SoftTargetCrossEntropy() if mixed else LabelSmoothingCrossEntropy(settings["label_smoothing"])
    targets = torch.from_numpy(arrays["target"]).to(dtype) if mixed else torch.from_numpy(arrays["label"]).long()
    alpha = settings["alpha"]

    history: dict[str, list] = {}
    for step in range(len(arrays["image"])):
        images = images_of(arrays, settings, step, dtype)
        answer = student(images)
        class_term = base_criterion(answer[0] if distilled else answer, targets[step])
        row = {"class_loss": class_term}
        if distilled:
            with torch.no_grad():
                teacher_logits = teacher(images)
            teacher_term = distillation_loss(answer[1], teacher_logits, settings["kind"], settings["tau"])
            loss = class_term * (1 - alpha) + teacher_term * alpha
            row["distillation_loss"] = teacher_term
            history.setdefault("teacher_logits", []).append(teacher_logits.numpy())
        else:
            loss = class_term

        optimizer.zero_grad()
        loss.backward()
        norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in student.parameters()]))
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        ema.update(student)

        row |= {"loss": loss, "grad_norm": norm}
        row = {name: value.detach().double().item() for name, value in row.items()} | {"learning_rate": rate}
        for name, value in row.items():
            history.setdefault(name, []).append(value)
        if (step + 1) % settings["steps_per_epoch"] == 0:
            # The released main.py: epoch e, then step(e), so that the rate lags one epoch.
            scheduler.step((step + 1) // settings["steps_per_epoch"] - 1)

    results = {name: np.asarray(values) for name, values in history.items()}
    results |= {f"params/{name}": value.numpy() for name, value in student.state_dict().items()}
    results |= {f"ema/{name}": value.numpy() for name, value in ema.ema.state_dict().items()}
    np.savez(target, **results)


if __name__ == "__main__":
    main()
