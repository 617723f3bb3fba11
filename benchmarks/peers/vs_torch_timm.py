"""timm's model in PyTorch on CPU, a step at a time on request, started by benchmarks/vs_torch.py.

    python benchmarks/peers/vs_torch_timm.py CASE

needs an interpreter with torch and timm. CASE is a JSON object: `part` ("train" or "infer"), `model`, `fields` (of
timm.create_model), `batch`, `image_size`, `classes`, `threads`, and `keep_memory`: whether to configure glibc's allocator to keep
freed memory, as deit_jax/parallel/host_memory.py does. Answers once with its versions and number of parameters; then each line on
stdin, a number of steps, with JSON of `seconds`, `processor_seconds` and `faults` (minor page faults) per step.

A training step is forward, the loss of deit_jax's `DistillationLoss` (kind="hard", with given teacher logits; for a model without
the token only the labels' term), backward and the fused AdamW. It takes normalised images. Convnets use PyTorch's channels_last
layout.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any


def keep_freed_memory() -> None:
    """As in deit_jax, reimplemented because this interpreter may lack that package's requirements."""
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in ((-4, 0), (-1, -1), (-2, 64 << 20), (-8, 1)):
        if mallopt(parameter, value) != 1:
            raise OSError("glibc's mallopt refused a setting")


def train_step(case: dict[str, Any], model: Any, images: Any) -> Callable[[], None]:
    import torch
    import torch.nn.functional as F
    from timm.optim import param_groups_weight_decay

    distilled = hasattr(model, "set_distilled_training")
    model.train()
    if distilled:
        model.set_distilled_training(True)
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list={"pos_embed", "cls_token"})
    optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.999), eps=1e-8, fused=True)
    labels = torch.arange(case["batch"]) % case["classes"]
    teacher = torch.randn(case["batch"], case["classes"])

    def step() -> None:
        outputs = model(images)
        if distilled:
            outputs, outputs_distilled = outputs
            class_loss = F.cross_entropy(outputs, labels, label_smoothing=0.1)
            loss = 0.5 * class_loss + 0.5 * F.cross_entropy(outputs_distilled, teacher.argmax(1))
        else:
            loss = F.cross_entropy(outputs, labels, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def infer_step(model: Any, images: Any) -> Callable[[], None]:
    import torch

    model.eval()

    def step() -> None:
        with torch.inference_mode():
            model(images)

    return step


def main() -> None:
    case = json.loads(sys.argv[1])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case["threads"]])
    if case["keep_memory"]:
        keep_freed_memory()
    import timm
    import torch

    torch.set_num_threads(case["threads"])
    torch.manual_seed(0)
    if case["model"] == "matrix_product":
        left, right = torch.ones(case["batch"] * 198, 192), torch.ones(192, 768)
        answer(lambda: left @ right, right.numel())
        return
    convnet = case["model"].startswith("regnet")
    fields = case["fields"] if convnet else case["fields"] | {"img_size": case["image_size"]}
    model = timm.create_model(case["model"], num_classes=case["classes"], **fields)
    images = torch.randn(case["batch"], 3, case["image_size"], case["image_size"])
    if convnet:
        model, images = (thing.to(memory_format=torch.channels_last) for thing in (model, images))
    step = train_step(case, model, images) if case["part"] == "train" else infer_step(model, images)
    answer(step, sum(parameter.numel() for parameter in model.parameters()))


def answer(step: Callable[[], object], parameters: int) -> None:
    """Runs `step` as often as each line on stdin requests, and prints its costs."""
    import timm
    import torch

    step()
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    print(json.dumps({"versions": versions, "parameters": parameters}), flush=True)
    for line in sys.stdin:
        steps = int(line)
        step()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        clock, processor = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step()
        spent = {"seconds": time.perf_counter() - clock, "processor_seconds": time.process_time() - processor}
        spent["faults"] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        print(json.dumps({name: value / steps for name, value in spent.items()}), flush=True)


if __name__ == "__main__":
    main()
