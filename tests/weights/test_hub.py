"""load_pretrained from a local server with the hub's protocol, in separate processes."""

import hashlib
import http.server
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from deit_jax.weights import WeightsError, hub, load_pretrained
from deit_jax.weights.files import encode
from tests.end_to_end.commands import forked
from tests.models.timm_names import state_dict_shapes, timm_tensor

NAME = "deit_tiny_distilled_patch16_224"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubHandler(http.server.BaseHTTPRequestHandler):
    """HEAD and GET of /<repository>/resolve/<revision>/<file>, with the hub's headers of large files."""

    protocol_version = "HTTP/1.1"

    def answer(self, with_content):
        self.server.requests.append((self.command, self.path))
        content = self.server.files.get(self.path.split("?")[0])
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        declared = self.server.declared_hash or hashlib.sha256(content).hexdigest()
        self.send_response(200)
        self.send_header("ETag", f'"{declared}"')
        self.send_header("X-Linked-Etag", f'"{declared}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_content:
            self.wfile.write(content)

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def weights():
    """A file as in timm's repository of NAME, and the bias of its class head."""
    tensors = {name: timm_tensor(name, shape) for name, shape in state_dict_shapes()[NAME].items()}
    return encode(Path("model.safetensors"), tensors), timm_tensor("head.bias", (1000,))[:3].tolist()


@pytest.fixture
def server(weights):
    """The server; `.requests` lists requests, `.declared_hash` sets a false hash."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.requests, server.declared_hash = [], None
    server.files = {
        f"/timm/{NAME}.fb_in1k/resolve/{revision}/model.safetensors": weights[0] for revision in ("main", "v1")
    }
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def print_loaded(name, arguments):
    """Prints the bias of the loaded class head, or the one-line error."""
    try:
        model, variables = load_pretrained(name, **arguments)
        print(type(model).__name__, model.image_size, variables["params"]["head"]["bias"][:3].tolist())
    except WeightsError as error:
        print("refused:", error)


def load(server, home, *, name=NAME, offline=False, environment=(), **arguments):
    """Returns the output of a process that loads from `server` with its cache in `home`."""
    environment = (
        os.environ
        | dict(environment)
        | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
    )
    done = forked(print_loaded, name, arguments, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def assert_loaded(printed, weights, image_size=224):
    kind, size, bias = printed.split(" ", 2)
    assert (kind, int(size)) == ("VisionTransformer", image_size)
    np.testing.assert_allclose(json.loads(bias), weights[1], rtol=1e-6)


def test_weights_are_cached_and_verified_offline(server, weights, tmp_path):
    assert_loaded(load(server, tmp_path), weights)
    fetched = [path for method, path in server.requests if method == "GET" and path.endswith(".safetensors")]
    assert len(fetched) == 1
    assert_loaded(load(server, tmp_path, image_size=384), weights, image_size=384)
    server.requests.clear()
    assert_loaded(load(server, tmp_path, offline=True), weights)
    assert server.requests == []
    # A damaged file in the cache is detected, also offline.
    (blob,) = (path for path in tmp_path.rglob("blobs/*") if path.is_file())
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    printed = load(server, tmp_path, offline=True)
    assert (
        printed.startswith("refused: ")
        and "is damaged or another file: its SHA-256 is" in printed
        and "\n" not in printed
    )


def test_wrong_hash_is_rejected(server, tmp_path):
    server.declared_hash = "0" * 64
    printed = load(server, tmp_path)
    assert printed.startswith("refused: ") and ", not 0000000000000000" in printed
    blob = printed.split()[1]  # the file itself, not a link to it, so that deleting it helps
    Path(blob).unlink()
    server.declared_hash = None
    assert load(server, tmp_path).startswith("VisionTransformer")


def test_cache_without_links_is_verified_offline(server, weights, tmp_path):
    plain = {"environment": {"HF_HUB_DISABLE_SYMLINKS": "1"}}
    assert_loaded(load(server, tmp_path, **plain), weights)
    assert_loaded(load(server, tmp_path, offline=True, **plain), weights)
    (copy,) = tmp_path.rglob("model.safetensors")
    assert not copy.is_symlink()
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    assert "is damaged or another file" in load(server, tmp_path, offline=True, **plain)


def test_given_hash_is_verified(server, weights, tmp_path):
    right = hashlib.sha256(weights[0]).hexdigest()[:8]  # as many digits as the authors' file names have
    assert_loaded(load(server, tmp_path, sha256=right), weights)
    assert "is damaged or another file" in load(server, tmp_path, sha256="a1311bcf")


def test_unavailable_files_raise_one_line(server, tmp_path):
    printed = load(server, tmp_path, name="deit_small_patch16_224")
    assert printed.startswith(
        "refused: timm/deit_small_patch16_224.fb_in1k/model.safetensors is available neither from"
    )
    assert "\n" not in printed
    assert "refused: timm/" in load(server, tmp_path, offline=True)


def test_revision_is_requested_and_the_file_must_fit(server, tmp_path):
    printed = load(server, tmp_path, revision="v1", num_classes=7)
    assert any("/resolve/v1/" in path for _, path in server.requests)
    assert "head.bias (1000,), not (7,)" in printed and "heads='reset_if_needed'" in printed


def test_list_pretrained():
    names = hub.list_pretrained()
    assert len(names) == 9 and "regnety_160" in names and "deit_base_distilled_patch16_384" in names
    with pytest.raises(WeightsError, match="no published weights of regnety_040"):
        load_pretrained("regnety_040")
    with pytest.raises(ValueError, match="unknown model 'deit_small'"):
        load_pretrained("deit_small")


def test_missing_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match="pip install huggingface_hub"):
        load_pretrained(NAME)
