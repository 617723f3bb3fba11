"""Images/s of the host pipeline compared with torchvision, timm and PyTorch's DataLoader on the same cores.

    python benchmarks/input_pipeline.py --data=FOLDER [--peer_python=PYTHON]

FOLDER has photographs in one folder per class, e.g. ImageNet's val. The recipe is DeiT's (Table 9) at 224 pixels, with 1 and 3
repeats. Ours only decodes and crops on the host; the rest runs on the device. The peer, run by PYTHON (with torch, torchvision
and timm), does everything in the persistent workers of its DataLoader, with 1, 2 and 3 of them; the best result counts.

Then the complete input of a network on the same cores: ours with the augmentation compiled by JAX (on JAX's default device; a CPU
shares its cores with the decoder), the peer's with timm's Mixup and its best number of workers.

All are measured alternately over several rounds. A figure is the median over the rounds, a ratio the median of their ratios. Each
measurement is printed in images/s and, in brackets, milliseconds of processor time per image (all threads and processes), which
is less sensitive to other load. The last line is one JSON object. The time of each stage for one image is printed first.

What a machine with more cores would read is only calculated: the images/s of one core, by the processor time of our host pipeline
per image, times the number of cores; and the limit of the one thread that assembles batches and hands them to the devices.

    python benchmarks/input_pipeline.py --assembly

measures only that thread: the processor time per 1,024 images of 224 pixels, which are in memory and not resized, and that of the
thread that runs the steps. On JAX's default device; a CPU takes the batches without copying them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from deit_jax.parallel.host_memory import keep_freed_memory  # noqa: E402

keep_freed_memory()  # as run.py does, before anything large is allocated

import jax  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from configs import deit  # noqa: E402
from deit_jax.augment.pipeline import TrainAugmentation  # noqa: E402
from deit_jax.data import decoding  # noqa: E402
from deit_jax.data.folder import ImageFolderSource  # noqa: E402
from deit_jax.data.loading import crop_rng, train_batches  # noqa: E402
from deit_jax.data.resizing import resize  # noqa: E402
from deit_jax.data.sampling import TrainOrder  # noqa: E402
from deit_jax.data.sources import ArraySource, Subset  # noqa: E402
from deit_jax.parallel.in_advance import in_advance  # noqa: E402
from deit_jax.parallel.mesh import make_mesh  # noqa: E402
from deit_jax.parallel.sharding import put_batch  # noqa: E402

PEER = ROOT / "benchmarks" / "peers" / "input_pipeline_timm.py"
SIZE = 224
REPEATS = (1, 3)


class Figure(NamedTuple):
    images_per_second: float
    processor_ms: float  # per image, of all threads and processes


class Peer:
    """The other interpreter: measures one figure on request, idle in between."""

    def __init__(self, python: str, data: str, images: int, batch: int, copies: int, seed: int) -> None:
        command = [python, str(PEER), data, str(images), str(batch), str(copies), str(seed)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, workers: int, repeats: int, mix: bool) -> Figure:
        self._process.stdin.write(json.dumps({"workers": workers, "repeats": repeats, "mix": mix}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit("the peer's process has ended; its message is above")
        return Figure(**json.loads(answer))


def ours(source: Any, arguments: argparse.Namespace, repeats: int, step: Callable[..., Any] | None) -> Figure:
    """Measures `train_batches`; with `step`, including that function of each batch."""
    batch = arguments.batch
    order = TrainOrder(
        num_examples=len(source),
        batch_size=batch,
        repeats=repeats,
        group_size=batch // 4,
        groups_per_block=4,
        seed=arguments.seed,
    )
    crop = decoding.RandomResizedCrop(SIZE)
    warm, steps = 4, arguments.images // batch
    batches: Iterator[Any] = train_batches(
        source,
        order,
        crop,
        start_step=0,
        stop_step=warm + steps,
        num_threads=arguments.threads,
        num_workers=arguments.workers,
    )
    made = batches if step is None else one_ahead(step(number, batch) for number, batch in enumerate(batches))
    for _ in range(warm):
        jax.block_until_ready(next(made))
    began, used = time.perf_counter(), time.process_time()
    for result in made:
        jax.block_until_ready(result)
    seconds, used = time.perf_counter() - began, time.process_time() - used
    batches.close()
    return Figure(steps * batch / seconds, 1000 * used / (steps * batch))


def assembly(workers: int, seed: int, steps: int = 12, batch: int = 1024) -> dict[str, float]:
    """Milliseconds of processor time per `batch` images: of the thread that assembles and sends, and of the main thread."""
    pixels = np.random.default_rng(seed).integers(0, 255, (256, SIZE, SIZE, 3), dtype=np.uint8)
    source = Subset(ArraySource(pixels, np.zeros(256, np.int64), ("only",)), np.tile(np.arange(256), 2 * batch // 256))
    order = TrainOrder(
        num_examples=len(source), batch_size=batch, repeats=1, group_size=batch // 4, groups_per_block=4, seed=seed
    )
    batches: Iterator[Any] = train_batches(
        source, order, decoding.CenterCrop(SIZE, 1.0), start_step=0, stop_step=steps, num_workers=workers
    )
    mesh, sending, main = make_mesh(), [], []

    def sent() -> Iterator[Any]:
        for each in batches:
            yield put_batch(mesh, each)
            sending.append(time.thread_time())

    for each in in_advance(sent(), 2):
        jax.block_until_ready(each)
        main.append(time.thread_time())
    kinds = {"assembly_ms": sending, "main_thread_ms": main}
    return {name: 1000 * statistics.median(np.diff(times[2:])) for name, times in kinds.items()}


def on_paper(processor_ms: float, assembly_ms: float) -> list[str]:
    """Lines about machines with more cores. processor_ms: per image, of all threads; assembly_ms: per 1,024 images."""
    limit = 1024 / (assembly_ms / 1000)
    cores = (1, 2, 8, 16, 32, 64, 112, 208)
    rates = ", ".join(f"{count}: {min(count * 1000 / processor_ms, limit):,.0f}" for count in cores)
    return [f"images/s by number of cores, calculated: {rates}", f"the thread that assembles: at most {limit:,.0f}"]


def one_ahead(results: Iterator[Any]) -> Iterator[Any]:
    """Requests each item while the device processes the previous one, as the trainer does."""
    previous = next(results, None)
    while previous is not None:
        following = next(results, None)
        yield previous
        previous = following


def make_step(classes: int, group: int, seed: int) -> Callable[[int, Any], Any]:
    section = deit.recipe("small").augment
    augmentation = TrainAugmentation.from_section(section, num_classes=classes, group_size=group)
    compiled, key = jax.jit(augmentation), jax.random.key(seed)
    return lambda number, batch: compiled(jax.random.fold_in(key, number), batch["image"], batch["label"])


def stages(source: Any, seed: int, count: int = 250) -> dict[str, float]:
    """Milliseconds of processor time per image, in one thread, for each of our stages, and for the same with Pillow."""
    indices = range(min(count, len(source)))
    crop = decoding.RandomResizedCrop(SIZE)
    files = [source[i].image for i in indices]
    images = [decoding.decode(file) for file in files]

    def boxes() -> list[decoding.Box]:
        sides = [image.shape[:2] for image in images]
        return [
            decoding.random_resized_crop_box(*side, crop_rng(seed, 0, i), crop.scale, crop.ratio)
            for i, side in enumerate(sides)
        ]

    def pillow_crop(image: np.ndarray, box: decoding.Box) -> np.ndarray:
        window = Image.fromarray(image[box.top : box.top + box.height, box.left : box.left + box.width])
        return np.asarray(window.resize((SIZE, SIZE), Image.Resampling.BICUBIC))

    drawn = boxes()
    tasks: dict[str, Callable[[], Any]] = {
        "read": lambda: [source[i] for i in indices],
        "decode": lambda: [decoding.decode(file) for file in files],
        "draw the crop": boxes,
        "crop and resize": lambda: [resize(image, SIZE, SIZE, box) for image, box in zip(images, drawn, strict=True)],
        "decode (Pillow)": lambda: [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files],
        "crop and resize (Pillow)": lambda: [pillow_crop(image, box) for image, box in zip(images, drawn, strict=True)],
    }
    best = dict.fromkeys(tasks, float("inf"))
    for _ in range(5):
        for name, task in tasks.items():
            began = time.thread_time()
            task()
            best[name] = min(best[name], time.thread_time() - began)
    return {name: 1000 * seconds / len(files) for name, seconds in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a folder of class folders")
    parser.add_argument("--assembly", action="store_true", help="measure only assembling and handing over")
    parser.add_argument("--peer_python", help="an interpreter with torch, torchvision and timm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1024, help="images per measurement")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None, help="as config.data.num_threads")
    parser.add_argument("--workers", type=int, default=0, help="as config.data.num_workers")
    parser.add_argument("--peer_workers", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()

    assembled = assembly(arguments.workers, arguments.seed)
    print("  ".join(f"{name} {value:.2f} per 1,024 images" for name, value in assembled.items()))
    if arguments.assembly:
        print(json.dumps({name: round(value, 2) for name, value in assembled.items()}))
        return
    if not arguments.data:
        parser.error("give --data or --assembly")
    folder = ImageFolderSource(arguments.data)
    copies = -(-64 * arguments.images // len(folder))
    source = Subset(folder, np.tile(np.arange(len(folder)), copies))
    step = make_step(len(folder.class_names), arguments.batch // 4, arguments.seed)
    peer = None
    if arguments.peer_python:
        peer = Peer(arguments.peer_python, arguments.data, arguments.images, arguments.batch, copies, arguments.seed)
    print(f"{len(folder)} images; {len(os.sched_getaffinity(0))} cores; load {os.getloadavg()[0]:.1f} at the start")
    for name, milliseconds in stages(folder, arguments.seed).items():
        print(f"{name:26} {milliseconds:6.3f} ms of one thread an image")

    figures: dict[str, list[Figure]] = {}
    for number in range(arguments.rounds + 1):
        for repeats in REPEATS:
            row = {
                f"ours_{repeats}": ours(source, arguments, repeats, None),
                f"ours_augmented_{repeats}": ours(source, arguments, repeats, step),
            }
            if peer is not None:
                row |= {f"timm_{repeats}_{w}w": peer(w, repeats, False) for w in arguments.peer_workers}
                best = max(arguments.peer_workers, key=lambda w, row=row, r=repeats: row[f"timm_{r}_{w}w"])
                row[f"timm_mixed_{repeats}"] = peer(best, repeats, True)
            if number:  # the first round compiles and starts workers
                for name, value in row.items():
                    figures.setdefault(name, []).append(value)
                print("  ".join(f"{name} {speed:.0f} ({used:.2f})" for name, (speed, used) in row.items()), flush=True)

    speeds = {name: statistics.median(value.images_per_second for value in values) for name, values in figures.items()}
    summary: dict[str, Any] = {name: round(speed, 1) for name, speed in speeds.items()} | assembled
    for repeats in REPEATS:
        used = statistics.median(value.processor_ms for value in figures[f"ours_{repeats}"])
        print(f"{repeats} repeat(s), {used:.3f} ms of processor time per image")
        print("\n".join(on_paper(used, assembled["assembly_ms"])))
    if peer is not None:
        for repeats in REPEATS:
            best = max(arguments.peer_workers, key=lambda w, r=repeats: speeds[f"timm_{r}_{w}w"])
            for name, mine, theirs in (
                ("host", f"ours_{repeats}", f"timm_{repeats}_{best}w"),
                ("end_to_end", f"ours_augmented_{repeats}", f"timm_mixed_{repeats}"),
            ):
                pairs = list(zip(figures[mine], figures[theirs], strict=True))
                speed = statistics.median(a.images_per_second / b.images_per_second for a, b in pairs)
                used = statistics.median(b.processor_ms / a.processor_ms for a, b in pairs)
                summary[f"{name}_ratio_{repeats}"] = round(speed, 2)
                summary[f"{name}_processor_time_ratio_{repeats}"] = round(used, 2)
    summary |= {"load_at_end": round(os.getloadavg()[0], 1), "device": jax.default_backend()}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
