"""Breaks a run in many ways, many times, and counts what was lost.

    python benchmarks/chaos.py --kills 100 --checkpoints 50 --images 10000 --weights 1000

Kills: a run of 200 steps that saves every 20 is killed (SIGKILL) at a time drawn uniformly between the opening of its log by the
loop and its end, and the same command is run again. Parameters, optimizer, EMA and metrics must be bit-identical to those of an
uninterrupted run. Checkpoints: a byte flipped, the end cut off or a file deleted in the newest checkpoint of a finished run.
Images: JPEG and PNG files with bytes changed, cut, inserted or removed, read as in training with data.on_bad_image=replace.
Weights: the same for weights files. The last line is one JSON object; anything under "lost" is a fault of this project.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.mutations import MutatedImages, mutate  # noqa: E402

STEPS, SAVE_EVERY = 200, 20
# Rows are compared without the fields that depend on the clock.
CLOCK = (
    "images_per_second",
    "images_per_second_per_device",
    "model_tflops_per_second",
    "mfu",
    "mfu_teacher",
    "data_wait",
)


def command(workdir: Path) -> list[str]:
    # A cheap run with all features, because it is made twice for each kill.
    settings = [
        "model.name=deit_tiny_patch16_224", "model.overrides.depth=1", "distillation.kind=none", "teacher.weights=",
        "train.batch_size=8", "data.repeats=1", "augment.groups_per_block=2", "data.max_eval_images=40",
        f"train.max_steps={STEPS}", f"checkpoint.every_steps={SAVE_EVERY}", "log.every_steps=5",
    ]  # fmt: skip
    flags = ["--config=tests/tiny.py", f"--workdir={workdir}", *(f"--config.{setting}" for setting in settings)]
    return [sys.executable, "run.py", *flags]


def run(workdir: Path) -> subprocess.CompletedProcess[str]:
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 600, "start_new_session": True}
    return subprocess.run(command(workdir), cwd=ROOT, **options)


def outcome(workdir: Path) -> dict[str, str]:
    """Digests of the final state of a run."""
    import jax
    import numpy as np

    from deit_jax.reporting.run_log import read_metrics
    from deit_jax.training.checkpointing import load_state

    state, step = load_state(workdir)
    parts: dict[str, Any] = {name: state[name] for name in ("params", "opt_state", "ema")}
    digests = {"step": str(step)}
    for name, tree in parts.items():
        content = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))
        digests[name] = hashlib.blake2b(content, digest_size=8).hexdigest()
    rows = [{k: v for k, v in row.items() if k not in CLOCK} for row in read_metrics(workdir)]
    digests["metrics"] = hashlib.blake2b(json.dumps(rows).encode(), digest_size=8).hexdigest()
    digests["results"] = json.dumps(json.loads((workdir / "results.json").read_text())["scores"])
    return digests


def start(workdir: Path) -> subprocess.Popen[bytes]:
    """A run whose loop has just opened its log."""
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen(command(workdir), cwd=ROOT, **quiet)
    while not (workdir / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.005)
    return process


def kill_once(workdir: Path, seconds: float, rng: random.Random) -> dict[str, Any]:
    """Kills and resumes a run; returns "in_save" (from its log), how often it ended "before" the kill, and what "failed"."""
    before = -1
    finished = True
    while finished:  # the kill came too late and does not count
        before += 1
        shutil.rmtree(workdir, ignore_errors=True)
        process = start(workdir)
        time.sleep(rng.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        finished = process.wait() == 0 or (workdir / "results.json").exists()
    done = run(workdir)
    failed = done.stdout[-2000:] + done.stderr[-2000:] if done.returncode else ""
    return {"in_save": "was being written when the run ended" in done.stdout, "before": before, "failed": failed}


def seconds_of_loop(workdir: Path) -> float:
    """The seconds from the opening of the log to the results of a run."""
    process, began = start(workdir), time.monotonic()
    while not (workdir / "results.json").exists() and process.poll() is None:
        time.sleep(0.005)
    seconds = time.monotonic() - began
    assert process.wait() == 0
    return seconds


def kills(count: int, folder: Path, jobs: int, rng: random.Random) -> dict[str, Any]:
    for name in ("whole", "beside"):
        shutil.rmtree(folder / name, ignore_errors=True)
    run(folder / "beside")  # compile once for all
    # The time of a run among `jobs` parallel ones.
    with ThreadPoolExecutor(jobs) as pool:
        times = list(pool.map(seconds_of_loop, [folder / "whole", *(folder / f"beside_{i}" for i in range(jobs - 1))]))
    expected = outcome(folder / "whole")
    print(f"uninterrupted run: {times[0]:.1f} s of loop", expected, flush=True)
    lock = threading.Lock()
    tally: dict[str, Any] = {
        "tried": 0,
        "in_a_save": 0,
        "ended_before_the_kill_and_redrawn": 0,
        "identical": 0,
        "lost": [],
    }

    def one(number: int, seed: int) -> None:
        workdir = folder / f"kill_{number}"
        found = kill_once(workdir, times[0], random.Random(seed))
        with lock:
            ended = {"failed": found["failed"]} if found["failed"] else outcome(workdir)
            tally["tried"] += 1
            tally["in_a_save"] += found["in_save"]
            tally["ended_before_the_kill_and_redrawn"] += found["before"]
            if ended == expected:
                tally["identical"] += 1
                shutil.rmtree(workdir)
            else:
                tally["lost"].append({"workdir": str(workdir), **ended})
            print(
                f"kill {tally['tried']}/{count}: {tally['identical']} identical, {tally['in_a_save']} in a save",
                flush=True,
            )

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, range(count), [rng.getrandbits(32) for _ in range(count)]))
    return tally


def damage(path: Path, kind: str, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if kind == "deleted":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(content[: rng.randrange(len(content))])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)


def checkpoints(count: int, folder: Path, rng: random.Random) -> dict[str, Any]:
    """Damages the newest checkpoint; every tenth run is also resumed to its end."""
    from deit_jax.training.checkpointing import Checkpoints

    whole, tally = folder / "whole", {"tried": 0, "detected": 0, "resumed_identical": 0, "lost": []}
    if not whole.exists():
        assert run(whole).returncode == 0
    expected = outcome(whole)
    for number in range(count):
        workdir = folder / "damaged"
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(whole, workdir)
        (workdir / "results.json").unlink()
        newest = workdir / "checkpoints" / str(STEPS)
        path = rng.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
        kind = ("flipped", "truncated", "deleted")[number % 3]
        damage(path, kind, rng)
        what = f"{kind} {path.relative_to(newest)}"
        if number % 10 == 0:
            done = run(workdir)
            detected = "DAMAGED" in done.stdout and path.name in done.stdout.replace("\n", "")
            same = done.returncode == 0 and outcome(workdir) == expected
            tally["resumed_identical"] += same
            if not same:
                tally["lost"].append(f"{what}: resumed to a different end")
        else:
            with Checkpoints(workdir) as opened_again:
                detected = opened_again.latest_step() == STEPS - SAVE_EVERY
        tally["tried"] += 1
        tally["detected"] += detected
        if not detected:
            tally["lost"].append(f"{what}: not detected")
    return tally


def read_mutated_images(count: int, seed: int, answer: Any) -> None:
    """In its own process: reads all images as training does, and counts those that should have been replaced."""
    from deit_jax.data.bad_images import BadImages
    from deit_jax.data.decoding import RandomResizedCrop, decode
    from deit_jax.data.loading import train_batches
    from deit_jax.data.sampling import TrainOrder
    from deit_jax.data.sources import DataError

    source = MutatedImages(count, seed)
    faulty = []
    for content in source.files:
        try:
            decode(content)
            faulty.append(False)
        except DataError:
            faulty.append(True)
    batch = 50
    order = TrainOrder(num_examples=count, batch_size=batch, repeats=1, group_size=10, groups_per_block=5, seed=seed)
    seen: set[int] = set()
    steps = 0
    while len(seen) < count:  # an epoch skips images that do not fill a batch
        seen |= set(order.positions(steps).image_index.tolist())
        steps += 1
    bad_images, expected = BadImages(lambda line: None), 0
    # num_threads=2: parallel reads, as in training.
    for step, images in enumerate(
        train_batches(
            source, order, RandomResizedCrop(32), start_step=0, stop_step=steps, num_threads=2,
            on_bad_image="replace", bad_images=bad_images,
        )
    ):  # fmt: skip
        assert images["image"].shape == (batch, 32, 32, 3)
        for index in order.positions(step).image_index.tolist():
            while faulty[index % count]:
                expected, index = expected + 1, index + 1
    answer.put(
        {
            "tried": count, "reads": steps * batch, "faulty": sum(faulty), "replacements": expected,
            "counted": bad_images.count(steps),
        }
    )  # fmt: skip


def images(count: int, seed: int) -> dict[str, Any]:
    context = multiprocessing.get_context("forkserver")  # no thread of this process comes along
    answer = context.Queue()
    process = context.Process(target=read_mutated_images, args=(count, seed, answer))
    process.start()
    process.join(60 + count / 20)
    if process.is_alive():
        process.kill()
        return {"tried": count, "lost": ["hung"]}
    if process.exitcode:
        return {"tried": count, "lost": [f"crashed with exit status {process.exitcode}"]}
    tally = answer.get()
    missed = tally["replacements"] - tally["counted"]
    return tally | {"lost": [f"{missed} replacements not counted"] if missed else []}


def weights(count: int, folder: Path, rng: random.Random) -> dict[str, Any]:
    """Weights files: each must be loaded completely or refused in one line."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import deit_jax
    from deit_jax.weights.errors import WeightsError

    small = {"patch_size": 14, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = deit_jax.create_model("deit_tiny_distilled_patch16_224", num_classes=10, image_size=28, **small)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 3)))
    originals = []
    for suffix in (".safetensors", ".npz", ".pth"):
        path = folder / f"weights{suffix}"
        try:
            if suffix == ".npz":
                from safetensors.numpy import load_file

                np.savez(path, **load_file(folder / "weights.safetensors"))
            else:
                deit_jax.save_weights(variables, model, path)
        except Exception as error:  # torch is optional
            print(f"{suffix} is skipped: {error}")
            continue
        originals.append((suffix, path.read_bytes()))
    tally: dict[str, Any] = {"tried": 0, "refused": 0, "loaded": 0, "lost": []}
    shapes = [leaf.shape for leaf in jax.tree.leaves(variables)]
    for number in range(count):
        suffix, content = originals[number % len(originals)]
        path = folder / f"mutated{suffix}"
        path.write_bytes(mutate(content, rng))
        tally["tried"] += 1
        try:
            found = deit_jax.load_weights(path, model)
            whole = [leaf.shape for leaf in jax.tree.leaves(found)] == shapes
            tally["loaded"] += whole
            if not whole:
                tally["lost"].append(f"{number}{suffix}: loaded in part")
        except WeightsError as error:
            tally["refused"] += 1
            if "\n" in str(error):
                tally["lost"].append(f"{number}{suffix}: more than one line")
        except Exception as error:
            tally["lost"].append(f"{number}{suffix}: {type(error).__name__}: {str(error)[:100]}")
    return tally


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = ["| what | tried | outcome | lost |", "|---|---|---|---|"]
    for what, tally in found.items():
        rest = ", ".join(
            f"{name.replace('_', ' ')} {value:,}" for name, value in tally.items() if name not in ("tried", "lost")
        )
        lines.append(f"| {what} | {tally['tried']:,} | {rest} | {len(tally['lost'])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in (("kills", 100), ("checkpoints", 50), ("images", 10_000), ("weights", 1000)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="number of runs that are killed in parallel")
    parser.add_argument("--folder", type=Path, help="working folder; default: a new one, removed at the end")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos_", ignore_cleanup_errors=True) as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        began, found = time.monotonic(), {}
        rng = random.Random(options.seed)
        if options.kills:
            found["kills"] = kills(options.kills, folder, options.jobs, rng)
        if options.checkpoints:
            found["damaged checkpoints"] = checkpoints(options.checkpoints, folder, rng)
        if options.images:
            found["mutated images"] = images(options.images, options.seed)
        if options.weights:
            found["mutated weight files"] = weights(options.weights, folder, rng)
        print(table(found))
        print(json.dumps({"seconds": round(time.monotonic() - began), "seed": options.seed, **found}))
    sys.exit(any(tally["lost"] for tally in found.values()))


if __name__ == "__main__":
    main()
