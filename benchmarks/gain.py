"""The gain from a teacher: the same student trained with a convnet's outputs and on labels alone, with several seeds.

    python benchmarks/embedded_data.py --idx=FASHION_MNIST_FOLDER --subset=full_test --output=full_test.npz
    python benchmarks/gain.py fashion_mnist --data=full_test.npz --workdir=runs/gain
    python benchmarks/gain.py cifar10 --data=CIFAR10_FOLDER --workdir=runs/gain_cifar10

trains the missing rows of a study (interrupted runs resume), evaluates them on all test images, and stores the results of each in
benchmarks/gain/STUDY/ROW_SEED.json, with the command. `--rows` and `--seeds` select some; `--jobs=2` trains two at a time, each
on its share of the processor's cores.

    python benchmarks/gain.py fashion_mnist
    python benchmarks/gain.py fashion_mnist --curve=docs/images/gain_fashion_mnist.svg

print the table of the stored results, or plot accuracy against epochs. Without `--data`, cifar10 reads TFDS's `cifar10`.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import queue
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = Path(__file__).parent / "gain"
HEADS = {"class": "class head", "distillation": "distillation head", "fused_logits": "both heads"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A run of a study: its configuration, and the baseline on labels alone that it is compared with."""

    config: str  # the value of --config
    what: str
    against: str = ""
    flags: tuple[str, ...] = ()
    teacher: str = ""  # the row whose run with seed 0 is the teacher; "": the configuration's own, or none
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Study:
    """The rows by name, and the colours of those in the curve."""

    rows: dict[str, Row]
    curve: dict[str, str]
    embedded: bool = False  # also evaluated on the embedded test images, as in the quick start
    equal_time: str = ""  # a longer run of the baseline, beside the one of as many epochs
    held_out: bool = False  # the curve is of held-out training images; the test images are scored once, at the end


def _fashion_mnist(images: str, word: str) -> dict[str, Row]:
    """The rows with 2,000 or 10,000 training images."""

    def config(kind: str) -> str:
        return ":".join(filter(None, ["configs/quickstart.py", ",".join(filter(None, [kind, word]))]))

    labels, equal = f"labels_{images}", "--config.train.epochs=" + ("40" if word else "200")
    return {
        labels: Row(config("no_teacher"), "labels alone, equal time"),
        f"labels_short_{images}": Row(config("no_teacher"), "labels alone, equal epochs", flags=(equal,)),
        f"features_{images}": Row(config(""), "token, soft, and features (the quick start)", labels),
        f"soft_{images}": Row(config("soft"), "token, soft", labels),
        f"hard_{images}": Row(config("hard"), "token, hard (as in the paper)", labels),
        f"own_soft_{images}": Row(config("soft,own_teacher"), "token, soft, a teacher of the same images", labels),
    }


# Not tuned. The unlabelled images are all 10,000 embedded ones; half the epochs, so that there are as many steps as without them.
_UNLABELLED = {
    "unlabelled_2k": Row(
        "configs/quickstart.py:soft",
        "token, soft, and 10,000 unlabelled images",
        "labels_2k",
        flags=("--config.unlabelled.source=fashion_mnist_10k", "--config.train.epochs=100"),
    ),
}

STUDIES = {
    "fashion_mnist": Study(
        _fashion_mnist("2k", "") | _UNLABELLED | _fashion_mnist("10k", "10k"),
        {
            "features_2k": "tab:blue",
            "soft_2k": "tab:green",
            "labels_2k": "tab:orange",
            "soft_10k": "tab:cyan",
            "labels_10k": "tab:red",
        },
        embedded=True,
    ),
    "cifar10": Study(
        {
            "teacher": Row("configs/cifar10.py:teacher", "RegNetY, the teacher", seeds=(0,)),
            "none": Row("configs/cifar10.py:none", "labels alone"),
            "none_long": Row(
                "configs/cifar10.py:none", "labels alone, equal time", flags=("--config.train.epochs=8",), seeds=(0,)
            ),
            "hard": Row("configs/cifar10.py:hard", "token, hard (as in the paper)", "none", teacher="teacher"),
            "soft": Row("configs/cifar10.py:soft", "token, soft", "none", teacher="teacher"),
            "hard_no_token": Row(
                "configs/cifar10.py:hard,no_token", "hard, without the token", "none", teacher="teacher", seeds=(0,)
            ),
            "soft_no_token": Row(
                "configs/cifar10.py:soft,no_token", "soft, without the token", "none", teacher="teacher", seeds=(0,)
            ),
            "two_tokens": Row("configs/cifar10.py:two_tokens", "two class tokens, labels alone", "none", seeds=(0,)),
            "hard_deit": Row(
                "configs/cifar10.py:hard",
                "token, hard, the DeiT of labels alone as the teacher",
                "none",
                ("--config.teacher.name=deit_tiny_patch16_224",),
                teacher="none",
                seeds=(0,),
            ),
        },
        {"soft": "tab:blue", "hard": "tab:green", "none": "tab:orange"},
        equal_time="none_long",
        held_out=True,
    ),
}


def arguments_of(study: str, name: str, seed: int, workdir: Path, data: Path | None) -> list[str]:
    """The arguments of run.py."""
    row = STUDIES[study].rows[name]
    config, given = row.config, [f"--config.seed={seed}", *row.flags]
    if data is not None:
        given.append(f"--config.data.path={data}")
        if study == "cifar10":
            config += ",folder"
            given.append(f"--config.evaluation.extra.test.path={data}")
        else:
            given.append("--config.data.source=npz")
    if row.teacher:  # one teacher for all seeds; only the student's seed varies
        given.append(f"--config.teacher.weights={workdir / f'{row.teacher}_0'}")
    if "own_teacher" in config:
        given.append(f"--config.teacher.recipe.seed={seed}")
    return [f"--config={config}", f"--workdir={workdir / f'{name}_{seed}'}", *given]


def command(arguments: list[str], log: Path, cores: set[int]) -> float:
    """Runs run.py on some cores with its output in `log`; returns its processor seconds (user and system)."""
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "run.py", *arguments], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(
            f"python run.py {shlex.join(arguments)} ended with status {os.waitstatus_to_exitcode(status)}: see {log}"
        )
    return usage.ru_utime + usage.ru_stime


def train(study: str, name: str, seed: int, workdir: Path, data: Path | None, cores: set[int]) -> None:
    """Trains one row, evaluates it and stores its results."""
    kept = KEPT / study / f"{name}_{seed}.json"
    if kept.exists():
        return
    teacher = STUDIES[study].rows[name].teacher
    if teacher and not (workdir / f"{teacher}_0" / "results.json").exists():
        sys.exit(f"{name} needs the finished run {workdir / f'{teacher}_0'}: add {teacher} to --rows")
    arguments = arguments_of(study, name, seed, workdir, data)
    folder, log = workdir / f"{name}_{seed}", workdir / f"{name}_{seed}.log"
    print("python run.py", shlex.join(arguments), flush=True)
    resumed, began = folder.exists(), time.monotonic()
    processor = command(arguments, log, cores)
    seconds = time.monotonic() - began
    results = json.loads((folder / "results.json").read_text())
    record = json.loads((folder / "config.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    held_out = STUDIES[study].held_out
    figures = {
        "command": shlex.join(["python", "run.py", *arguments])
        .replace(str(workdir), "WORKDIR")
        .replace(str(data), "DATA"),
        "training_images": record["resolved"]["data"]["train"]["images"],
        "test_images": results["extra"]["test"]["images"] if held_out else results["eval_images"],
        "epochs": record["config"]["train"]["epochs"],
        "steps_per_epoch": record["resolved"]["steps_per_epoch"],
        # After an interruption only the seconds since the last start are known, so they are not stored.
        "processor_seconds": None if resumed else round(processor),
        "seconds": None if resumed else round(seconds),
        "cores": len(cores),
        "teacher": _top1({"": results["teacher"]})[""] if results["teacher"] else None,
        "scores": _top1(results["extra"]["test"]["scores"] if held_out else results["scores"]),
        "curve": [
            {"epoch": round(row["step"] / record["resolved"]["steps_per_epoch"], 3)}
            | {key.removeprefix("eval/").removesuffix("/top1"): round(row[key], 2) for key in row if _is_score(key)}
            for row in rows
            if any(map(_is_score, row))
        ],
    }
    if held_out:
        figures["held_out_scores"] = _top1(results["scores"])
    if STUDIES[study].embedded:
        found = folder / "embedded.json"
        plain = [part for part in arguments if not part.startswith("--config.data.")]
        command(["--mode=eval", *plain, f"--output={found}"], log, cores)
        figures["embedded_scores"] = _top1(json.loads(found.read_text())["scores"])
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(figures, indent=1) + "\n")


def _is_score(key: str) -> bool:
    return key.startswith("eval/") and key.endswith("/top1")


def _top1(scores: dict) -> dict:
    return {
        weights: {head: round(score["top1"], 2) for head, score in heads.items()} for weights, heads in scores.items()
    }


def kept_figures(study: str) -> dict[str, dict[int, dict]]:
    """The results of every row that has some, by seed."""
    found: dict[str, dict[int, dict]] = {}
    for name in STUDIES[study].rows:
        seeds = {path.stem.removeprefix(f"{name}_"): path for path in (KEPT / study).glob(f"{name}_*.json")}
        files = {
            int(seed): path for seed, path in seeds.items() if seed.isdigit()
        }  # other names may have the same prefix
        if files:
            found[name] = {seed: json.loads(path.read_text()) for seed, path in sorted(files.items())}
    return found


def own(scores: dict) -> float:
    """The accuracy of a network's own answer, with EMA weights."""
    return scores["ema"].get("fused_logits", scores["ema"]["class"])


def _own_point(point: dict) -> float:
    return point.get("ema/fused_logits", point["ema/class"])


def spread(values: list[float]) -> str:
    """The mean, with the standard deviation if there are several values."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def gains_over(seeds: dict[int, dict], baseline: dict[int, dict]) -> list[float]:
    """The differences of the test accuracies, for the seeds that both rows have."""
    both = sorted(set(seeds) & set(baseline))
    return [own(seeds[seed]["scores"]) - own(baseline[seed]["scores"]) for seed in both]


def table(study: str) -> str:
    """One line for each row and head."""
    found = kept_figures(study)
    lines = [
        "| row | training images | epochs | processor seconds | seeds | head | top-1 % | gain over labels alone, points |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, seeds in found.items():
        row, first = STUDIES[study].rows[name], next(iter(seeds.values()))
        measured = [figures["processor_seconds"] for figures in seeds.values() if figures["processor_seconds"]]
        common = f"| {row.what} | {first['training_images']:,} | {first['epochs']} | "
        common += f"{statistics.mean(measured):,.0f} | {len(seeds)} |" if measured else f"| {len(seeds)} |"
        for head, words in HEADS.items():
            values = [figures["scores"]["ema"].get(head) for figures in seeds.values()]
            if None in values:
                continue
            gains = ""
            if row.against in found and (head == "fused_logits" or "fused_logits" not in first["scores"]["ema"]):
                each = gains_over(seeds, found[row.against])
                gains = f"{spread(each)}: {', '.join(f'{gain:+.2f}' for gain in each)}" if each else ""
            what = words if "fused_logits" in first["scores"]["ema"] else ""
            lines.append(f"{common} {what} | {spread(values)} | {gains} |")
    return "\n".join(lines)


def curve(study: str, path: Path) -> None:
    """Plots accuracy against epochs for the rows of the study's curve: the mean over seeds, with their range as a band."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = study  # the same figures give the same file
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for name, colour in STUDIES[study].curve.items():
        seeds = kept_figures(study).get(name)
        if not seeds:
            continue
        runs = [figures["curve"] for figures in seeds.values()]
        epochs = [point["epoch"] for point in runs[0]]
        images = next(iter(seeds.values()))["training_images"]
        values = [[_own_point(point) for point in run] for run in runs]
        passes = [epoch * images / 1000 for epoch in epochs]
        axis.plot(
            passes, [statistics.mean(at) for at in zip(*values, strict=True)], color=colour,
            label=f"{STUDIES[study].rows[name].what}, {images:,} images",
        )  # fmt: skip
        axis.fill_between(passes, [min(at) for at in zip(*values, strict=True)], [max(at) for at in zip(*values, strict=True)],
                          color=colour, alpha=0.2, linewidth=0)  # fmt: skip
    axis.set_xlabel("epochs times training images, thousands")
    axis.set_ylabel(f"top-1 % of the {'held-out' if STUDIES[study].held_out else 'test'} images, EMA weights")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    figure.savefig(path, metadata={"Date": None})


def passing_epoch(study: str, taught: str, labels: str) -> str:
    """For each seed, the epoch at which the distilled student first exceeds the baseline's final accuracy."""
    found = kept_figures(study)
    epochs = []
    for seed in sorted(set(found.get(taught, {})) & set(found.get(labels, {}))):
        final = own(found[labels][seed]["held_out_scores" if STUDIES[study].held_out else "scores"])
        points = found[taught][seed]["curve"]
        epochs.append(next((point["epoch"] for point in points if _own_point(point) > final), None))
    return ", ".join("never" if epoch is None else f"{epoch:g}" for epoch in epochs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--workdir", type=Path, help="where to train; without it the stored results are shown")
    parser.add_argument("--data", type=Path, help="a .npz file (fashion_mnist) or a folder (cifar10)")
    parser.add_argument("--rows", nargs="+", help="some of the study's rows")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these of each row's seeds")
    parser.add_argument("--jobs", type=int, default=1, help="runs in parallel")
    parser.add_argument("--curve", type=Path, help="the plot to write")
    options = parser.parse_args()
    study = STUDIES[options.study]
    if unknown := set(options.rows or ()) - set(study.rows):
        parser.error(f"--rows: {', '.join(sorted(unknown))} is not one of {', '.join(study.rows)}")
    if options.workdir:
        workdir = options.workdir.absolute()
        workdir.mkdir(parents=True, exist_ok=True)
        data = options.data.absolute() if options.data else None
        cores = sorted(os.sched_getaffinity(0))
        shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
        for job in range(options.jobs):
            shares.put(set(cores[job :: options.jobs]) or set(cores))

        def run(name: str, seed: int) -> None:
            share = shares.get()
            try:
                train(options.study, name, seed, workdir, data, share)
            finally:
                shares.put(share)

        names = options.rows or list(study.rows)
        jobs = [(name, seed) for name in names for seed in study.rows[name].seeds]
        jobs = sorted((job for job in jobs if job[1] in (options.seeds or job[1:])), key=lambda job: job[1])
        if not jobs:
            parser.error(f"--seeds: {', '.join(names)} has none of these")
        taught_by = {(row.teacher, 0) for row in study.rows.values()}
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            for teachers in (True, False):  # the teachers first
                for done in [pool.submit(run, *job) for job in jobs if (job in taught_by) == teachers]:
                    done.result()
    if options.curve:
        curve(options.study, options.curve)
    print(table(options.study))
    for name, row in study.rows.items():
        if row.against and (epochs := passing_epoch(options.study, name, row.against)):
            print(f"{name} passes {row.against}'s final accuracy at epoch: {epochs}")
    found, longer = kept_figures(options.study), study.equal_time
    for name, row in study.rows.items():
        if row.teacher and longer in found and (gains := gains_over(found.get(name, {}), found[longer])):
            print(f"{name} over {longer}, points: {', '.join(f'{gain:+.2f}' for gain in gains)}")


if __name__ == "__main__":
    main()
