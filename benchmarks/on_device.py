r"""Measures this code on a GPU in eight minutes: logits compared with the CPU, speed and memory of the step, 300 real steps.

    python benchmarks/on_device.py --output=rows.jsonl               (one H100 or H200; ends by itself, --minutes=8)
    python benchmarks/on_device.py --table=rows.jsonl                (the rows as Markdown, for docs/performance.md)
    python benchmarks/on_device.py --output=rows.jsonl --tiny        (tiny models, also on a CPU, to test the script)

In this order, most valuable rows first:

* machine: card, driver, versions, memory.
* logits: DeiT-Ti distilled and RegNetY-002 on the photograph of tests/golden, with the same weights on GPU and CPU. The
  figure is the maximum absolute difference to the CPU's float32 logits, divided by their maximum absolute value. The GPU
  computes in float32 (products at the highest precision) and bfloat16, next to the CPU in bfloat16; plus the difference
  to timm.
* attention: values and gradients of a block's attention (width 768, 64 images) by cuDNN, for 197, 198 and 577 tokens: the
  error in bfloat16 relative to plain attention in float32, next to plain attention's own in bfloat16, and whether five runs
  give the same bits.
* step: the trainer's own step (`build_program`, donated state, bfloat16) of configs/deit.py with augmentation and mixing,
  for S and B, plain and distilled from RegNetY-160, with each attention of the model. The weights, also the teacher's, are
  random and the uint8 batch is already on the device, which does not affect speed. The size of mixing groups is that of
  the recipe, or a quarter of the batch if that is smaller. If memory runs out the batch is halved, and the row says so.
  Blocks of steps are timed until their last result is available. MFU: model FLOPs (deit_jax/models/flops.py: three
  forward passes of the student and one of the teacher, without augmentation) divided by the card's dense bfloat16 peak.
  Memory: what the compiled program needs, including its arguments.
* quick start: 300 steps of the student of configs/quickstart.py by the trainer of run.py, with input pipeline,
  checkpoints and evaluation. Its teacher has random weights, so the accuracy means little.

Each part has a share of the minutes, each row a maximum time, after which it is aborted. Time left by a part goes to the
later ones, and at the end to rows that were not started. Each row is written as one line of JSON when it is complete.
Its `status` is "ok", "error" (with a one-line message; the script continues) or "not reached". The rows are computed by
on_device_rows.py in a separate process, which is restarted if it hangs or fails; its output is in OUTPUT.log.

The machine needs no network, but Python 3.12 with JAX 0.11 or newer for its GPU, and flax, optax, orbax-checkpoint,
einops, numpy, scipy, numba, pillow, matplotlib, rich, safetensors, absl-py, packaging, cloudpickle, protobuf, psutil
and PyYAML. Six more packages are copied to it as wheels (5 MB). On a computer with a network, for a machine with an
x86-64 processor:

    pip download --no-deps --only-binary=:all: --python-version=3.12 --implementation=cp --platform=manylinux_2_28_x86_64 \
        --platform=manylinux_2_17_x86_64 --platform=manylinux2014_x86_64 --dest=wheels \
        ml-collections==1.1.0 grain==0.2.18 array-record==0.8.6 portpicker==1.6.0 simplejpeg==1.9.0 tensorboardX==2.6.5

and on the machine, before the script:

    pip install --no-index --no-deps --target=/tmp/site wheels/*.whl && export PYTHONPATH=/tmp/site
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROWS = Path(__file__).with_name("on_device_rows.py")
Row = dict[str, Any]


class Part(NamedTuple):
    """The time limits of a part, in seconds of a run of eight minutes."""

    end: float  # of the part, from the start of the script
    most: float  # for one row
    least: float  # a row is not started with less time left


MINUTES = 8.0
PARTS = {
    "machine": Part(end=60, most=60, least=0),
    "logits": Part(end=130, most=45, least=10),
    "attention": Part(end=160, most=30, least=10),
    "step": Part(end=400, most=120, least=25),
    "quick start": Part(end=470, most=90, least=20),
}
LOGITS = ("deit_tiny_distilled_patch16_224", "regnety_002")
RECIPES = ("small,distilled", "base,distilled", "small", "base")  # arguments of configs/deit.py
TOKENS = (197, 198, 577)
ATTENTIONS = ("xla", "cudnn", "dot_product")  # those of a GPU
# Names to import; for those copied as wheels also the name of the package.
INSTALLED = (
    "jax flax optax orbax.checkpoint einops numpy scipy numba PIL matplotlib rich safetensors absl packaging cloudpickle "
    "google.protobuf psutil yaml"
)
WHEELS = {
    "ml_collections": "ml-collections", "grain": "grain", "array_record": "array-record", "portpicker": "portpicker",
    "simplejpeg": "simplejpeg", "tensorboardX": "tensorboardX",
}  # fmt: skip


def missing_packages() -> str | None:
    """One line about missing packages; None if there are none."""

    def found(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:  # the parent package is missing too
            return False

    missing = [name for name in [*INSTALLED.split(), *WHEELS] if not found(name)]
    if not missing:
        return None
    return (
        f"Python packages are missing: {', '.join(missing)}. Copy {', '.join(WHEELS.values())} as wheels; the docstring of "
        "benchmarks/on_device.py explains how"
    )


def all_rows(tiny: bool = False) -> list[Row]:
    """The rows to measure, in order. Tiny networks have only one size."""
    rows = [{"part": "machine", "what": "machine"}]
    for model in LOGITS:
        for dtype in ("float32", "bfloat16"):
            rows.append({"part": "logits", "what": f"logits of {model} in {dtype}", "model": model, "dtype": dtype})
    for tokens in TOKENS:
        rows.append({"part": "attention", "what": f"attention of {tokens} tokens by cuDNN", "tokens": tokens})
    for attention in ATTENTIONS:
        for recipe in RECIPES:
            if tiny and recipe.startswith("base"):
                continue
            what = f"step of {recipe}, attention={attention}"
            rows.append({"part": "step", "what": what, "recipe": recipe, "attention": attention})
    rows.append({"part": "quick start", "what": "quick start's student"})
    return [row | {"tiny": tiny} for row in rows]


# --- Measuring with time limits ------------------------------------------------------------------------------------------------


class Worker:
    """A process that computes rows; it is replaced after an abort or a failure."""

    def __init__(self, log: Path, command: Sequence[str] = (sys.executable, str(ROWS))) -> None:
        self._log, self._command = log, command
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None]

    def _start(self) -> None:
        with self._log.open("a") as log:
            self._process = process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._lines = lines = queue.Queue()

        def read() -> None:
            for line in process.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()

    def run(self, row: Row, seconds: float) -> Row:
        """Returns the row with its measurements, after at most this many seconds."""
        deadline = time.monotonic() + seconds
        if self._process is None:
            self._start()
        with contextlib.suppress(BrokenPipeError):  # the process has ended, which is handled below
            self._process.stdin.write(json.dumps(row) + "\n")
            self._process.stdin.flush()
        while "status" not in row:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                row |= {"status": "not reached", "note": f"cut off after {seconds:.0f} s", "broken": True}
                break
            if line is None:
                last = (self._log.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
                error = f"the process ended with status {self._process.wait()}: {last}"
                row |= {"status": "error", "error": error[:300], "broken": True}
            else:
                row |= json.loads(line)
        if row.pop("broken", False):
            self.close()
        return row

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def measure_all(rows: Sequence[Row], minutes: float, worker: Worker, write: Callable[[Row], None]) -> None:
    """Measures and writes all rows within the time limits, then those that were not started for lack of time.

    Raises SystemExit, with one line, if the first row, that of the machine, is unusable.
    """
    began, scale = time.monotonic(), minutes / MINUTES
    waiting, why = list(rows), "no time left"

    def attempt(row: Row, end: float) -> None:
        part = PARTS[row["part"]]
        left = min(began + scale * end - time.monotonic(), scale * part.most)
        if left <= scale * part.least:
            return
        waiting.remove(row)
        start = time.monotonic()
        done = row | {"status": "not reached", "note": "the script was stopped"}
        try:
            done = worker.run(dict(row), left)
        finally:
            write(done | {"seconds": time.monotonic() - start})
        if row["part"] == "machine" and (line := refusal(done)) is not None:
            raise SystemExit(line)

    try:
        for row in list(waiting):
            attempt(row, PARTS[row["part"]].end)
        for row in list(waiting):
            attempt(row, PARTS["quick start"].end)
    except BaseException:
        why = "the script was stopped"
        raise
    finally:
        worker.close()
        for row in waiting:
            write(row | {"status": "not reached", "note": why, "seconds": 0.0})


def refusal(machine: Row) -> str | None:
    """Returns why the machine cannot be measured, in one line."""
    if machine["status"] != "ok":
        return f"JAX does not start here: {machine.get('error') or machine['note']}"
    if machine["platform"] != "gpu" and not machine["tiny"]:
        return f"JAX finds no GPU here (it finds: {machine['card']}); --tiny tests this script on a CPU"
    return None


# --- Tables --------------------------------------------------------------------------------------------------------------------

# By part: the column's name, the field and its format.
COLUMNS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "machine": (
        ("card", "card", ""), ("name, driver, memory, power", "nvidia_smi", ""), ("backend", "backend", ""), ("jax", "jax", ""),
        ("date", "date", ""),
    ),
    "logits": (
        ("model", "model", ""), ("type", "dtype", ""), ("difference to the CPU in float32", "difference", ".1e"),
        ("the CPU's own in this type", "difference_of_cpu", ".1e"), ("difference to timm", "difference_to_timm", ".1e"),
    ),
    "attention": (
        ("tokens", "tokens", ""), ("computed by", "kernel", ""), ("largest error", "difference", ".1e"),
        ("plain attention's", "difference_of_plain", ".1e"), ("same bits", "repeats", ""),
    ),
    "step": (
        ("configs/deit.py:", "recipe", ""), ("attention", "attention", ""), ("batch", "batch_size", ""),
        ("images/s", "images_per_second", ",.0f"), ("slowest", "slowest", ",.0f"), ("fastest", "fastest", ",.0f"),
        ("MFU", "mfu", ".1%"), ("memory, GiB", "memory_gib", ".2f"), ("compiling, s", "compile_seconds", ".0f"),
    ),
    "quick start": (
        ("steps", "steps", ""), ("first loss", "first_loss", ".3f"), ("last loss", "last_loss", ".3f"),
        ("images/s", "images_per_second", ",.0f"), ("in all, s", "wall_seconds", ".0f"),
    ),
}  # fmt: skip


def cells(row: Row) -> Iterator[tuple[str, str]]:
    """Name and text of each column, "" if unknown; the last one has the error."""
    for name, field, form in COLUMNS[row["part"]]:
        value = row.get(field)
        yield name, "" if value is None else format(value, form)
    status = None if row["status"] == "ok" else row["status"]
    yield "", "; ".join(filter(None, (status, row.get("error"), row.get("note"), row.get("no_mfu"))))


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as Markdown: for every run one table per part."""
    lines: list[str] = []
    heading = None
    for row in sorted(rows, key=lambda row: (row["run"], list(PARTS).index(row["part"]))):
        names, texts = zip(*cells(row), strict=True)
        if heading != (row["run"], row["part"]):
            heading = row["run"], row["part"]
            lines += ["", f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
        lines.append(f"| {' | '.join(text.replace('|', '/') for text in texts)} |")
    return "\n".join(lines[1:])


def print_table(path: Path) -> None:
    try:
        print(table([json.loads(line) for line in path.read_text().splitlines()]))
    except OSError as error:
        sys.exit(f"--table={path} cannot be read ({error.strerror})")
    except (ValueError, KeyError, TypeError):
        sys.exit(f"--table={path} has other content than rows of this script")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON lines file to which the rows are appended")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time limit of the script")
    parser.add_argument("--only", default="", help="measure only rows whose name contains this, e.g. attention=cudnn")
    parser.add_argument("--tiny", action="store_true", help="tiny models and batches, on any device")
    parser.add_argument("--table", type=Path, help="print the rows of this file as Markdown, and exit")
    arguments = parser.parse_args()
    if arguments.table:
        return print_table(arguments.table)
    if not arguments.output or arguments.minutes <= 0:
        parser.error("--output=FILE is needed, and --minutes above 0")
    if (line := missing_packages()) is not None:
        sys.exit(line)

    if arguments.tiny:  # halves the compilation time of networks that hardly run
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
    rows = [row for row in all_rows(arguments.tiny) if row["part"] == "machine" or arguments.only in row["what"]]
    counts: dict[str, int] = {}
    run = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    try:
        file = arguments.output.open("a")
    except OSError as error:
        sys.exit(f"--output={arguments.output} cannot be written ({error.strerror})")
    with file:

        def write(row: Row) -> None:
            file.write(json.dumps({"run": run} | row) + "\n")
            file.flush()
            known = ", ".join(f"{name} {text}".strip() for name, text in cells(row) if text)
            print(f"{row['what']} ({row['seconds']:.0f} s): {known}", flush=True)
            counts[row["status"]] = counts.get(row["status"], 0) + 1

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        measure_all(rows, arguments.minutes, Worker(Path(f"{arguments.output}.log")), write)
    print(json.dumps({"rows": str(arguments.output)} | counts))


if __name__ == "__main__":
    main()
