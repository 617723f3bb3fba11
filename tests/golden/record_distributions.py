"""Records what timm draws for DeiT's training images, for tests/augment/test_distributions.py.

    python tests/golden/record_distributions.py --peer_python=/path/to/python

run by an interpreter with this package; the other one has torch, torchvision and timm 1.0.31. It rewrites
tests/golden/distributions.npz: of each statistic of benchmarks/peers/distributions_timm.py the counts in bins, and the bins'
edges, see tests/augment/distributions.py.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.peers import distributions_timm
from tests.augment import distributions

SEED = 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer_python", required=True, help="an interpreter with torch, torchvision and timm 1.0.31")
    python = parser.parse_args().peer_python
    with tempfile.TemporaryDirectory() as folder:
        target = f"{folder}/draws.npz"
        subprocess.run([python, distributions_timm.__file__, target, str(SEED)], check=True)
        with np.load(target) as file:
            recorded = distributions.recording(dict(file))
    np.savez_compressed(distributions.GOLDEN, **recorded)
    print(f"{distributions.GOLDEN.stat().st_size:8} {distributions.GOLDEN.name}")


if __name__ == "__main__":
    main()
