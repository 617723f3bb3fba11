"""Training, resuming and evaluation from tar shards and Parquet files: the same run as from a folder."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.tars import pack
from tests.end_to_end.commands import SHORT, TINY, refused, run_together, succeed, train_rows

CLASSES = ("ash", "elm", "oak")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """DATA/folder, DATA/tar and DATA/parquet, 48 images for training and 24 for evaluation."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 48), ("validation", 24)):
        rows, packed = [], [{}, {}]
        for label, name in enumerate(CLASSES):
            for number in range(count // 3):
                file = io.BytesIO()
                Image.fromarray(random.integers(0, 255, (30, 28 + number % 3, 3), np.uint8)).save(file, "JPEG")
                relative = f"{name}/{number:02}.jpg"
                path = root / "folder" / split / relative
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.getvalue())
                rows.append((file.getvalue(), name))
                packed[number % 2][relative] = file.getvalue()
                packed[number % 2][f"{name}/{number:02}.json"] = json.dumps({"label": name, "id": label}).encode()
        for number, members in enumerate(packed):
            pack(root / "tar" / f"trees-{split}-{number:04}.tar", members)
        images, labels = zip(*rows, strict=True)
        (root / "parquet").mkdir(exist_ok=True)
        table = pa.table({"image": [{"bytes": image, "path": None} for image in images], "label": labels})
        pq.write_table(table, root / "parquet" / f"{split}-00000-of-00001.parquet", row_group_size=7)
    return root


def prepared(data, output):
    """The folder's images, by --mode=prepare."""
    command = ("--mode=prepare", TINY, "--config.data.source=folder", f"--output={output}")
    succeed(*command, f"--config.data.path={data / 'folder'}", "--shard_images=11", "--config.data.num_workers=2")
    return output


def losses(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        (row["step"], name, value)
        for row in rows
        for name, value in sorted(row.items())
        if name.endswith(("loss", "top1"))
    ]


@pytest.mark.long
def test_a_run_from_shards_is_the_run_from_the_folder(data, tmp_path):
    flags = (*SHORT, "--config.train.batch_size=16")
    found = {}
    prepared(data, data / "array_record")
    for kind in ("folder", "tar", "parquet", "array_record"):
        run = (f"--workdir={tmp_path / kind}", f"--config.data.source={kind}", f"--config.data.path={data / kind}")
        succeed(*flags, *run, "--config.train.max_steps=4")
        succeed(*flags, *run, "--config.train.max_steps=7")  # resumed within the third epoch
        found[kind] = losses(tmp_path / kind)
    assert found["folder"] == found["tar"] == found["parquet"] == found["array_record"] and len(found["folder"]) >= 7
    message = refused(
        *flags, f"--workdir={tmp_path / 'none'}", "--config.data.source=tar", f"--config.data.path={data / 'parquet'}"
    )
    assert "has no .tar files" in message and not (tmp_path / "none").exists()


@pytest.mark.long
def test_two_processes_from_prepared_shards_are_one_from_the_folder(data, tmp_path):
    prepared(data, tmp_path / "shards")
    flags = (
        "--config.train.batch_size=16",
        "--config.augment.group_size=2",
        "--config.train.max_steps=5",
        *SHORT[1:3],
        SHORT[-1],
    )
    shards = ("--config.data.source=array_record", f"--config.data.path={tmp_path / 'shards'}")
    run_together(tmp_path / "two", *flags, *shards, processes=2)
    succeed(
        TINY,
        f"--workdir={tmp_path / 'one'}",
        *flags,
        "--config.data.source=folder",
        f"--config.data.path={data / 'folder'}",
        devices=2,
    )
    found, expected = ([row["train/loss"] for row in train_rows(tmp_path / name)] for name in ("two", "one"))
    assert len(found) == 5
    np.testing.assert_allclose(found, expected, rtol=1e-5)
