"""Records 100 steps of timm and PyTorch, for tests/training/test_trajectory.py to compare with where there is no PyTorch.

    python tests/golden/record_trajectory.py --peer_python=/path/to/python

run by an interpreter with this package; the other one has torch and timm 1.0.31. It rewrites tests/golden/trajectory.npz:

  params/<name>, ema/<name>   float32, timm's names and layout: hard distillation in float32 after the last step
  loss, class_loss, distillation_loss, grad_norm, learning_rate   its value in every step
  teacher_logits              float32[4, 32, 10]: the first epoch's, which are all the images
  torch-torch64               how far each tensor of params/ (by name) is from PyTorch's own float64 run
  hard64/<loss>, soft64/<loss>   losses and gradient norms of float64 runs
  checksum                    of the batches that PyTorch was given
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.trajectory import run_peer
from tests.training import trajectory


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer_python", required=True, help="an interpreter with torch and timm 1.0.31")
    python = parser.parse_args().peer_python
    out = {}
    for kind in trajectory.KINDS:
        config = trajectory.trajectory_config(kind)
        plan, batches = trajectory.plan_and_batches(config)
        double = run_peer(python, config, plan, batches, "float64")
        out |= {f"{kind}64/{name}": double[name] for name in (*trajectory.LOSSES, "grad_norm")}
        if kind == "hard":
            single = run_peer(python, config, plan, batches)
            single["teacher_logits"] = single["teacher_logits"][: plan.steps_per_epoch]
            out |= single
            distances = trajectory.distances(single, double)
            out["torch-torch64"] = np.array([distances[name] for name in trajectory.names_of(single)])
            out["checksum"] = np.array(trajectory.checksum(batches))
    np.savez_compressed(trajectory.GOLDEN, **out)
    print(f"{trajectory.GOLDEN.stat().st_size:8} {trajectory.GOLDEN.name}")


if __name__ == "__main__":
    main()
