"""Records what timm's copy of DeiT's RASampler gives each rank, for test_sampling.py. Needs timm 1.0.31 and torch."""

import hashlib
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from timm.data.distributed_sampler import RepeatAugSampler

EPOCH = 5
CASES = [(1300, 4, 3), (1300, 1, 3), (1300, 8, 3), (1283, 8, 2), (1030, 5, 3)]  # images, ranks, repeats

IMAGENET = 1281167


def imagenet_digests():
    """SHA-256 of every rank's list for an ImageNet epoch as little-endian int32, with NumPy's permutation, not PyTorch's."""
    permutation = torch.from_numpy(np.random.RandomState(EPOCH).permutation(IMAGENET))
    with mock.patch.object(torch, "randperm", lambda count, generator: permutation):
        for ranks in (1, 4, 8):
            digests = []
            for rank in range(ranks):
                indices = list(RepeatAugSampler(range(IMAGENET), num_replicas=ranks, rank=rank, num_repeats=3))
                digests.append(hashlib.sha256(np.asarray(indices, "<i4").tobytes()).hexdigest())
            yield f"imagenet_{ranks}", np.array(digests)


def main():
    golden = {}
    for images, ranks, repeats in CASES:
        name = f"{images}_{ranks}_{repeats}"
        golden[f"{name}_permutation"] = torch.randperm(images, generator=torch.Generator().manual_seed(EPOCH)).numpy()
        lists = []
        for rank in range(ranks):
            sampler = RepeatAugSampler(range(images), num_replicas=ranks, rank=rank, num_repeats=repeats)
            sampler.set_epoch(EPOCH)
            lists.append(list(sampler))
        golden[f"{name}_ranks"] = np.asarray(lists, np.int16)
    golden |= dict(imagenet_digests())
    np.savez_compressed(Path(__file__).parent / "sampler.npz", **golden)


if __name__ == "__main__":
    main()
