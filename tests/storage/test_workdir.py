import ast
import os
from pathlib import Path

import pytest

from deit_jax.errors import UserError
from deit_jax.storage import workdir as module
from deit_jax.storage.checkpoints import CheckpointPlaces
from deit_jax.storage.files import UnreadableError
from deit_jax.storage.workdir import CONFIG, RESULTS, Workdir, WorkdirError
from deit_jax.training.checkpointing import load_state
from tests.other_user import another_user, folder_of_another_user

PACKAGE = Path(module.__file__).parents[1]


def test_str_of_a_workdir_is_the_path_as_typed():
    workdir = Workdir.at("runs/a")
    assert Workdir.at(workdir) is workdir and str(Workdir.at(Path("runs/a"))) == str(workdir) == "runs/a"
    assert workdir.address(CONFIG) == "runs/a/config.json" and str(workdir.teacher) == "runs/a/teacher"
    assert str(workdir.checkpoints) == f"{Path.cwd()}/runs/a/checkpoints"  # as Orbax wants it
    assert not workdir.is_there() and not workdir.has(CONFIG)


def test_a_missing_file_is_read_as_none(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        assert Workdir.at(place).read(CONFIG) is None and Workdir.at(place).read_json(CONFIG) is None


def test_an_unreadable_file_is_reported_in_one_line(tmp_path):
    workdir = Workdir.at(tmp_path)
    for content, wrong in (
        (b'{"a": 1', r"is damaged \(.*line 1"),
        (b"\xff", r"cannot be read \(.*utf-8"),
        (b"", "is damaged"),
    ):
        (tmp_path / RESULTS).write_bytes(content)
        with pytest.raises(UnreadableError, match=rf"^{tmp_path}/results\.json {wrong}"):
            workdir.read_json(RESULTS)
    (tmp_path / CONFIG).mkdir()
    with pytest.raises(UnreadableError, match=r"config\.json cannot be read \(.*Is a directory"):
        workdir.read(CONFIG)


def test_a_workdir_that_cannot_be_looked_at_is_reported_in_one_line():
    with folder_of_another_user() as folder:
        with another_user():
            (folder / "run/checkpoints").mkdir(parents=True)
            (folder / "run").chmod(0)
        for place, reason in ((folder / "run", "Permission denied"), (folder / ("x" * 300), "File name too long")):
            workdir, places = Workdir.at(place), Workdir.at(place).checkpoints
            looks = [lambda: workdir.has(CONFIG), places.exist, places.have_manifests, places.steps]  # noqa: B023
            looks += [lambda: places.has(1), lambda: places.is_sealed(1), lambda: load_state(workdir)]  # noqa: B023
            looks += [workdir.is_there] if "long" in reason else []
            for look in looks:
                with (
                    another_user(),
                    pytest.raises(UnreadableError, match=rf"^{folder}/.* cannot be read \({reason}\); fix"),
                ):
                    look()


def test_write_creates_the_workdir_and_replaces_files(tmp_path):
    workdir = Workdir.at(tmp_path / "new" / "run")
    workdir.write_json(RESULTS, {"step": 3, "loss": float("nan")})
    assert workdir.read_json(RESULTS) == {"step": 3, "loss": None, "nonfinite_values": 1}
    workdir.write(RESULTS, "[]")
    assert workdir.read_json(RESULTS) == [] and os.listdir(workdir.path) == [RESULTS]


def test_a_write_error_is_one_line_of_the_given_type(tmp_path):
    (tmp_path / "file").touch()
    workdir = Workdir.at(tmp_path / "file")
    where = rf"{tmp_path}/file/config\.json cannot be written"
    with pytest.raises(WorkdirError, match=rf"^{where} \(File exists\); fix that$"):
        workdir.write_json(CONFIG, {})

    class OwnError(UserError):
        pass

    with pytest.raises(OwnError, match=rf"^so: {where} \(File exists\); try later$"):
        workdir.write(CONFIG, "", error=lambda line: OwnError(f"so: {line}"), then="try later")


def test_an_unfinished_folder_is_not_a_checkpoint(tmp_path):
    places = CheckpointPlaces(tmp_path / "checkpoints")
    assert places.steps() == [] and not places.exist() and not places.have_manifests()
    places.prepare()
    places.mark_manifests()
    assert places.exist() and places.have_manifests()
    for step in (5, 40, 300):
        places.begin(step)
        places.new_state(step).mkdir()
        (places.new_state(step) / "weights").write_bytes(bytes(step))
    assert places.is_unfinished(40) and not places.is_sealed(40)
    places.seal(40, {"top1": 1.5})
    assert places.is_sealed(40) and not places.is_unfinished(40) and places.facts(40) == {"top1": 1.5}
    places.check(40)
    places.discard(300)
    assert places.steps() == [5, 40] and not places.has(300)
    names = [places.set_aside(40)]
    places.begin(40)
    names.append(places.set_aside(40))
    places.abandon(5)
    assert names == ["40.damaged", "40.damaged.damaged"] and places.steps() == []
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["40.damaged", "40.damaged.damaged", "format.json"]
    (tmp_path / "checkpoints/7.discarded").mkdir()  # of a process that was killed while it removed a place
    places.prepare()
    assert not (tmp_path / "checkpoints/7.discarded").exists()


# --- Nothing else opens the files of a workdir ----------------------------------------------------------------------------------

PACKAGES = ("training", "modes", "reporting", "evaluation", "inference", "weights")
CALLS = {
    "open", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "touch", "unlink", "rename", "replace", "rmtree",
    "iterdir", "glob", "rglob", "exists", "is_file", "is_dir", "fsync", "remove", "makedirs",
}  # fmt: skip
# Files outside workdirs, or written by a library into a given folder.
OTHERS = {
    "modes/analyze.py": "images that a user names; the folder of the pictures",
    "modes/export.py": "the folder of an export",
    "modes/exported_folder.py": "the folder of an export",
    "modes/preview.py": "--held_out_list",
    "reporting/html.py": "the package's own style sheet",
    "reporting/plots.py": "the folder of a picture",
    "reporting/profile.py": "/proc",
    "reporting/standard_streams.py": "/dev/null",
    "reporting/tensorboard.py": "the folder of TensorBoard's event files",
    "reporting/weights_and_biases.py": "W&B's own files",
    "weights/class_names.py": "next to weights files; the ImageNet names of TFDS",
    "weights/files.py": "weights files",
    "weights/hub_files.py": "weights files of the hub and their digests",
    "weights/program_file.py": "programs of teachers",
    "weights/saving.py": "weights files",
}
OWN_NAMES = {value for name, value in vars(module).items() if name.isupper() and "." in value} - {CONFIG}


def file_accesses(source):
    """The names of the calls that open, look for or change files."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = getattr(getattr(node.func, "value", None), "id", "")
            # Not dataclasses.replace, str.replace(old, new), state.replace(field=...), Image.open.
            text = name == "replace" and owner != "os"
            if name in CALLS and not text and owner != "Image":
                yield name


def modules():
    return {
        str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in (PACKAGE / package).glob("*.py")
    }


def test_only_storage_opens_files_of_a_workdir():
    found = {name for name, source in modules().items() if any(file_accesses(source))}
    assert found - set(OTHERS) == set(), "files of a workdir are read and written by deit_jax.storage.workdir"
    assert set(OTHERS) - found == set(), "these open no files any more: take them from the list"


def test_names_of_workdir_files_are_in_one_module():
    for name, source in modules().items():
        texts = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
        assert not texts & OWN_NAMES, name
    assert {"metrics.jsonl", "results.json", "report.html", "rollbacks.json"} < OWN_NAMES


def test_file_accesses_detects_every_kind_of_access():
    source = (
        "open(p)\nos.open(p, 0)\np.read_text()\nos.replace(a, b)\np.rename(q)\np.parent.mkdir()\n(a / 'b').exists()"
    )
    assert len(list(file_accesses(source))) == 7
    assert (
        list(file_accesses("text.replace('a', 'b')\nstate.replace(step=1)\ndataclasses.replace(x)\nImage.open(f)"))
        == []
    )
