import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from deit_jax.weights.errors import WeightsError, shown
from deit_jax.weights.files import encode, is_weights, is_workdir, read_file, write_files

from .tensor_files import TENSORS, RemovesAFile, assert_same, write_file


def test_safetensors_and_npz_round_trip(tmp_path):
    write_file(tmp_path / "deep" / "a.safetensors", TENSORS)
    assert_same(read_file(tmp_path / "deep" / "a.safetensors"), TENSORS)
    np.savez(tmp_path / "a.npz", **TENSORS)
    assert_same(read_file(tmp_path / "a.npz"), TENSORS)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.safetensors"]  # no temporary file


def test_strided_arrays_are_written(tmp_path):
    tensors = {"t": TENSORS["a.weight"].T, "flipped": TENSORS["a.weight"][:, ::-1], "scalar": np.float32(3).reshape(())}
    write_file(tmp_path / "a.safetensors", tensors)
    found = read_file(tmp_path / "a.safetensors")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)
        assert found[name].shape == tensor.shape


def test_equal_weights_are_equal_files_that_safetensors_reads():
    path = Path("a.safetensors")
    metadata = {f"key_{i}": f"caf\u00e9 {i}" for i in range(20)}
    contents = {encode(path, TENSORS, metadata=dict(order)) for order in (metadata.items(), reversed(metadata.items()))}
    (content,) = contents | {encode(path, TENSORS, metadata=metadata) for _ in range(20)}
    assert_same(safetensors.numpy.load(content), TENSORS)
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    assert json.loads(content[8 : 8 + length])["__metadata__"] == {"format": "pt", **metadata}


def test_folder_with_weights(tmp_path):
    write_file(tmp_path / "model.safetensors", TENSORS)
    assert_same(read_file(tmp_path), TENSORS)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("gone.safetensors", None, "there is no such file"),
        ("weights.h5", b"x", r"\.h5 is not a kind of weights file; give \.safetensors"),
        ("weights", b"x", "no suffix is not a kind"),
        ("a.safetensors", b"", "is empty"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        ("a.npz", b"\n <!DOCTYPE html><html>", "is a web page"),
        ("a.safetensors", b"\xff\xd8\xff\xe0 a photograph", "not a readable safetensors file, or damaged"),
        ("a.safetensors", struct.pack("<Q", 1 << 60) + b"{}", "not a readable safetensors file, or damaged"),
        ("a.npz", b"\xff\xd8\xff\xe0 a photograph", r"not a readable \.npz file"),
    ],
)
def test_invalid_files_are_rejected_in_one_line(tmp_path, name, content, complaint):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=complaint) as refusal:
        read_file(tmp_path / name)
    assert "\n" not in str(refusal.value) and str(tmp_path / name) in str(refusal.value)


def test_folder_without_weights(tmp_path):
    with pytest.raises(WeightsError, match=r"holds neither model\.safetensors nor pytorch_model\.bin"):
        read_file(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(WeightsError, match=r"--workdir of a training run; run\.py --mode=export"):
        read_file(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_truncated_files_are_rejected(tmp_path, suffix):
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


def test_npz_with_objects_executes_nothing(tmp_path):
    witness = tmp_path / "witness"
    witness.touch()
    np.savez(tmp_path / "a.npz", a=np.array([RemovesAFile(witness)], dtype=object))
    with pytest.raises(WeightsError, match="or holds objects"):
        read_file(tmp_path / "a.npz")
    assert witness.exists()


def test_write_errors_are_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="cannot be written"):
        write_file(tmp_path / "file" / "a.safetensors", TENSORS)
    with pytest.raises(WeightsError, match=r"written as \.safetensors or \.pth"):
        write_file(tmp_path / "a.npz", TENSORS)


def test_files_have_default_permissions(tmp_path):
    (tmp_path / "other").touch()
    write_file(tmp_path / "a.safetensors", TENSORS)
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_all_files_are_written_or_none(tmp_path):
    (tmp_path / "b.json").mkdir()
    with pytest.raises(WeightsError, match=r"b\.json cannot be written: it is a folder"):
        write_files({tmp_path / "a.safetensors": b"x", tmp_path / "b.json": b"{}"})
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


@pytest.mark.parametrize("source", [None, 3, b"bytes", object()])
def test_invalid_sources_are_rejected(source):
    with pytest.raises(WeightsError, match="from a path or a mapping of names to arrays, not from a"):
        read_file(source)


def test_unusual_paths_raise_one_line(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read"):
        read_file(tmp_path / ("x" * 300 + ".safetensors"))
    with pytest.raises(WeightsError, match=r"cannot be read|there is no such file"):
        read_file("~nobody_of_that_name/a.safetensors")
    write_file(tmp_path / "a.safetensors", TENSORS)
    (tmp_path / "a.safetensors").rename(tmp_path / "A.SAFETENSORS")
    assert_same(read_file(tmp_path / "A.SAFETENSORS"), TENSORS)


def test_files_and_workdirs_are_distinguished(tmp_path):
    assert is_weights(tmp_path / "gone.pth") and not is_weights(tmp_path / "gone") and not is_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert is_weights(tmp_path) and is_weights(tmp_path / "pytorch_model.bin")
    (tmp_path / "checkpoints").mkdir()
    assert not is_weights(tmp_path)


def test_shards_are_rejected(tmp_path):
    (tmp_path / "model.safetensors.index.json").touch()
    assert is_weights(tmp_path)
    with pytest.raises(WeightsError, match="several shards"):
        read_file(tmp_path)


def test_mutated_npz_files_are_rejected_or_read(tmp_path):
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
    """Parses a safetensors file independently: name to dtype, shape and bytes."""
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
    """Changes, removes, inserts or repeats a few bytes, or replaces digits of an offset or a shape."""
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


def test_mutated_safetensors_are_rejected_or_read_exactly(tmp_path):
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


def test_is_workdir(tmp_path):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").touch()
    assert not any(map(is_workdir, ("", "pretrained", "random", str(tmp_path), str(tmp_path / "gone.pth"))))
    (tmp_path / "checkpoints").mkdir()
    assert is_workdir(str(tmp_path)) and is_workdir(str(tmp_path / "gone"))


def test_shown_names_are_one_short_line():
    assert shown("caf\u00e9\n\x1b[2J") == r"caf\u00e9\n\x1b[2J".replace(r"\u00e9", "\u00e9")
    assert shown("a" * 200) == "a" * 150 + "..."
