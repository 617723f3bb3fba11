"""Images/s of the host pipeline from a folder, and from shards with the same images.

    python benchmarks/data_sources.py --data=FOLDER [--copies=8]

FOLDER has photographs in one folder per class, e.g. ImageNet's val. Copies of them are packed in a temporary folder;
the recipe is DeiT's crop at 224 pixels in random order, without repeats. The sources are measured alternately over
several rounds. A figure is the median over the rounds, a ratio the median of their ratios to the folder. In brackets:
milliseconds of processor time per image, which is less sensitive to other load. Parquet is measured with row groups of
100 images (as on the Hugging Face hub) and 8, with a cache that holds one row group, as if the data were much larger
than the cache, and with a cache for all. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from deit_jax.parallel.host_memory import keep_freed_memory  # noqa: E402

keep_freed_memory()  # as run.py does, before anything large is allocated

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from deit_jax.config import default_config  # noqa: E402
from deit_jax.data import parquet  # noqa: E402
from deit_jax.data.decoding import RandomResizedCrop  # noqa: E402
from deit_jax.data.folder import ImageFolderSource  # noqa: E402
from deit_jax.data.loading import train_batches  # noqa: E402
from deit_jax.data.output_folder import OutputFolder  # noqa: E402
from deit_jax.data.preparing import Settings, prepare  # noqa: E402
from deit_jax.data.registry import open_source  # noqa: E402
from deit_jax.data.sampling import TrainOrder  # noqa: E402

SHARD_IMAGES = 1000


def pack(data: str, copies: int, root: Path) -> int:
    """Writes `copies` of each image to root/folder and as shards to folders next to it; returns their number."""
    source = ImageFolderSource(data, index="")
    images = [(f"{copy}_{source.file_name(i)}", source.class_names[source.labels[i]], source[i].image)
              for copy in range(copies) for i in range(len(source))]  # fmt: skip
    for name, label, content in images:
        folder = root / "folder/train" / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    prepared = open_source(section("folder", root / "folder"), "train")
    prepare({"train": prepared}, OutputFolder(str(root / "array_record")), Settings(), origin={})
    for kind in ("tar", "parquet100", "parquet8"):
        (root / kind).mkdir()
    shards = [images[start : start + SHARD_IMAGES] for start in range(0, len(images), SHARD_IMAGES)]
    for number, some in enumerate(shards):
        with tarfile.open(root / "tar" / f"train-{number:04}.tar", "w") as archive:
            for name, label, content in some:
                info = tarfile.TarInfo(f"{label}/{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        rows = [{"bytes": content, "path": name} for name, _, content in some]
        table = pa.table({"image": rows, "label": [label for _, label, _ in some]})
        for size in (100, 8):
            name = f"train-{number:05}-of-{len(shards):05}.parquet"
            pq.write_table(table, root / f"parquet{size}" / name, row_group_size=size)
    return len(images)


def section(source: str, path: str | Path) -> Any:
    data = default_config().data
    data.update({"source": source, "path": str(path), "index": ""})
    return data


def measure(source: Any, batch: int, images: int, seed: int) -> tuple[float, float]:
    """Returns images/s and milliseconds of processor time per image."""
    order = TrainOrder(
        num_examples=len(source), batch_size=batch, repeats=1, seed=seed, group_size=2, groups_per_block=2
    )
    batches = train_batches(source, order, RandomResizedCrop(224), start_step=0, stop_step=images // batch)
    began, processor = time.perf_counter(), time.process_time()
    count = sum(len(one["label"]) for one in batches)
    return count / (time.perf_counter() - began), 1000 * (time.process_time() - processor) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--images", type=int, default=512, help="per measurement")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    whole = parquet.CACHE_BYTES
    with tempfile.TemporaryDirectory() as folder:
        print(f"{pack(arguments.data, arguments.copies, Path(folder)):,} images, load {os.getloadavg()[0]:.1f}")
        cases = {"folder": ("folder", whole), "tar": ("tar", whole), "array_record": ("array_record", whole),
                 "Parquet, groups of 100": ("parquet100", 1),
                 "Parquet, groups of 8": ("parquet8", 1), "Parquet, all in memory": ("parquet100", 1 << 40)}  # fmt: skip
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        sources = {}
        for name, (kind, _) in cases.items():
            sources[name] = open_source(section(kind.rstrip("0123456789"), f"{folder}/{kind}"), "train")
        for seed in range(arguments.rounds + 1):
            for name in [*cases][seed % len(cases) :] + [*cases][: seed % len(cases)]:
                parquet.CACHE_BYTES = cases[name][1]
                figure = measure(sources[name], arguments.batch, arguments.images, seed)
                if seed:  # the first round warms up
                    figures[name].append(figure)
    result = {}
    for name, found in figures.items():
        pairs = list(zip(found, figures["folder"], strict=True))
        ratio = statistics.median(one / folder for (one, _), (folder, _) in pairs)
        processor_ratio = statistics.median(folder / one for (_, one), (_, folder) in pairs)
        speed, processor = (statistics.median(values) for values in zip(*found, strict=True))
        print(
            f"{name:24} {speed:8,.0f} images/s ({processor:.2f} ms)  {ratio:.2f} of the folder's ({processor_ratio:.2f})"
        )
        result[name] = {
            "images_per_second": speed, "processor_ms": processor, "ratio": ratio, "processor_ratio": processor_ratio,
        }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
