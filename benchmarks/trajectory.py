"""The same training through this package and through timm with PyTorch's AdamW: parameters and losses side by side.

    python benchmarks/trajectory.py --peer_python=/path/to/python     (one that has torch and timm 1.0.31)

A small distilled DeiT learns 100 steps from a frozen RegNetY-200MF and the embedded photographs: the paper's loss, optimizer
and schedule (25 epochs of 4 steps, released lag) and nothing random. Our side is the trainer's own compiled step, made by
`build_program`; the other is benchmarks/peers/trajectory_timm.py. Both start from the weights that a formula gives.

Why they differ is measured. Both also run in float64: programs that compute the same agree there to the last digits, so that
what separates them in float32 is rounding. PyTorch's own float32 run differs from its float64 run too, by the order of
additions. Ours has one rounding more: optax computes Adam's bias correction 1 - beta^t in float32, where beta2 = 0.999 is
rounded, so that every step is 6e-6 of its length too short; a last run of ours has this correction rounded only once. How far
such errors grow is the trajectory's own: soft distillation magnifies them more, in float64 too.

Then 64 steps with everything that the recipe draws, hard, soft and without a teacher (tests/training/joined.py): our step
draws crops, RandAugment, erasing, mixup and CutMix itself, the other side is given the images and targets that come of them.

Without --peer_python the recorded PyTorch runs are read: tests/golden/trajectory.npz (hard distillation, no float64) and
tests/golden/joined.npz (float64, of each tensor a few numbers). The last line is one JSON object with the figures; exit status
1 if a bound is broken.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from deit_jax.training.plan import Plan  # noqa: E402
from tests.training import joined, trajectory  # noqa: E402
from tests.training.trajectory import BOUND, LOSSES, STEPS, Arrays, distances, loss_differences  # noqa: E402

PEER = ROOT / "benchmarks" / "peers" / "trajectory_timm.py"
PAIRS = {  # column of the tables: the two runs whose distance it shows
    "ours-torch": ("ours", "torch"),
    "torch-torch64": ("torch", "torch64"),
    "ours-torch64": ("ours", "torch64"),
    "rounded_once-torch64": ("rounded_once", "torch64"),
    "ours64-torch64": ("ours64", "torch64"),
}


# --- PyTorch's side ----------------------------------------------------------------------------------------------------------


def run_peer(python: str, config: ConfigDict, plan: Plan, batches: Arrays, dtype: str = "float32") -> Arrays:
    """All steps through timm and PyTorch, in a process of another interpreter: what PEER's docstring says.

    batches: image and label, or image and target as `joined.augmented` makes them.
    """
    student = trajectory.to_timm(trajectory.initial_params(config, plan))
    settings = {
        "dtype": dtype,
        "student": {"img_size": plan.image_size, "num_classes": trajectory.CLASSES, **trajectory.STUDENT},
        "teacher": trajectory.TEACHER,
        "ema_decay": config.ema.decay,
        "weight_decay": config.optimizer.weight_decay,
        "betas": config.optimizer.betas,
        "peak": plan.peak_learning_rate,
        "minimum": config.schedule.min_learning_rate,
        "warmup": config.schedule.warmup_learning_rate,
        "warmup_epochs": int(config.schedule.warmup_epochs),
        "epochs": config.train.epochs,
        "steps_per_epoch": plan.steps_per_epoch,
        "label_smoothing": config.augment.label_smoothing,
        "mean": config.augment.mean,
        "std": config.augment.std,
        **{name: config.distillation[name] for name in ("kind", "alpha", "tau")},
    }
    given = {f"student/{name}": value for name, value in student.items()}
    if config.distillation.kind != "none":
        teacher = trajectory.to_timm(**trajectory.frozen_teacher(plan.image_size, "float32").variables)
        given |= {f"teacher/{name}": value for name, value in teacher.items()}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "input.npz", Path(folder) / "output.npz"
        np.savez(source, settings=json.dumps(settings), **batches, **given)
        subprocess.run([python, str(PEER), str(source), str(target)], check=True)
        with np.load(target) as file:
            return dict(file)


@contextlib.contextmanager
def rounded_once(config: ConfigDict) -> Iterator[None]:
    """Let AdamW divide its moments by float32 values of 1 - beta^t that were computed in float64."""
    tables = {beta: 1 - np.float64(beta) ** np.arange(STEPS + 1) for beta in config.optimizer.betas}

    def bias_correction(moment: Any, decay: float, count: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: leaf / jnp.asarray(tables[decay], leaf.dtype)[count], moment)

    with mock.patch.object(optax.tree, "bias_correction", bias_correction):
        yield


# --- For people --------------------------------------------------------------------------------------------------------------


def live_runs(python: str, config: ConfigDict, plan: Plan, batches: Arrays) -> dict[str, Arrays]:
    """Every run of a kind of distillation, by name."""
    runs = {"ours": trajectory.run_ours(config, plan, batches), "torch": run_peer(python, config, plan, batches)}
    runs["torch64"] = run_peer(python, config, plan, batches, "float64")
    with trajectory.in_float64():
        runs["ours64"] = trajectory.run_ours(config, plan, batches, "float64")
    with rounded_once(config):
        runs["rounded_once"] = trajectory.run_ours(config, plan, batches)
    return runs


def print_losses(ours: Arrays, theirs: Arrays) -> None:
    """Every tenth step's losses of both sides."""
    names, steps = [name for name in LOSSES if name in theirs], len(theirs["loss"])
    print(f"{'step':>4} {'rate':>9}" + "".join(f"  {name + ': ours, torch, relative':>34}" for name in names))
    for step in [*range(0, steps, 10), steps - 1]:
        pairs = [(float(ours[name][step]), float(theirs[name][step])) for name in names]
        cells = "".join(f"  {a:12.7f} {b:12.7f} {abs(a / b - 1):8.1e}" for a, b in pairs)
        print(f"{step + 1:4} {float(theirs['learning_rate'][step]):9.2e}{cells}")


def print_distances(columns: dict[str, dict[str, float]], title: str) -> None:
    """The ten tensors of the largest distance in the first column, and the largest of every column."""
    print(f"\n{title + ', relative L2 distance':44}" + "".join(f" {name:>20}" for name in columns))
    first = next(iter(columns.values()))
    for name in sorted(first, key=first.get, reverse=True)[:10]:
        print(f"  {name:42}" + "".join(f" {column[name]:20.1e}" for column in columns.values()))
    print(f"  {f'largest of {len(first)} tensors':42}" + "".join(f" {max(c.values()):20.1e}" for c in columns.values()))


def figures_of(
    runs: dict[str, Arrays], logits: np.ndarray | None, recorded: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Prints the tables of a kind of distillation and returns its figures.

    logits: our teacher's, if there is one. recorded: columns of which the runs are not here.
    """
    ours, theirs = runs["ours"], runs["torch"]
    print_losses(ours, theirs)
    figures: dict[str, Any] = {"losses": loss_differences(ours, theirs)}
    pairs = {title: pair for title, pair in PAIRS.items() if set(pair) <= set(runs)}
    for title, (one, other) in pairs.items():
        print(f"{title + ', largest relative difference:':56}", end="")
        print("  ".join(f"{k} {v:.1e}" for k, v in loss_differences(runs[one], runs[other]).items()))
    for kind, label in (("params", "weights"), ("ema", "moving average")):
        columns = {title: distances(runs[one], runs[other], kind) for title, (one, other) in pairs.items()}
        columns |= {title: column for title, column in recorded.items() if kind == "params"}
        print_distances(columns, label)
        figures[label.replace(" ", "_")] = {title: max(column.values()) for title, column in columns.items()}
    figures["sum_of_rates"] = float(np.sum(theirs["learning_rate"], dtype=np.float64))
    figures["key_bias"] = {
        title: trajectory.key_bias_difference(runs[one], runs[other]) for title, (one, other) in pairs.items()
    }
    figures["steps_above_1e-4"] = int(np.sum(theirs["learning_rate"] > 1e-4))
    figures["rates"] = float(np.max(np.abs(ours["learning_rate"] / theirs["learning_rate"] - 1)))
    print("\nkey's third of qkv.bias, largest absolute difference: ", end="")
    print("  ".join(f"{title} {value:.1e}" for title, value in figures["key_bias"].items()), end="")
    print(f"   (sum of rates {figures['sum_of_rates']:.3e})")
    print(
        f"rate above 1e-4 in {figures['steps_above_1e-4']} steps; rates differ by {figures['rates']:.1e} of their value"
    )
    if logits is not None:
        figures["teacher_margin"] = float(trajectory.margins(logits).min())
        figures["teacher_difference"] = float(np.abs(logits - theirs["teacher_logits"][: len(logits)]).max())
        classes = np.bincount(logits.argmax(-1).ravel(), minlength=trajectory.CLASSES).tolist()
        print(
            f"teacher: smallest top-1 margin {figures['teacher_margin']:.1e}, logits of the two sides differ by at most"
        )
        print(f"  {figures['teacher_difference']:.1e}; images it takes for each class: {classes}")
    print()
    return figures


def broken_bounds(figures: dict[str, Any], bound: float, steps: int) -> list[str]:
    """What exceeds its bound, in words."""
    checks = {
        "weights": figures["weights"]["ours-torch"] <= bound,
        "moving average": figures["moving_average"]["ours-torch"] <= bound,
        "key's bias": figures["key_bias"]["ours-torch"] <= figures["sum_of_rates"],
        "losses": max(value for name, value in figures["losses"].items() if name in LOSSES) <= bound,
        "rates": figures["rates"] <= 1e-6 and figures["steps_above_1e-4"] >= steps // 2,
        "teacher's margin": figures.get("teacher_margin", 1.0) > 100 * figures.get("teacher_difference", 0.0),
        "float64": figures["weights"].get("ours64-torch64", 0.0) <= 1e-10,
    }
    return [name for name, holds in checks.items() if not holds]


def fixed_results(python: str | None) -> tuple[dict[str, Any], list[str]]:
    """The 100 steps without anything random: the figures of each kind of distillation, and the bounds that are broken."""
    results = {}
    for kind in trajectory.KINDS if python else ("hard",):
        config = trajectory.trajectory_config(kind)
        plan, batches = trajectory.plan_and_batches(config)
        recorded = {}
        if python:
            runs = live_runs(python, config, plan, batches)
        else:
            golden = trajectory.load_golden()
            runs = {"ours": trajectory.run_ours(config, plan, batches), "torch": golden}
            recorded = {
                "torch-torch64": dict(zip(trajectory.names_of(golden), golden["torch-torch64"].tolist(), strict=True))
            }
            print(
                "PyTorch's side is the recorded one; --peer_python=PYTHON runs it, in float64 and for soft distillation too"
            )
        print(f"--- {kind} distillation, alpha {config.distillation.alpha}, tau {config.distillation.tau} ---")
        logits = trajectory.teacher_logits(trajectory.first_epoch(config, plan, batches))
        results[kind] = figures_of(runs, logits, recorded)
    broken = {kind: broken_bounds(figures, BOUND, STEPS) for kind, figures in results.items()}
    return results, [f"{kind}: {name}" for kind, names in broken.items() for name in names]


def joined_results(python: str | None) -> tuple[dict[str, Any], list[str]]:
    """The 64 steps with everything random, as `fixed_results`."""
    results, broken = {}, []
    golden = joined.load_golden()
    for kind in joined.KINDS:
        config = joined.config_of(kind)
        plan, name = joined.plan_of(config), f"joined {kind}"
        print(f"--- with full augmentation, distillation {kind} ---")
        runs = {"ours": trajectory.run_ours(config, plan, joined.loaded())}
        if python:
            given = joined.augmented()
            runs |= {"torch": run_peer(python, config, plan, given)}
            runs |= {"torch64": run_peer(python, config, plan, given, "float64")}
            logits = None if kind == "none" else trajectory.teacher_logits(given["image"])
            results[name] = figures_of(runs, logits, {})
            broken += [f"{name}: {what}" for what in broken_bounds(results[name], joined.BOUND, joined.STEPS)]
            continue
        results[name] = joined.recorded_differences(runs["ours"], golden, kind)
        print("beside the recorded float64 run: " + "  ".join(f"{k} {v:.1e}" for k, v in results[name].items()) + "\n")
        broken += [f"{name}: {what}" for what, value in results[name].items() if value > joined.BOUND]
    return results, broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peer_python", help="an interpreter with torch and timm 1.0.31; without it the recorded runs are read"
    )
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # an accelerator's default float32 products are not float32
    results, broken = fixed_results(arguments.peer_python)
    joined_figures, joined_broken = joined_results(arguments.peer_python)
    results, broken = results | joined_figures, broken + joined_broken
    if broken:
        print("bounds broken: " + ", ".join(broken))
    print(json.dumps(results | {"bounds_broken": broken}))
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
