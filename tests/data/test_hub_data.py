"""Data sets of the Hugging Face hub, from a local server with its protocol."""

import hashlib
import http.server
import json
import re
import threading

import pytest
from huggingface_hub import HfFileSystem, constants

from deit_jax.config import default_config
from deit_jax.data import stored_files
from deit_jax.data.output_folder import OutputFolder
from deit_jax.data.preparing import Settings, prepare
from deit_jax.data.registry import open_source
from deit_jax.data.sources import MissingDataError
from tests.data.test_parquet import write_set
from tests.data.test_tar_shards import assert_equal_batches, batches, photos, write_folder, write_shards


class Handler(http.server.BaseHTTPRequestHandler):
    """GET of the repository's description, of the list of its files, and of ranges of files; `server.files` has the content."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.split("?")[0]
        match = re.fullmatch(r"/(api/)?datasets/oak/leaves(/tree/main|/resolve/main|/revision/main)?(/.*)?", path)
        name = ((match and match[3]) or "/")[1:]
        if not match:
            self.answer(404, b"", ("X-Error-Code", "RepoNotFound"))
        elif match[2] == "/resolve/main" and name not in self.server.files:
            self.answer(404, b"", ("X-Error-Code", "EntryNotFound"))
        elif match[2] == "/resolve/main" and not self.headers["Range"]:
            self.answer(200, self.server.files[name])
        elif match[2] == "/resolve/main":
            self.server.ranges.append((name, self.headers["Range"]))
            first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
            self.answer(206, self.server.files[name][first : last + 1])
        elif match[2] == "/tree/main":
            there = {
                each: content
                for each, content in self.server.files.items()
                if each.startswith(f"{name}/" if name else "")
            }
            deep = "recursive=true" in self.path.lower()
            there = {
                each: content for each, content in there.items() if deep or "/" not in each[len(name) + bool(name) :]
            }
            found = [
                {"type": "file", "path": each, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for each, content in there.items()
            ]
            self.answer(
                200 if found else 404,
                json.dumps(found).encode(),
                *([] if found else [("X-Error-Code", "EntryNotFound")]),
            )
        else:
            self.answer(200, json.dumps({"id": "oak/leaves", "sha": "0" * 40, "siblings": [], "tags": []}).encode())

    def answer(self, status, content, *headers):
        self.send_response(status)
        for header in (*headers, ("Content-Type", "application/json"), ("Content-Length", str(len(content)))):
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The server; `.upload(folder)` fills the data set oak/leaves."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.ranges = {}, []
    server.upload = lambda folder: server.files.update(
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
    )
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)  # read when it is imported, so by worker processes
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    forget()
    yield server
    server.shutdown()
    server.server_close()
    forget()


def forget():
    stored_files.filesystem.cache_clear()
    HfFileSystem.clear_instance_cache()


def opened(source, path, **fields):
    data = default_config().data
    data.update({"source": source, "path": str(path), "index": ""} | fields)
    return open_source(data, "train")


@pytest.mark.parametrize("kind", ["tar", "parquet", "array_record"])
def test_the_same_batches_as_the_folder(hub, tmp_path, kind):
    write_folder(tmp_path / "folder/train", photos())
    folder = opened("folder", tmp_path / "folder")
    if kind == "tar":
        write_shards(tmp_path / "up", photos(), "folder")
    elif kind == "array_record":
        prepare({"train": folder}, OutputFolder(str(tmp_path / "up")), Settings(shard_images=10), origin={})
    else:
        write_set(tmp_path / "up/data", {folder.relative_path(i): folder[i].image for i in range(len(folder))}, "hub")
    hub.upload(tmp_path / "up")
    uncopied = opened(kind, "hf://datasets/oak/leaves", copies_gib=0.0)
    assert uncopied.class_names == folder.class_names
    hub.ranges.clear()
    assert uncopied[3] == folder[3]
    if kind != "parquet":
        ((_, one),) = hub.ranges  # of this image alone
        assert one.endswith(f"-{int(one[6:].partition('-')[0]) + len(folder[3].image) - 1}")
    source = opened(kind, "hf://datasets/oak/leaves")
    assert_equal_batches(batches(source), batches(folder))
    hub.files.clear()
    assert_equal_batches(batches(source, stop=4), batches(folder, stop=4))  # from the copies


@pytest.mark.long
def test_worker_processes(hub, tmp_path):
    write_folder(tmp_path / "folder/train", photos())
    write_shards(tmp_path / "up", photos(), "folder")
    hub.upload(tmp_path / "up")
    source = opened("tar", "hf://datasets/oak/leaves", copies_gib=0.0)
    assert_equal_batches(batches(source, stop=4, num_workers=2), batches(opened("folder", tmp_path / "folder"), stop=4))


def test_a_data_set_that_does_not_exist_or_is_private(hub):
    with pytest.raises(MissingDataError, match=r"^hf://.*oak/none: .*not found.*authenticated.*your access$"):
        opened("tar", "hf://datasets/oak/none")


def test_no_such_files(hub, tmp_path):
    write_shards(tmp_path / "up", photos(), "folder")
    hub.upload(tmp_path / "up")
    with pytest.raises(MissingDataError, match=r"^hf://datasets/oak/leaves: no \.parquet files there"):
        opened("parquet", "hf://datasets/oak/leaves")
