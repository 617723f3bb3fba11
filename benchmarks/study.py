"""The paper's claims in miniature: each row of configs/study.py with several seeds, evaluated on 10,000 test images.

    python benchmarks/embedded_data.py --idx=FASHION_MNIST_FOLDER --subset=full_test --output=full_test.npz
    python benchmarks/study.py --test=full_test.npz --workdir=runs/study

Existing rows are not run again, so an interrupted study resumes. Prints the command of each row, the table (mean and standard
deviation over seeds; the difference to the baseline row, seed by seed) and, as the last line, one JSON object, which starts with
the gain of the distillation token over labels alone, in points.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# row -> the row that it is compared with; for a model with the token "both" heads, unless a head is given
ROWS = {
    "convnet": None,
    "none": None,
    "soft": "none",
    "hard": "none",
    "token_soft": "none",
    "token": "none",
    "two_tokens": "none",
    "token,transformer": "token",
    "token,repeated": "token",
    "token,mixing": "token",
    "token,erasing": "token",
    "token,no_drop_path": "token",
}
HEADS = {"class": "class head", "distillation": "distillation head", "fused_logits": "both"}


def folder(workdir: Path, row: str, seed: int) -> Path:
    return workdir / f"{row.replace(',', '_')}_{seed}"


def arguments_of(row: str, seed: int, workdir: Path, test: Path) -> list[str]:
    """The arguments of run.py."""
    taught = {"soft", "hard", "token", "token_soft"} & set(row.split(","))
    teacher = folder(workdir, "none" if "transformer" in row else "convnet", seed)
    return [
        f"--config=configs/study.py:{row}",
        f"--workdir={folder(workdir, row, seed)}",
        f"--config.seed={seed}",
        "--config.data.source=npz",
        f"--config.data.path={test}",
        *([f"--config.teacher.weights={teacher}"] if taught else []),
    ]


def train(row: str, seed: int, workdir: Path, test: Path) -> None:
    results = folder(workdir, row, seed) / "results.json"
    if results.is_file():
        return
    command = [sys.executable, "run.py", *arguments_of(row, seed, workdir, test)]
    print("python", *command[1:], flush=True)
    with (workdir / f"{results.parent.name}.log").open("a") as log:
        status = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=os.environ).returncode
    if status:
        sys.exit(f"it ended with status {status}: see {log.name}")


def scores(row: str, seed: int, workdir: Path) -> dict[str, float]:
    """The top-1 of the EMA weights in percent, by head."""
    found = json.loads((folder(workdir, row, seed) / "results.json").read_text())["scores"]["ema"]
    return {head: score["top1"] for head, score in found.items()}


def own(found: dict[str, float]) -> float:
    """The accuracy of a model's own answer."""
    return found.get("fused_logits", found["class"])


def spread(values: list[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def table(found: dict[str, list[dict[str, float]]]) -> str:
    lines = ["| `configs/study.py:` | head | top-1 % | against | difference, points |", "|---|---|---|---|---|"]
    for row, seeds in found.items():
        against = ROWS[row]
        for head, name in HEADS.items():
            if head not in seeds[0]:
                continue
            last = head == "fused_logits" or "fused_logits" not in seeds[0]
            difference = ""
            if last and against:
                pairs = zip(seeds, found[against], strict=True)
                difference = spread([own(mine) - own(other) for mine, other in pairs])
            what = name if "fused_logits" in seeds[0] else ""
            lines.append(
                f"| `{row}` | {what} | {spread([seed[head] for seed in seeds])} | "
                f"{f'`{against}`' if difference else ''} | {difference} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--test", required=True, type=Path, help="npz made by benchmarks/embedded_data.py --subset=full_test"
    )
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    options = parser.parse_args()
    workdir, test = options.workdir.absolute(), options.test.absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for row in options.rows:
            train(row, seed, workdir, test)
    found = {row: [scores(row, seed, workdir) for seed in options.seeds] for row in options.rows}
    missing = {ROWS[row] for row in found} - {None} - set(found)
    if missing:
        sys.exit(f"no table without the baseline rows: {', '.join(sorted(missing))}")
    print(table(found))
    gains = (
        [own(mine) - own(other) for mine, other in zip(found["token"], found["none"], strict=True)]
        if {"token", "none"} <= set(found)
        else []
    )
    print(
        json.dumps(
            {
                "token_gain_points": round(statistics.mean(gains), 2) if gains else None,
                "top1": {row: [own(seed) for seed in seeds] for row, seeds in found.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
