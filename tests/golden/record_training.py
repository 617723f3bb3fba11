"""Records what PyTorch and timm compute for losses, learning rates and optimizers, as tests/golden/training.npz.

    python tests/golden/record_training.py

with an interpreter that has torch and timm (recorded with torch 2.14.1, timm 1.0.31).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.scheduler import CosineLRScheduler

rng = np.random.default_rng(0)
out = {}

# Losses on given logits; the distillation terms are written as in facebookresearch/deit's losses.py.
logits, teacher = (torch.from_numpy(rng.normal(0, 3, (6, 10)).astype(np.float32)) for _ in range(2))
labels = torch.from_numpy(rng.integers(0, 10, 6))
targets = torch.from_numpy(rng.dirichlet(np.ones(10), 6).astype(np.float32))
out |= {"logits": logits, "teacher": teacher, "labels": labels, "targets": targets}
out["soft_target"] = SoftTargetCrossEntropy()(logits, targets)
out["label_smoothing"] = LabelSmoothingCrossEntropy(0.1)(logits, labels)
out["hard"] = F.cross_entropy(logits, teacher.argmax(dim=1))
for tau in (1.0, 3.0):
    log_student, log_teacher = F.log_softmax(logits / tau, dim=1), F.log_softmax(teacher / tau, dim=1)
    total = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    out[f"soft_released_{tau:g}"] = total * tau**2 / logits.numel()
    # KL(student || teacher) is kl_div with the arguments exchanged.
    out[f"soft_paper_{tau:g}"] = F.kl_div(log_teacher, log_student, reduction="batchmean", log_target=True) * tau**2

# Learning rate of every epoch of the paper's schedule: timm's scheduler, stepped as the released main.py does.
parameter = torch.nn.Parameter(torch.zeros(1))
optimizer = torch.optim.SGD([parameter], lr=1e-3)
scheduler = CosineLRScheduler(optimizer, t_initial=300, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6)
released = []
for epoch in range(300):
    released.append(optimizer.param_groups[0]["lr"])
    scheduler.step(epoch)
out["released_rates"] = np.array(released)
out["plain_rates"] = np.array([scheduler._get_lr(epoch)[0] for epoch in range(300)])
out["per_step_rates"] = np.array([scheduler._get_lr(step / 7)[0] for step in range(0, 2100, 31)])

# Optimizers: 20 steps on the same gradients, with one decayed and one undecayed parameter.
gradients = rng.normal(0, 1, (20, 2, 5)).astype(np.float32)
start = rng.normal(0, 1, (2, 5)).astype(np.float32)
out |= {"gradients": gradients, "start": start}


def trajectory(make, clip=None):
    parameters = [torch.nn.Parameter(torch.from_numpy(start[i].copy())) for i in range(2)]
    groups = [{"params": [parameters[0]], "weight_decay": 0.05}, {"params": [parameters[1]], "weight_decay": 0.0}]
    optimizer = make(groups)
    for step in range(20):
        for i in range(2):
            parameters[i].grad = torch.from_numpy(gradients[step, i].copy())
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
    return np.stack([p.detach().numpy() for p in parameters])


out["adamw"] = trajectory(lambda groups: torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.999), eps=1e-8))
out["adamw_clipped"] = trajectory(lambda groups: torch.optim.AdamW(groups, lr=0.01, eps=1e-8), clip=1.0)
out["sgd"] = trajectory(lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True))

np.savez_compressed(Path(__file__).with_name("training.npz"), **{k: np.asarray(v) for k, v in out.items()})
