"""Training, resuming and evaluation from tar shards and Parquet files: the same run as from a folder."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.tars import pack
from tests.end_to_end.commands import SHORT, refused, succeed

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
    for kind in ("folder", "tar", "parquet"):
        run = (f"--workdir={tmp_path / kind}", f"--config.data.source={kind}", f"--config.data.path={data / kind}")
        succeed(*flags, *run, "--config.train.max_steps=4")
        succeed(*flags, *run, "--config.train.max_steps=7")  # resumed within the third epoch
        found[kind] = losses(tmp_path / kind)
    assert found["folder"] == found["tar"] == found["parquet"] and len(found["folder"]) >= 7
    message = refused(
        *flags, f"--workdir={tmp_path / 'none'}", "--config.data.source=tar", f"--config.data.path={data / 'parquet'}"
    )
    assert "has no .tar files" in message and not (tmp_path / "none").exists()
