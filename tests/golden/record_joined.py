"""Records 64 steps of timm and PyTorch with full augmentation, for tests/training/test_joined.py.

    python tests/golden/record_joined.py --peer_python=/path/to/python

run by an interpreter with this package; the other one has torch and timm 1.0.31 and computes in float64. It is given the images
and targets that our recipe makes. It rewrites tests/golden/joined.npz, for each kind (hard, soft, none):

  <kind>/loss, class_loss, distillation_loss, grad_norm, learning_rate   its value in every step
  <kind>/params, <kind>/ema      float64[tensors, 17]: sketch and norm of each tensor after the last step, see joined.recording

and, of what all kinds were given,

  batches                        float64[64, 4], see joined.batch_figures
  teacher_margin                 the smallest distance of the teacher's two largest logits
  teacher_decisions              int8[64, 32]
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.trajectory import run_peer
from tests.training import joined, trajectory

PER_STEP = (*trajectory.LOSSES, "grad_norm", "learning_rate")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer_python", required=True, help="an interpreter with torch and timm 1.0.31")
    python = parser.parse_args().peer_python
    out = {"batches": joined.batch_figures(joined.augmented())}
    for kind in joined.KINDS:
        config = joined.config_of(kind)
        run = run_peer(python, config, joined.plan_of(config), joined.augmented(), "float64")
        out |= {f"{kind}/{name}": run[name] for name in PER_STEP if name in run}
        out |= {f"{kind}/{tensors}": joined.recording(run, tensors) for tensors in ("params", "ema")}
        if kind == "hard":
            out["teacher_margin"] = trajectory.margins(run["teacher_logits"]).min()
            out["teacher_decisions"] = run["teacher_logits"].argmax(-1).astype(np.int8)
    np.savez_compressed(joined.GOLDEN, **out)
    print(f"{joined.GOLDEN.stat().st_size:8} {joined.GOLDEN.name}")


if __name__ == "__main__":
    main()
