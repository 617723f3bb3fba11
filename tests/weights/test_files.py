import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from deit_jax.weights.errors import WeightsError
from deit_jax.weights.files import encode, is_weights, read_file, unwrap, write_files

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([np.pi, -0.0], np.float32),
    "count": np.array(7, np.int64),
}


class RemovesAFile:
    """Pickled, it deletes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.remove, (str(self.path),)


def write_file(path, tensors, wrapper=None):
    write_files({path: encode(path, tensors, wrapper=wrapper)})


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert found[name].tobytes() == tensor.tobytes(), name


def test_safetensors_and_npz_come_back_to_the_bit(tmp_path):
    write_file(tmp_path / "deep" / "a.safetensors", TENSORS)
    assert_same(read_file(tmp_path / "deep" / "a.safetensors"), TENSORS)
    np.savez(tmp_path / "a.npz", **TENSORS)
    assert_same(read_file(tmp_path / "a.npz"), TENSORS)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.safetensors"]  # nothing unfinished left


def test_arrays_of_any_stride_are_written_as_they_look(tmp_path):
    tensors = {"t": TENSORS["a.weight"].T, "flipped": TENSORS["a.weight"][:, ::-1], "scalar": np.float32(3).reshape(())}
    write_file(tmp_path / "a.safetensors", tensors)
    found = read_file(tmp_path / "a.safetensors")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)
        assert found[name].shape == tensor.shape


def test_a_folder_stands_for_the_weights_in_it(tmp_path):
    write_file(tmp_path / "model.safetensors", TENSORS)
    assert_same(read_file(tmp_path), TENSORS)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("gone.safetensors", None, "there is no such file"),
        ("weights.h5", b"x", r"\.h5 is no kind of weights file; give \.safetensors"),
        ("weights", b"x", "no suffix is no kind"),
        ("a.safetensors", b"", "is empty"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        ("a.npz", b"\n <!DOCTYPE html><html>", "is a web page"),
        ("a.safetensors", b"\xff\xd8\xff\xe0 a photograph", "no readable safetensors file, or damaged"),
        ("a.safetensors", struct.pack("<Q", 1 << 60) + b"{}", "no readable safetensors file, or damaged"),
        ("a.npz", b"\xff\xd8\xff\xe0 a photograph", r"no readable \.npz file"),
    ],
)
def test_what_is_no_weights_file_is_refused_in_one_line(tmp_path, name, content, complaint):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=complaint) as refusal:
        read_file(tmp_path / name)
    assert "\n" not in str(refusal.value) and str(tmp_path / name) in str(refusal.value)


def test_a_folder_without_weights_says_what_it_is(tmp_path):
    with pytest.raises(WeightsError, match=r"holds neither model\.safetensors nor pytorch_model\.bin"):
        read_file(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(WeightsError, match=r"--workdir of a training run; run\.py --mode=export"):
        read_file(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "npz":
        np.savez(path, **TENSORS)
    else:
        write_file(path, TENSORS)
    whole = path.read_bytes()
    for end in range(1, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(WeightsError, match="damaged"):
            read_file(path)


def test_an_npz_with_objects_executes_nothing(tmp_path):
    witness = tmp_path / "witness"
    witness.touch()
    np.savez(tmp_path / "a.npz", a=np.array([RemovesAFile(witness)], dtype=object))
    with pytest.raises(WeightsError, match="or holds objects"):
        read_file(tmp_path / "a.npz")
    assert witness.exists()


def test_a_full_disk_or_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="cannot be written"):
        write_file(tmp_path / "file" / "a.safetensors", TENSORS)
    with pytest.raises(WeightsError, match=r"written as \.safetensors or \.pth"):
        write_file(tmp_path / "a.npz", TENSORS)


def test_files_are_readable_by_whoever_may_read_new_files(tmp_path):
    (tmp_path / "other").touch()
    write_file(tmp_path / "a.safetensors", TENSORS)
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_of_several_files_all_are_written_or_none(tmp_path):
    (tmp_path / "b.json").mkdir()
    with pytest.raises(WeightsError, match=r"b\.json cannot be written: it is a folder"):
        write_files({tmp_path / "a.safetensors": b"x", tmp_path / "b.json": b"{}"})
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


@pytest.mark.parametrize("source", [None, 3, b"bytes", object()])
def test_what_is_no_path_is_refused(source):
    with pytest.raises(WeightsError, match="from a path or a mapping of names to arrays, not from a"):
        read_file(source)


def test_odd_paths_are_told_in_one_line(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read"):
        read_file(tmp_path / ("x" * 300 + ".safetensors"))
    with pytest.raises(WeightsError, match=r"cannot be read|there is no such file"):
        read_file("~nobody_of_that_name/a.safetensors")
    write_file(tmp_path / "a.safetensors", TENSORS)
    (tmp_path / "a.safetensors").rename(tmp_path / "A.SAFETENSORS")
    assert_same(read_file(tmp_path / "A.SAFETENSORS"), TENSORS)


def test_files_and_workdirs_are_told_apart(tmp_path):
    assert is_weights(tmp_path / "gone.pth") and not is_weights(tmp_path / "gone") and not is_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert is_weights(tmp_path) and is_weights(tmp_path / "pytorch_model.bin")
    (tmp_path / "checkpoints").mkdir()
    assert not is_weights(tmp_path)


def test_shards_are_told_of(tmp_path):
    (tmp_path / "model.safetensors.index.json").touch()
    with pytest.raises(WeightsError, match="several shards"):
        read_file(tmp_path)


def test_mutated_npz_files_are_refused_or_read(tmp_path):
    rng, path = np.random.RandomState(1), tmp_path / "a.npz"
    refused = 0
    for save in (np.savez, np.savez_compressed):
        save(path, **TENSORS)
        whole = path.read_bytes()
        for _ in range(150):
            changed = bytearray(whole)
            changed[rng.randint(len(whole))] = rng.randint(256)
            path.write_bytes(bytes(changed))
            try:
                read_file(path)
            except WeightsError as refusal:
                assert "\n" not in str(refusal)
                refused += 1
    assert refused > 50


# --- a thousand damaged files ---------------------------------------------------------------------------------------


def reference_tensors(data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """What a safetensors file says, read by hand: name to type, shape and bytes."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    body = data[8 + size :]
    return {
        name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])]) for name, entry in header.items()
    }


DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U64": "u8",
          "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "?"}  # fmt: skip


def mutate(data: bytes, header_end: int, rng: np.random.RandomState, in_header: bool) -> bytes:
    """The file with a few bytes changed, removed, inserted or repeated, or digits of an offset or a shape replaced."""
    low, high = (0, header_end) if in_header else (header_end, len(data))
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(low, high)
        kind = rng.randint(6)
        digits = [i for i in range(8, header_end) if chr(data[i]).isdigit()]
        if kind == 0:
            changed[at : at + 1] = bytes([rng.randint(256)])
        elif kind == 1:
            changed[at : at + 1] = bytes([changed[min(at, len(changed) - 1)] ^ (1 << rng.randint(8))])
        elif kind == 2:
            del changed[at : at + rng.randint(1, 9)]
        elif kind == 3:
            changed[at:at] = rng.bytes(rng.randint(1, 9))
        elif kind == 4:
            changed[at:at] = changed[at : at + rng.randint(1, 33)]
        elif in_header:
            at = digits[rng.randint(len(digits))]
            changed[at : at + 1] = str(rng.randint(10)).encode()
        else:
            del changed[at:]
    return bytes(changed)


def test_a_thousand_mutated_safetensors_are_refused_or_read_as_they_are(tmp_path):
    rng = np.random.RandomState(0)
    tensors = {f"blocks.{i}.attn.qkv.weight": rng.normal(size=(9, 3)).astype(np.float32) for i in range(4)}
    tensors |= {"cls_token": np.ones((1, 1, 3), np.float16), "steps": np.arange(5)}
    whole = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    header_end = 8 + struct.unpack("<Q", whole[:8])[0]
    path = tmp_path / "a.safetensors"
    outcomes = {"refused": 0, "read": 0}
    for number in range(1000):
        data = mutate(whole, header_end, rng, in_header=number % 2 == 0)
        path.write_bytes(data)
        try:
            found = read_file(path)
        except WeightsError as refusal:
            assert "\n" not in str(refusal)
            outcomes["refused"] += 1
            continue
        expected = reference_tensors(data)
        assert set(found) == set(expected)
        for name, (kind, shape, content) in expected.items():
            assert found[name].dtype == np.dtype(DTYPES[kind]), (number, name)
            assert list(found[name].shape) == shape and found[name].tobytes() == content, (number, name)
        outcomes["read"] += 1
    assert outcomes["refused"] > 300 and outcomes["read"] > 100, outcomes  # both kinds were tried


# --- wrappers of training scripts -----------------------------------------------------------------------------------


def test_wrappers_are_taken_off():
    inner = {"a.weight": TENSORS["a.weight"]}
    for key in ("model", "state_dict", "model_state", "model_ema", "state_dict_ema"):
        assert_same(unwrap({key: inner, "epoch": 3}, None, "it"), inner)
    assert_same(unwrap({"module.a.weight": TENSORS["a.weight"]}, None, "it"), inner)
    assert_same(unwrap({"_orig_mod.a.weight": TENSORS["a.weight"]}, None, "it"), inner)
    assert_same(unwrap({"_orig_mod.module.a.weight": TENSORS["a.weight"]}, None, "it"), inner)
    # A prefix that only some names have is part of them.
    mixed = {"module.a.weight": TENSORS["a.weight"], "a.weight": TENSORS["a.weight"] + 1}
    assert_same(unwrap(mixed, None, "it"), mixed)


def test_mmengines_average_is_where_others_keep_the_raw_weights():
    raw, averaged = {"a": np.zeros(2)}, {"a": np.ones(2)}
    saved = {"state_dict": averaged, "ema_state_dict": {"module.a": raw["a"], "steps": np.array(7)}, "meta": {}}
    assert_same(unwrap(saved, "raw", "it"), raw)
    assert_same(unwrap(saved, None, "it"), raw)
    assert_same(unwrap(saved, "ema", "it"), averaged)


def test_names_cannot_break_a_message():
    name = "a\n\x1b[31m" + "x" * 100_000
    with pytest.raises(WeightsError) as refusal:
        unwrap({name: 3}, None, "it")
    assert "\n" not in str(refusal.value) and "\x1b" not in str(refusal.value) and len(str(refusal.value)) < 400


def test_raw_and_averaged_weights_are_told_apart():
    raw, averaged = {"a": np.zeros(2)}, {"a": np.ones(2)}
    both = {"model": raw, "model_ema": averaged, "epoch": 3, "args": object()}
    assert_same(unwrap(both, None, "it"), raw)
    assert_same(unwrap(both, "raw", "it"), raw)
    assert_same(unwrap(both, "ema", "it"), averaged)
    with pytest.raises(WeightsError, match=r"it holds no ema weights, only 1 \(model\)"):
        unwrap({"model": raw}, "ema", "it")
    with pytest.raises(WeightsError, match="does not say that it holds a moving average"):
        unwrap(raw, "ema", "it")
    with pytest.raises(WeightsError, match="which='mean' is neither"):
        unwrap(raw, "mean", "it")


def test_entries_that_are_no_tensors_are_refused():
    with pytest.raises(WeightsError, match="it: epoch is a int, not a tensor"):
        unwrap({"a": np.zeros(2), "epoch": 3}, None, "it")
    with pytest.raises(WeightsError, match=r"it\['model'\] holds no tensors"):
        unwrap({"model": {}}, None, "it")


# --- PyTorch's files (the long tier has PyTorch) --------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is installed by the long tier only")


@pytest.mark.long
@pytest.mark.parametrize("legacy", [False, True])
def test_pth_files_are_read_in_both_of_pytorchs_formats(tmp_path, torch, legacy):
    from argparse import Namespace

    state = {name: torch.from_numpy(tensor.copy()) for name, tensor in TENSORS.items()}
    checkpoint = {"model": state, "args": Namespace(lr=1e-3), "epoch": 3}  # as the reference's main.py writes
    torch.save(checkpoint, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    assert_same(unwrap(read_file(tmp_path / "a.pth"), None, "it"), TENSORS)


@pytest.mark.long
def test_pth_files_come_back_to_the_bit(tmp_path, torch):
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
def test_tensors_that_are_no_arrays_are_told_of(torch, kind):
    tensor = {
        "sparse": lambda: torch.eye(2).to_sparse(),
        "meta": lambda: torch.zeros(2, device="meta"),
        "conjugate": lambda: torch.zeros(2, dtype=torch.complex64).conj(),
        "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    }[kind]()
    with pytest.raises(WeightsError, match="it: a cannot be read as an array"):
        unwrap({"a": tensor}, None, "it")


@pytest.mark.long
@pytest.mark.parametrize("how", ["plain pickle", "torch.save", "inside a state dict", "zip by hand"])
def test_a_hostile_pth_executes_nothing(tmp_path, torch, how):
    witness, path = tmp_path / "witness", tmp_path / "a.pth"
    witness.touch()
    hostile = RemovesAFile(witness)
    if how == "plain pickle":
        path.write_bytes(pickle.dumps({"model": hostile}))
    elif how == "torch.save":
        torch.save(hostile, path)
    elif how == "inside a state dict":
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
    pickle.loads(pickle.dumps(hostile))  # the trap would have worked
    assert not witness.exists()


@pytest.mark.long
def test_damaged_or_foreign_pth_files_are_refused(tmp_path, torch):
    path = tmp_path / "a.pth"
    torch.save({"model": {"a": torch.arange(1000.0)}}, path)
    whole = path.read_bytes()
    for end in range(1, len(whole), 211):
        path.write_bytes(whole[:end])
        with pytest.raises(WeightsError, match="no readable PyTorch file"):
            read_file(path)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(WeightsError, match="holds a list, not a state dict"):
        read_file(path)


def test_without_pytorch_a_pth_file_says_what_it_needs(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(WeightsError, match=r"\.pth files need PyTorch \(pip install torch\)"):
        read_file(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"\.pth files need PyTorch \(pip install torch\)"):
        write_file(tmp_path / "a.pth", TENSORS)
