"""The share of matrix products in a train step on a CPU: what no change outside of them can make faster.

    python benchmarks/cpu_products.py tiny
    python benchmarks/cpu_products.py quickstart

times the project's compiled train step (as vs_torch.py has it: float32, one given batch, no augmentation) and its products by
themselves, in turns, each product a program of its own: four dense layers per block, forward and both gradients, and the two
products of attention, counted three times. Patch embedding, heads, and a batch's transfer are left out. It prints the processor
milliseconds of both per step (medians), GFLOP/s of the products, and the median share (smallest to largest) of the rounds.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.vs_torch import case_of, make_train_step

Shapes = list[tuple[tuple[int, ...], tuple[int, ...]]]


def products(batch: int, tokens: int, width: int, heads: int) -> Shapes:
    """Returns the factors' shapes of a block's products; the forward products of attention appear three times."""
    rows, dense = batch * tokens, [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    shapes: Shapes = []
    for k, n in dense:
        shapes += [((rows, k), (k, n)), ((rows, n), (n, k)), ((k, rows), (rows, n))]
    size = width // heads
    attention = [
        ((batch, heads, tokens, size), (batch, heads, size, tokens)),
        ((batch, heads, tokens, tokens), (batch, heads, tokens, size)),
    ]
    return shapes + 3 * attention


def flops(shapes: Shapes) -> int:
    """Returns the FLOPs of products: 2 x multiply-adds."""
    total = 0
    for (*leading, rows, inner), (*_, columns) in shapes:
        count = 2 * rows * inner * columns
        for size in leading:
            count *= size
        total += count
    return total


def processor_seconds(function: Callable[[], Any], seconds: float) -> float:
    """Returns the mean processor seconds of a call, over `seconds` on the clock."""
    calls, end, began = 0, time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < end or calls == 0:
        jax.block_until_ready(function())
        calls += 1
    return (time.process_time() - began) / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("tiny", "small", "quickstart"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each side in a round")
    arguments = parser.parse_args()

    from deit_jax.models import create_model

    case = case_of(arguments.model, "train", None)
    step, _ = make_train_step(case)
    model = create_model(case["model"], case["classes"], case["image_size"], **case["fields"])
    tokens = (case["image_size"] // model.patch_size) ** 2 + 2
    shapes = products(case["batch"], tokens, model.embed_dim, model.num_heads)
    multiply = jax.jit(lambda a, b: a @ b)
    factors = [tuple(jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(pair)) for pair in shapes]

    def block() -> None:
        for left, right in factors:
            jax.block_until_ready(multiply(left, right))

    for function in (step, block):
        processor_seconds(function, 0.0)
    rounds = [
        [processor_seconds(function, arguments.seconds) for function in (step, block)] for _ in range(arguments.rounds)
    ]
    whole = statistics.median(row[0] for row in rounds)
    alone = statistics.median(row[1] for row in rounds) * model.depth
    shares = [row[1] * model.depth / row[0] for row in rounds]
    rate = flops(shapes) * model.depth / alone / 1e9
    spread = f"share {statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
    print(f"{case['model']}, batch {case['batch']}: step {whole * 1e3:.1f} ms, ", end="")
    print(f"products {alone * 1e3:.1f} ms ({rate:.0f} GFLOP/s of a core), {spread}")


if __name__ == "__main__":
    main()
