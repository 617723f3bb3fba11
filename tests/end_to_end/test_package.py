"""The installed package: built, installed into a folder and used from an empty one."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from deit_jax.version import __version__
from tests.inference.conftest import CHINA, FLOWER

from . import commands
from .commands import ROOT

pytestmark = pytest.mark.long

SHORT = [
    "--config=configs/quickstart.py:no_teacher",
    "--config.train.max_steps=3",
    "--config.data.max_eval_images=64",
    "--config.model.overrides.depth=1",
]


def call(*command, cwd, **environment):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=commands.environment() | {"PYTHONPATH": ""} | environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """(source distribution, wheel built from it), of a copy, because building leaves files next to the sources."""
    folder = tmp_path_factory.mktemp("dist")
    tree = folder / "tree"
    for name in ("benchmarks", "configs", "deit_jax", "docs", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in filter(Path.is_file, ROOT.iterdir()):
        shutil.copy(file, tree)
    made = call("-m", "build", "--no-isolation", "--outdir", folder, tree, cwd=folder)
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    """A folder with only the installed package."""
    folder = tmp_path_factory.mktemp("site")
    done = call(
        "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, archives[1], cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return tmp_path_factory.mktemp("empty")


@pytest.fixture
def use(installed, empty):
    """Runs `python -m deit_jax` of the installed package in a folder outside of the repository."""

    def used(*arguments):
        return call("-m", "deit_jax", *arguments, cwd=empty, PYTHONPATH=str(installed))

    return used


def files_of(folder):
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_contains_only_the_package_its_data_and_the_configurations(archives):
    names = {name for name in zipfile.ZipFile(archives[1]).namelist() if ".dist-info/" not in name}
    package = {f"deit_jax/{name}" for name in files_of(ROOT / "deit_jax")}
    configs = {f"deit_jax/configs/{name}" for name in files_of(ROOT / "configs")}
    assert names == package | configs
    assert {"deit_jax/py.typed", "deit_jax/reporting/report.css", "deit_jax/configs/deit.py"} <= names


def test_both_archives_contain_the_licences_and_the_version(archives):
    source, wheel = archives
    assert source.name == f"deit_jax-{__version__}.tar.gz" and wheel.name == f"deit_jax-{__version__}-py3-none-any.whl"
    licences = ("LICENSE", "deit_jax/data/embedded/LICENSE.fashion_mnist")
    names = zipfile.ZipFile(wheel).namelist()
    assert all(f"deit_jax-{__version__}.dist-info/licenses/{name}" in names for name in licences)
    with tarfile.open(source) as archive:
        members = archive.getnames()
    assert all(
        f"deit_jax-{__version__}/{name}" in members for name in (*licences, "configs/deit.py", "requirements.txt")
    )


def test_a_run_a_report_and_predictions_need_no_repository(use, empty):
    trained = use(*SHORT, "--workdir=run")
    assert trained.returncode == 0, trained.stdout[-3000:] + trained.stderr[-3000:]
    assert "configs/quickstart.py is not in this folder" in trained.stdout and "Fashion-MNIST" in trained.stdout
    page = empty / "run" / "report.html"
    assert "</style>" in page.read_text() and "Confusion matrix" in page.read_text()
    page.unlink()
    reported = use("--mode=report", "--workdir=run")
    assert reported.returncode == 0 and page.exists(), reported.stderr[-3000:]
    predicted = use("--mode=predict", "--workdir=run", CHINA, FLOWER)
    assert predicted.returncode == 0, predicted.stderr[-3000:]
    assert Path(CHINA).name in predicted.stdout and "2 images" in predicted.stdout


def test_list_version_and_errors_of_the_installed_package(use, installed):
    assert use("--version").stdout.startswith(f"deit_jax {__version__}\nPython 3.")
    assert "configs/ablation.py:no_mixup" in use("--list=table8").stdout
    done = use("--config=configs/deti.py", "--workdir=run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "configs/deit.py" in done.stderr and "configs/quickstart.py" in done.stderr
    where = use("--mode=export", "--config=configs/deit.py:huge").stderr  # the message comes from the package
    assert "tiny | small | base" in where


def test_the_installed_package_is_typed(installed, empty):
    pytest.importorskip("mypy")
    (empty / "mine.py").write_text("import deit_jax\nnames: int = deit_jax.list_models()\n")
    done = call("-m", "mypy", "--follow-imports=silent", "mine.py", cwd=empty, PYTHONPATH=str(installed))
    assert 'expression has type "list[str]"' in done.stdout, done.stdout
