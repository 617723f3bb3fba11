"""Records what PyTorch and timm compute for losses, learning rates, optimizers, parameter groups and moving averages.

It writes tests/golden/training.npz:

    python tests/golden/record_training.py

with an interpreter that has torch and timm (recorded with torch 2.14.1, timm 1.0.31).
"""

import json
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.task import TokenDistillationTask
from timm.utils import ModelEmaV2, ModelEmaV3

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
    # KL(student || teacher) is kl_div with the arguments exchanged.
    for kl, arguments in (("released", (log_student, log_teacher)), ("paper", (log_teacher, log_student))):
        total = F.kl_div(*arguments, reduction="sum", log_target=True) * tau**2
        out[f"soft_{kl}_elements_{tau:g}"] = total / logits.numel()
        out[f"soft_{kl}_batch_{tau:g}"] = total / len(logits)


class Answer(torch.nn.Module):
    """A model that answers what it was given, whatever the images."""

    num_classes, in_chans = 10, 3
    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # noqa: RUF012

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def set_distilled_training(self, enable):
        pass

    def forward(self, images):
        return self.answer


# timm's own distillation to a token, of version 1.0.31, whole: half the labels' loss and half the teacher's.
for kind, tau in (("soft", 1.0), ("soft", 3.0), ("hard", 1.0)):
    task = TokenDistillationTask(
        Answer((logits, logits.flip(0))),
        Answer(teacher),
        criterion=SoftTargetCrossEntropy(),
        distill_type=kind,
        task_loss_weight=0.5,
        temperature=tau,
        verbose=False,
    )
    out[f"timm_task_{kind}_{tau:g}"] = task(torch.zeros(6, 3, 2, 2), targets)["loss"]

# Mixed and smoothed targets: timm's for a mixup of the batch with itself reversed, as its step makes them.
mixed = mixup_target(labels, 10, lam=0.3, smoothing=0.1)
out |= {"mixed_targets": mixed, "mixed_loss": SoftTargetCrossEntropy()(logits, mixed)}

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


# Parameter groups: for every name, whether its tensor decays. The released code's rule is timm 0.3.2's `add_weight_decay`,
# with the skip list that its VisionTransformer gave. timm's rule of today also exempts dist_token.
RELEASED_SKIP_LIST = {"pos_embed", "cls_token"}


def released_decay(model):
    return {
        name: not (len(parameter.shape) == 1 or name.endswith(".bias") or name in RELEASED_SKIP_LIST)
        for name, parameter in model.named_parameters()
    }


def current_decay(model):
    skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups = param_groups_weight_decay(model, weight_decay=0.05, no_weight_decay_list=skip)
    decays = {id(parameter): group["weight_decay"] > 0 for group in groups for parameter in group["params"]}
    return {name: decays[id(parameter)] for name, parameter in model.named_parameters()}


groups = {}
for name in ("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "regnety_002"):
    model = timm.create_model(name)
    groups[name] = {"released": released_decay(model), "current": current_decay(model)}
out["parameter_groups"] = np.array(json.dumps(groups))

# Moving averages of given weights and BatchNorm statistics, after every step. Values are multiples of 1/64, so that
# optimizer updates can be written that reach them exactly.
EMA_DECAYS = (0.9, 0.99996)
given = {
    "weight": rng.integers(-256, 256, (21, 2, 3)) / 64,  # the first is where the average starts
    "running_mean": rng.integers(-256, 256, (21, 3)) / 64,
    "running_var": rng.integers(1, 256, (21, 3)) / 64,
}
out |= {f"ema_given_{name}": values.astype(np.float32) for name, values in given.items()}


class Weights(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, 3))
        self.norm = torch.nn.BatchNorm1d(3, affine=False)

    @torch.no_grad()
    def become(self, step):
        self.weight.copy_(torch.from_numpy(given["weight"][step]))
        self.norm.running_mean.copy_(torch.from_numpy(given["running_mean"][step]))
        self.norm.running_var.copy_(torch.from_numpy(given["running_var"][step]))
        return self


for version, average_of in (("v2", ModelEmaV2), ("v3", ModelEmaV3)):
    for decay in EMA_DECAYS:
        weights = Weights()
        average = average_of(weights.become(0), decay=decay)
        history = []
        for step in range(1, 21):
            average.update(weights.become(step))
            history.append({name: value.clone() for name, value in average.module.state_dict().items()})
        for name in given:
            key = name if name == "weight" else f"norm.{name}"
            out[f"ema_{version}_{decay:g}_{name}"] = np.stack([state[key].numpy() for state in history])

np.savez_compressed(Path(__file__).with_name("training.npz"), **{k: np.asarray(v) for k, v in out.items()})
