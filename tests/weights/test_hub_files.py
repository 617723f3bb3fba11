"""Weights from repositories of the hub, and uploads to it, with a server on loopback."""

import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from huggingface_hub import constants

from deit_jax.models import create_model
from deit_jax.weights import WeightsError, load_weights, save_weights
from deit_jax.weights.class_names import read_class_names
from deit_jax.weights.files import is_workdir, kind_of
from deit_jax.weights.hub_files import fetch_weights, is_name, push_files
from tests.hub_server import TOKEN, Repository, hub_server, point_to

FIELDS = {"embed_dim": 12, "depth": 1, "num_heads": 2}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server(monkeypatch, tmp_path / "home") as server:
        yield server


@pytest.fixture(scope="module")
def model():
    return create_model("deit_tiny_patch16_224", 3, 32, **FIELDS)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, model):
    """A folder in timm's layout, and its variables."""
    import jax

    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32))
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes)
    folder = tmp_path_factory.mktemp("exported")
    save_weights(variables, model, folder, class_names=("ash", "elm", "oak"))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n")
    return folder, variables


def upload(server, folder, **fields):
    server.repositories["oak/leaves"] = found = Repository(**fields)
    found.branches["main"] = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found


def refusal(call, *arguments, **fields):
    with pytest.raises(WeightsError) as error:
        call(*arguments, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_weights_and_class_names_are_read(hub, exported, model):
    folder, variables = exported
    upload(hub, folder)
    loaded = load_weights("hf:oak/leaves", model)
    np.testing.assert_array_equal(loaded["params"]["head"]["bias"], variables["params"]["head"]["bias"])
    assert read_class_names("hf:oak/leaves") == ("ash", "elm", "oak")
    hub.repositories.clear()
    point_to("http://127.0.0.1:9", _Patch())
    assert fetch_weights("hf:oak/leaves").is_dir()  # from the cache


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("knows_commit", [True, False])
def test_a_cached_repository_without_a_file_is_read_offline(hub, exported, monkeypatch, missing, knows_commit):
    """With its commit, the hub also says of a file that it is missing, which its client records."""
    hub.names_commit_of_missing_files = knows_commit
    files = upload(hub, exported[0]).branches["main"]
    content = files.pop(missing)
    if missing == "model.safetensors":
        files["pytorch_model.bin"] = content
    monkeypatch.setattr("deit_jax.weights.hub_files.check_hash", lambda *_: None)  # of other tests
    online = fetch_weights("hf:oak/leaves")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # unlike a closed port, without retries
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert fetch_weights("hf:oak/leaves") == online
    unknown = [str(each.message) for each in caught if "config.json is not in the local cache" in str(each.message)]
    assert len(unknown) == (missing == "config.json" and not knows_commit)


class _Patch:
    """Leaves what the fixture's own monkeypatch restores."""

    setenv = staticmethod(lambda *_: None)
    setattr = staticmethod(setattr)


def test_a_revision(hub, exported, model):
    repository = upload(hub, exported[0])
    repository.branches["v2"] = repository.branches.pop("main")
    assert "has no revision 'main'" in refusal(fetch_weights, "hf:oak/leaves@main")
    assert fetch_weights("hf:oak/leaves@v2").joinpath("config.json").is_file()
    assert "has no revision 'v3': give a branch" in refusal(load_weights, "hf:oak/leaves@v3", model)


@pytest.mark.parametrize("spec", ["hf:leaves", "hf:", "hf:a/b/c", "hf:oak/leaves@", "hf:../x", "hf:oak/le aves"])
def test_names_that_are_none(spec):
    assert kind_of(spec) == "hub" and not is_workdir(spec)
    assert refusal(fetch_weights, spec).startswith(f"{spec}: give hf:OWNER/NAME or hf:OWNER/NAME@REVISION")


def test_repositories_that_cannot_be_read(hub, exported, monkeypatch):
    message = "hf:oak/none: there is no such repository, or it is private: correct the name, or log in"
    assert refusal(fetch_weights, "hf:oak/none").startswith(message)
    upload(hub, exported[0], private=True)
    assert "or it is private" in refusal(fetch_weights, "hf:oak/leaves")
    hub.repositories["oak/leaves"].private, hub.repositories["oak/leaves"].gated = False, True
    assert "needs your consent to its terms" in refusal(fetch_weights, "hf:oak/leaves")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch_weights("hf:oak/leaves").is_dir()
    hub.repositories["oak/empty"] = Repository()
    assert "has neither model.safetensors nor pytorch_model.bin" in refusal(fetch_weights, "hf:oak/empty")
    point_to("http://127.0.0.1:9", monkeypatch)
    message = refusal(fetch_weights, "hf:oak/other")
    assert message.startswith("hf:oak/other: is not in the local cache, and the hub cannot be reached (ConnectError: ")
    assert "HF_HUB_OFFLINE=1 skips the retries" in message


def test_a_cache_that_cannot_be_written(hub, exported, monkeypatch, tmp_path):
    upload(hub, exported[0])
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(file / "cache"))
    message = refusal(fetch_weights, "hf:oak/leaves")
    assert message.startswith("hf:oak/leaves: the hub's cache cannot be written (HF_HOME selects another folder): ")


QUIET = """
import time
time.sleep = lambda seconds: None  # between retries
from deit_jax.weights.errors import WeightsError
from deit_jax.weights.hub import fetch_pretrained
from deit_jax.weights.hub_files import fetch_weights
for fetch, name in ((fetch_pretrained, "deit_tiny_patch16_224"), (fetch_weights, "hf:oak/leaves")):
    try:
        fetch(name)
    except WeightsError as error:
        print(error)
"""


def test_without_a_network_a_new_process_prints_only_the_error(tmp_path):
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_TOKEN": ""}
    ended = subprocess.run([sys.executable, "-c", QUIET], env=environment, capture_output=True, text=True, check=True)
    pretrained, repository = ended.stdout.splitlines()
    assert ended.stderr == ""
    assert "nor from the cache (ConnectError: " in pretrained and pretrained.endswith(
        "HF_HUB_OFFLINE=1 skips the retries"
    )
    assert "train from random weights (--config.model.weights=)" in pretrained
    assert "the hub cannot be reached (ConnectError: " in repository


def test_a_damaged_file_in_the_cache(hub, exported):
    upload(hub, exported[0])
    path = (fetch_weights("hf:oak/leaves") / "model.safetensors").resolve()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "is damaged or another file" in refusal(fetch_weights, "hf:oak/leaves")


class TestPush:
    def push(self, folder, repository="oak/leaves", private=False, revision=None):
        return push_files(
            folder,
            ["README.md", "model.safetensors", "config.json"],
            repository,
            private=private,
            revision=revision,
            message="a",
        )

    def test_files_arrive(self, hub, exported, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        address = self.push(exported[0], private=True)
        assert address == f"{hub.address}/oak/leaves/commit/abc"
        repository = hub.repositories["oak/leaves"]
        assert repository.private and hub.messages == ["a"] and hub.metadata == {"license": "mit"}
        assert repository.branches == {"main": {path.name: path.read_bytes() for path in exported[0].iterdir()}}
        assert read_class_names("hf:oak/leaves") == ("ash", "elm", "oak")

    def test_a_branch_of_an_existing_repository(self, hub, exported, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        self.push(exported[0])
        folder = shutil.copytree(exported[0], tmp_path / "second")
        (folder / "config.json").write_text(json.dumps({"label_names": ["1", "2", "3"]}))
        for _ in range(2):  # the branch is there the second time
            self.push(folder, revision="second")
        assert read_class_names("hf:oak/leaves") == ("ash", "elm", "oak")
        assert read_class_names("hf:oak/leaves@second") == ("1", "2", "3")

    def test_an_existing_public_repository_does_not_count_as_private(self, hub, exported, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub.repositories["oak/leaves"] = Repository()
        message = refusal(self.push, exported[0], private=True)
        assert message.startswith(
            "hf:oak/leaves: is public, and --private creates only new repositories: make it private"
        )
        assert hub.repositories["oak/leaves"].branches == {"main": {}} and not hub.large
        hub.repositories["oak/leaves"].private = True
        self.push(exported[0], private=True)
        assert "README.md" in hub.repositories["oak/leaves"].branches["main"]

    def test_refusals(self, hub, exported, monkeypatch):
        rest = f"; the files are in {exported[0]}, and the same command uploads them again"
        message = refusal(self.push, exported[0])
        assert message.startswith("hf:oak/leaves: writing needs a token: log in") and message.endswith(rest)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        message = refusal(self.push, exported[0], "elm/leaves")
        assert message == f"hf:elm/leaves: your token may not write there: use one with write access to elm{rest}"
        point_to("http://127.0.0.1:9", monkeypatch)
        message = refusal(self.push, exported[0])
        assert "hf:oak/leaves: the hub cannot be reached (ConnectError: " in message and message.endswith(rest)


def test_names():
    assert all(map(is_name, ("oak/leaves", "Oak-1/deit_tiny.v2")))
    assert not any(map(is_name, ("oak", "/oak", "oak/", "oak/a--b", "-oak/a", "oak/a..b")))
