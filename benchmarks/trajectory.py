"""The same training in this package and in timm with PyTorch's AdamW: comparison of parameters and losses.

    python benchmarks/trajectory.py --peer_python=/path/to/python     (with torch and timm 1.0.31)

A small distilled DeiT is trained for 100 steps with a frozen RegNetY-200MF on the embedded photographs, with the paper's loss,
optimizer and schedule (25 epochs of 4 steps, released lag) and nothing random. Our side is the trainer's own compiled step from
`build_program`; the other is benchmarks/peers/trajectory_timm.py. Both start from the same weights, given by a formula.

The causes of the differences are measured. Both sides also run in float64, where programs that compute the same agree to the last
digits, so that the difference in float32 is rounding. PyTorch's float32 run also differs from its float64 run, by the order of
additions. Ours has one more rounding: optax computes Adam's bias correction 1 - beta^t in float32, which rounds beta2 = 0.999,
so that every step is too short by 6e-6 of its length; a last run of ours rounds this correction only once. The growth of such
errors depends on the trajectory: soft distillation amplifies them more, in float64 too.

Then 64 steps with all random parts of the recipe, with hard and soft distillation and without a teacher
(tests/training/joined.py): our step draws crops, RandAugment, erasing, mixup and CutMix itself, and the other side gets the
resulting images and targets.

Without --peer_python the recorded PyTorch runs are read: tests/golden/trajectory.npz (hard distillation, no float64) and
tests/golden/joined.npz (float64, a few numbers per tensor). The last line is one JSON object with the figures. The exit status is
1 if a bound is exceeded.
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
PAIRS = {  # columns of the tables: the two runs whose distance is shown
    "ours-torch": ("ours", "torch"),
    "torch-torch64": ("torch", "torch64"),
    "ours-torch64": ("ours", "torch64"),
    "rounded_once-torch64": ("rounded_once", "torch64"),
    "ours64-torch64": ("ours64", "torch64"),
}


# --- PyTorch's side ----------------------------------------------------------------------------------------------------------


def run_peer(python: str, config: ConfigDict, plan: Plan, batches: Arrays, dtype: str = "float32") -> Arrays:
    """Runs all steps with timm and PyTorch in another interpreter, as described in the docstring of PEER.

    batches: image and label, or image and target as returned by `joined.augmented`.
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
    """Makes AdamW divide its moments by float32 values of 1 - beta^t that were computed in float64."""
    tables = {beta: 1 - np.float64(beta) ** np.arange(STEPS + 1) for beta in config.optimizer.betas}

    def bias_correction(moment: Any, decay: float, count: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: leaf / jnp.asarray(tables[decay], leaf.dtype)[count], moment)

    with mock.patch.object(optax.tree, "bias_correction", bias_correction):
        yield


# --- Tables ------------------------------------------------------------------------------------------------------------------


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
    """Prints the losses of both sides for every tenth step."""
    names, steps = [name for name in LOSSES if name in theirs], len(theirs["loss"])
    print(f"{'step':>4} {'rate':>9}" + "".join(f"  {name + ': ours, torch, relative':>34}" for name in names))
    for step in [*range(0, steps, 10), steps - 1]:
        pairs = [(float(ours[name][step]), float(theirs[name][step])) for name in names]
        cells = "".join(f"  {a:12.7f} {b:12.7f} {abs(a / b - 1):8.1e}" for a, b in pairs)
        print(f"{step + 1:4} {float(theirs['learning_rate'][step]):9.2e}{cells}")


def print_distances(columns: dict[str, dict[str, float]], title: str) -> None:
    """Prints the ten tensors with the largest distance in the first column, and the maximum of every column."""
    print(f"\n{title + ', relative L2 distance':44}" + "".join(f" {name:>20}" for name in columns))
    first = next(iter(columns.values()))
    for name in sorted(first, key=first.get, reverse=True)[:10]:
        print(f"  {name:42}" + "".join(f" {column[name]:20.1e}" for column in columns.values()))
    print(f"  {f'largest of {len(first)} tensors':42}" + "".join(f" {max(c.values()):20.1e}" for c in columns.values()))


def figures_of(
    runs: dict[str, Arrays], logits: np.ndarray | None, recorded: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Prints the tables of a kind of distillation and returns its figures.

    logits: our teacher's, if any. recorded: columns whose runs are not available.
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
        print(f"  {figures['teacher_difference']:.1e}; images predicted as each class: {classes}")
    print()
    return figures


def broken_bounds(figures: dict[str, Any], bound: float, steps: int) -> list[str]:
    """Lists the figures that exceed their bounds."""
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
    """The 100 steps without randomness: the figures of each kind of distillation, and the exceeded bounds."""
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
                "PyTorch's side is recorded; --peer_python=PYTHON runs it, also in float64 and with soft distillation"
            )
        print(f"--- {kind} distillation, alpha {config.distillation.alpha}, tau {config.distillation.tau} ---")
        logits = trajectory.teacher_logits(trajectory.first_epoch(config, plan, batches))
        results[kind] = figures_of(runs, logits, recorded)
    broken = {kind: broken_bounds(figures, BOUND, STEPS) for kind, figures in results.items()}
    return results, [f"{kind}: {name}" for kind, names in broken.items() for name in names]


def joined_results(python: str | None) -> tuple[dict[str, Any], list[str]]:
    """The 64 steps with all random parts, as `fixed_results`."""
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
        print(
            "compared with the recorded float64 run: "
            + "  ".join(f"{k} {v:.1e}" for k, v in results[name].items())
            + "\n"
        )
        broken += [f"{name}: {what}" for what, value in results[name].items() if value > joined.BOUND]
    return results, broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peer_python", help="an interpreter with torch and timm 1.0.31; without it the recorded runs are read"
    )
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # accelerators do not compute float32 products in float32 by default
    results, broken = fixed_results(arguments.peer_python)
    joined_figures, joined_broken = joined_results(arguments.peer_python)
    results, broken = results | joined_figures, broken + joined_broken
    if broken:
        print("bounds broken: " + ", ".join(broken))
    print(json.dumps(results | {"bounds_broken": broken}))
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
