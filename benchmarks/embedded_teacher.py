"""Converts a finished training run to the teacher included in the package: float16 weights and a card.

    python benchmarks/embedded_data.py --idx=FASHION_MNIST_FOLDER --subset=teacher --output=fashion_mnist_60k.npz
    python run.py --config=configs/quickstart.py:teacher --workdir=runs/teacher --config.data.source=npz \
        --config.data.path=fashion_mnist_60k.npz
    python benchmarks/embedded_teacher.py --workdir=runs/teacher --test=fashion_mnist_60k.npz

The training took 27 minutes on one busy core. The card has what the run recorded (command, seed, epochs, training time), the
versions installed where this script runs, and the accuracy of the written file, measured by `--mode=eval`.
"""

import argparse
import hashlib
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "deit_jax" / "weights" / "fashion_mnist_teacher.safetensors"
ABOUT = "RegNetY trained on Fashion-MNIST (MIT licence, Zalando SE) by deit_jax; EMA weights, float16, timm's names"
COMMAND = (
    "python run.py --config=configs/quickstart.py:teacher --workdir=runs/teacher --config.data.source=npz "
    "--config.data.path=fashion_mnist_60k.npz"
)


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, "run.py", *arguments], cwd=ROOT, check=True)


def float16_file(workdir: Path) -> bytes:
    """Exports the run's EMA weights as a safetensors file with class names."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.safetensors"
        run("--mode=export", f"--workdir={workdir}", "--layout=timm", "--weights=ema", f"--output={path}")
        tensors = safetensors.numpy.load_file(path)
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata()
    return safetensors.numpy.save({name: value.astype(np.float16) for name, value in tensors.items()}, metadata)


def top1(*data: str) -> dict[str, float | int]:
    """Returns the accuracy of the written file in percent, and the number of images."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "evaluation.json"
        run(
            "--mode=eval",
            "--config=configs/quickstart.py:teacher",
            "--config.model.weights=embedded",
            f"--output={path}",
            *data,
        )
        found = json.loads(path.read_text())
    return {"images": found["eval_images"], "top1": round(found["scores"]["raw"]["class"]["top1"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=Path, help="the finished training run")
    parser.add_argument("--test", required=True, type=Path, help="npz of benchmarks/embedded_data.py --subset=teacher")
    options = parser.parse_args()
    record = json.loads((options.workdir / "config.json").read_text())
    results = json.loads((options.workdir / "results.json").read_text())
    config, resolved = record["config"], record["resolved"]
    content = float16_file(options.workdir.absolute())
    card = {
        "about": ABOUT,
        "model": config["model"]["name"],
        "overrides": config["model"]["overrides"],
        "training_images": resolved["data"]["train"]["images"],
        "command": COMMAND,
        "seed": config["seed"],
        "epochs": config["train"]["epochs"],
        "training_minutes": round(
            results["step"] * config["train"]["batch_size"] / results["images_per_second"] / 60, 1
        ),
        "versions": {"deit_jax": record["version"]}
        | {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")},
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    WEIGHTS.write_bytes(content)
    card_file = WEIGHTS.with_suffix(".json")
    card_file.write_text(json.dumps(card, indent=2) + "\n")  # with the digest, which the evaluations check
    card["all test images"] = top1("--config.data.source=npz", f"--config.data.path={options.test.absolute()}")
    card["embedded test images"] = top1()
    card_file.write_text(json.dumps(card, indent=2) + "\n")
    print(card_file.read_text(), end="")


if __name__ == "__main__":
    main()
