"""Feature losses and their gradients by PyTorch in float64, and the cases in which they are compared."""

from __future__ import annotations

import numpy as np

# Shapes [B, h, w, D] or [B, D] of the student's feature, and of the teacher's.
CASES = {
    "twice_as_large": ((2, 4, 4, 5), (2, 8, 8, 3)),
    "larger": ((2, 3, 3, 4), (2, 10, 10, 6)),
    "smaller": ((2, 6, 6, 4), (2, 3, 3, 5)),
    "equal": ((3, 2, 2, 4), (3, 2, 2, 4)),
    "vectors": ((4, 6), (4, 5)),
    "vector_and_map": ((3, 5), (3, 4, 4, 6)),
    "map_and_vector": ((3, 4, 4, 6), (3, 5)),
}
LOSSES = ("mse", "cosine", "local_guidance")
DIFFERENTIATED = ("student", "kernel", "bias")


def given(case: str) -> dict[str, np.ndarray]:
    """Returns the case's features and projection, float64, by name."""
    student, teacher = CASES[case]
    rng = np.random.RandomState(sorted(CASES).index(case))
    return {
        "student": rng.normal(0.3, 1.0, student),
        # As after a ReLU: the teacher is 0 in many channels.
        "teacher": np.maximum(rng.normal(0.2, 2.0, teacher), 0.0),
        "kernel": rng.normal(0.0, 0.5, (student[-1], teacher[-1])),
        "bias": rng.normal(0.0, 0.5, teacher[-1]),
    }


def reference(case: str, loss: str) -> dict[str, np.ndarray]:
    """Returns the loss and its gradients for `DIFFERENTIATED`, by name. Needs torch."""
    import torch
    import torch.nn.functional as F

    def resized(x, size):
        channels_first = x.permute(0, 3, 1, 2)
        y = F.interpolate(channels_first, size, mode="bilinear", align_corners=False, antialias=True)
        return y.permute(0, 2, 3, 1)

    tensors = {name: torch.from_numpy(array) for name, array in given(case).items()}
    for name in DIFFERENTIATED:
        tensors[name].requires_grad_()
    x = F.linear(tensors["student"], tensors["kernel"].T, tensors["bias"])
    target = tensors["teacher"]
    if x.ndim != target.ndim:
        x, target = (it.mean((1, 2)) if it.ndim == 4 else it for it in (x, target))
    if x.ndim == 4:
        size = max(x.shape[1:3], target.shape[1:3]) if loss == "local_guidance" else x.shape[1:3]
        x, target = (resized(it, tuple(size)) for it in (x, target))
    if loss == "mse":
        value = F.mse_loss(x, F.layer_norm(target, target.shape[-1:], eps=1e-6))
    elif loss == "cosine":
        value = 1 - F.cosine_similarity(x, target, dim=-1).mean()
    else:
        value = F.mse_loss(x, target)
    value.backward()
    return {"loss": value.detach().numpy(), **{name: tensors[name].grad.numpy() for name in DIFFERENTIATED}}
