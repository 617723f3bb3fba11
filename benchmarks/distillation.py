"""What the teacher is worth at the quick start's size: with and without it, the same time, several seeds, the full test set.

    python -m deit_jax.data.embedded.build --idx=FASHION_MNIST_FOLDER --subset=full_test --output=full_test.npz
    python benchmarks/distillation.py --test=full_test.npz --workdir=runs/distillation --epochs_without 19

For each seed two commands run side by side, so that both meet the same machine: the quick start (teacher, then distilled student)
and the same DeiT from labels alone, for the number of epochs that takes as long. Both are then scored on the 10,000 test images.
Prints a row a seed and, as the last line, one JSON object: the fused top-1's mean gain in points first.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(config, workdir, *fields):
    command = [sys.executable, "run.py", f"--config={config}", f"--workdir={workdir}", *fields]
    log = (workdir.parent / f"{workdir.name}.log").open("a")
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def wait(processes):
    """Seconds until each has ended; exits if one failed."""
    began, seconds = time.monotonic(), [None] * len(processes)
    while None in seconds:
        for i, process in enumerate(processes):
            if seconds[i] is None and process.poll() is not None:
                if process.returncode:
                    sys.exit(f"{' '.join(process.args)} failed; see its log in the workdir")
                seconds[i] = time.monotonic() - began
        time.sleep(0.1)
    return seconds


def top1(workdir):
    """EMA weights' top-1 on the evaluation images by head, in percent."""
    scores = json.loads((workdir / "evaluation.json").read_text())["scores"]["ema"]
    return {head: score["top1"] for head, score in scores.items()}


def mean_and_spread(values):
    return {"mean": round(statistics.mean(values), 2), "standard_deviation": round(statistics.stdev(values), 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--test", required=True, type=Path, help="npz made by deit_jax.data.embedded.build --subset=full_test"
    )
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs_without", type=int, required=True, help="epochs without a teacher that take as long")
    arguments = parser.parse_args()
    arguments.workdir.mkdir(parents=True, exist_ok=True)

    rows = []
    for seed in arguments.seeds:
        teacher = f"--config.teacher.recipe.seed={seed}"
        runs = {
            "with": ("configs/quickstart.py", [f"--config.seed={seed}", teacher]),
            "without": (
                "configs/quickstart.py:no_teacher",
                [f"--config.seed={seed}", f"--config.train.epochs={arguments.epochs_without}"],
            ),
        }
        folders = {name: (arguments.workdir / f"{name}_{seed}").absolute() for name in runs}
        seconds = wait([start(config, folders[name], *fields) for name, (config, fields) in runs.items()])
        test = ["--mode=eval", "--config.data.source=npz", f"--config.data.path={arguments.test.absolute()}"]
        wait([start(config, folders[name], *fields, *test) for name, (config, fields) in runs.items()])
        wait([start("configs/quickstart.py:teacher", folders["with"] / "teacher", f"--config.seed={seed}", *test)])
        row = {
            "seed": seed,
            "teacher": top1(folders["with"] / "teacher")["class"],
            **top1(folders["with"]),
            "without": top1(folders["without"])["class"],
            "seconds_with": seconds[0],
            "seconds_without": seconds[1],
        }
        rows.append(row)
        print(
            "  ".join(f"{name} {value:.2f}" if name != "seed" else f"seed {value}" for name, value in row.items()),
            flush=True,
        )

    gain = [row["fused_logits"] - row["without"] for row in rows]
    heads = ("teacher", "class", "distillation", "fused_logits", "fused_softmax", "without")
    print(
        json.dumps(
            {"gain": mean_and_spread(gain)}
            | {head: mean_and_spread([row[head] for row in rows]) for head in heads}
            | {"time_ratio": round(statistics.mean(row["seconds_without"] / row["seconds_with"] for row in rows), 3)}
        )
    )


if __name__ == "__main__":
    main()
