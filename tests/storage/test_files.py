import contextlib
import errno
import json
import math
import os
import stat

import pytest

from deit_jax.errors import UserError
from deit_jax.storage.files import GrowingFile, disk_faults, write_file, write_json


def test_json_files_are_replaced_atomically(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2} and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("unable", [None, errno.EINVAL, errno.EIO])
def test_a_file_is_synced_with_its_folder_if_the_file_system_can(tmp_path, monkeypatch, unable):
    synced, fsync = [], os.fsync

    def observed(handle):
        synced.append(stat.S_ISDIR(os.fstat(handle).st_mode))
        if unable and synced[-1]:
            raise OSError(unable, os.strerror(unable))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", observed)
    with pytest.raises(OSError, match="Input/output error") if unable == errno.EIO else contextlib.nullcontext():
        write_json(tmp_path / "results.json", {"a": 1})
    assert synced == [False, True]


def refuse(name):
    raise ValueError(f"{name} is not JSON")


def test_non_finite_numbers_become_null_and_are_counted(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": [1.5, math.nan, (math.inf,)], "b": {"c": -math.inf}, "d": None, "e": True})
    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content == {"a": [1.5, None, [None]], "b": {"c": None}, "d": None, "e": True, "nonfinite_values": 3}
    write_json(path, [math.nan, 1])
    assert json.loads(path.read_text(), parse_constant=refuse) == [None, 1]


def test_write_file_creates_folders_and_reports_errors_in_one_line(tmp_path):
    write_file(tmp_path / "a" / "b" / "page.html", "\u82b1", UserError)
    assert (tmp_path / "a/b/page.html").read_bytes() == "\u82b1".encode()
    line = rf"^{tmp_path}/a/b/page\.html/x cannot be written \(File exists\); take another$"
    with pytest.raises(UserError, match=line):
        write_file(tmp_path / "a/b/page.html/x", "", UserError, then="take another")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file"), "No space left on device"),
        (OSError("of a library: Disk quota exceeded [path]"), "Disk quota exceeded"),
        (OSError("without a number"), "without a number"),
    ],
)
def test_disk_faults_reports_only_the_reason(fault, reason):
    with pytest.raises(UserError) as error, disk_faults(lambda words: UserError(f"so: {words}")):
        raise fault
    assert str(error.value) == f"so: {reason}" and error.value.__cause__ is fault


def test_append_is_unbuffered_and_begin_replaces_the_lines(tmp_path):
    path = tmp_path / "rows"
    file = GrowingFile(path)
    file.begin("1\n")
    file.append("2")
    assert path.read_text() == "1\n2\n"
    file.begin("0\n")
    file.append("1")
    file.sync()
    file.close()
    file.close()
    assert path.read_text() == "0\n1\n" and list(tmp_path.iterdir()) == [path]
