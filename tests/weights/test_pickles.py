"""PyTorch's files. Most tests need PyTorch, which the long tier installs."""

import io
import pickle
import sys
import zipfile

import numpy as np
import pytest

from deit_jax.weights.errors import WeightsError
from deit_jax.weights.files import read_file

from .tensor_files import TENSORS, RemovesAFile, assert_same, write_file
from .test_wrappers import unwrap


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is installed by the long tier only")


@pytest.mark.long
@pytest.mark.parametrize("legacy", [False, True])
def test_both_pth_formats_are_read(tmp_path, torch, legacy):
    from argparse import Namespace

    state = {name: torch.from_numpy(tensor.copy()) for name, tensor in TENSORS.items()}
    checkpoint = {"model": state, "args": Namespace(lr=1e-3), "epoch": 3}  # as the reference's main.py writes
    torch.save(checkpoint, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    assert_same(unwrap(read_file(tmp_path / "a.pth"), None, "it"), TENSORS)


@pytest.mark.long
def test_pth_round_trip(tmp_path, torch):
    write_file(tmp_path / "a.pth", TENSORS, wrapper="model")
    assert set(torch.load(tmp_path / "a.pth", weights_only=True)) == {"model"}
    assert_same(unwrap(read_file(tmp_path / "a.pth"), None, "it"), TENSORS)


@pytest.mark.long
def test_bfloat16_and_parameters_are_read(tmp_path, torch):
    values = torch.tensor([1.0, -2.5, 3.140625]).bfloat16()
    torch.save({"a": values, "b": torch.nn.Parameter(values.float())}, tmp_path / "a.pth")
    found = unwrap(read_file(tmp_path / "a.pth"), None, "it")
    for name in "ab":
        np.testing.assert_array_equal(found[name], np.array([1.0, -2.5, 3.140625], np.float32))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sparse", "meta", "conjugate", "nested"])
def test_unsupported_torch_tensors_are_rejected(torch, kind):
    tensor = {
        "sparse": lambda: torch.eye(2).to_sparse(),
        "meta": lambda: torch.zeros(2, device="meta"),
        "conjugate": lambda: torch.zeros(2, dtype=torch.complex64).conj(),
        "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    }[kind]()
    with pytest.raises(WeightsError, match="it: a cannot be read as an array"):
        unwrap({"a": tensor}, None, "it")


@pytest.mark.long
@pytest.mark.parametrize("form", ["plain pickle", "torch.save", "inside a state dict", "zip by hand"])
def test_hostile_pth_executes_nothing(tmp_path, torch, form):
    witness, path = tmp_path / "witness", tmp_path / "a.pth"
    witness.touch()
    hostile = RemovesAFile(witness)
    if form == "plain pickle":
        path.write_bytes(pickle.dumps({"model": hostile}))
    elif form == "torch.save":
        torch.save(hostile, path)
    elif form == "inside a state dict":
        torch.save({"model": {"a": torch.zeros(2), "b": hostile}}, path)
    else:
        buffer = io.BytesIO()
        torch.save({"a": torch.zeros(2)}, buffer)
        with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(path, "w") as changed:
            for name in whole.namelist():
                content = pickle.dumps(hostile) if name.endswith("data.pkl") else whole.read(name)
                changed.writestr(name, content)
    with pytest.raises(
        WeightsError, match="holds code or objects other than tensors, which were not executed"
    ) as refusal:
        read_file(path)
    assert witness.exists()
    assert "\n" not in str(refusal.value)
    pickle.loads(pickle.dumps(hostile))  # without protection the code runs
    assert not witness.exists()


@pytest.mark.long
def test_damaged_or_foreign_pth_files_are_rejected(tmp_path, torch):
    path = tmp_path / "a.pth"
    torch.save({"model": {"a": torch.arange(1000.0)}}, path)
    whole = path.read_bytes()
    for end in range(1, len(whole), 211):
        path.write_bytes(whole[:end])
        with pytest.raises(WeightsError, match="is not a readable PyTorch file"):
            read_file(path)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(WeightsError, match="holds a list, not a state dict"):
        read_file(path)


def test_pth_without_pytorch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(WeightsError, match=r"\.pth files need PyTorch \(pip install torch\)"):
        read_file(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"\.pth files need PyTorch \(pip install torch\)"):
        write_file(tmp_path / "a.pth", TENSORS)
