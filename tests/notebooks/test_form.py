"""The notebooks as files: kept without outputs, in the form that Colab and Jupyter open."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from deit_jax import list_models
from deit_jax.config_check import validate
from deit_jax.config_file import load_config
from deit_jax.config_model import check_heads
from deit_jax.modes.compile import without_weights

ROOT = Path(__file__).parents[2]
NOTEBOOKS_PAGE = ROOT / "docs" / "notebooks.md"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def book(request):
    return nbformat.read(request.param, as_version=nbformat.NO_CONVERT)


def code(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def as_python(source):
    """A cell without what IPython alone understands: a first line %%..., and lines ! and %."""
    source = re.sub(r"\A%%.*\n", "", source)
    return re.sub(r"^( *)[!%].*$", r"\1pass", source, flags=re.MULTILINE)


def test_all_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["finetune", "pretrained", "quickstart", "tpu"]


def test_valid_and_stripped(book):
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3" and "widgets" not in book.metadata
    for cell in code(book):
        assert cell.outputs == [] and cell.execution_count is None
        assert set(cell.metadata) <= {"tags"}  # nothing of a session


def test_it_opens_with_its_costs(book):
    """Time, memory and download, before anything else; the page of the notebooks has the same time."""
    opening = book.cells[0].source
    title, table = opening.partition("| costs, on two CPU cores | |")[::2]
    costs = dict(re.findall(r"^\| (\w+) \| (.+) \|$", table, re.M))
    assert title.startswith("# ") and list(costs) == ["time", "memory", "download"], opening
    assert re.match(r"\d+ minutes", costs["time"]) and re.match(r"\d+(\.\d+)? GB|not measured", costs["memory"])
    [row] = [
        line for line in NOTEBOOKS_PAGE.read_text().splitlines() if line.startswith(f"| `{book.metadata.colab.name}` |")
    ]
    assert row.endswith(f"| {costs['time']} |")


def test_cells_are_python(book):
    for cell in code(book):
        ast.parse(as_python(cell.source))


def test_a_command_that_fails_ends_the_notebook(book):
    for cell in code(book):
        lines = cell.source.splitlines()
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            if line.lstrip().startswith("!") and "jax.device_count" not in line:
                assert following.lstrip().startswith("assert _exit_code == 0"), line


def test_parameters_stand_in_one_tagged_cell(book):
    [cell] = [cell for cell in code(book) if "parameters" in cell.metadata.get("tags", [])]
    assigned = [node for node in ast.parse(cell.source).body if isinstance(node, ast.Assign)]
    for node in assigned:
        ast.literal_eval(node.value)
        assert "# @param" in cell.source.splitlines()[node.lineno - 1]  # a field of Colab's form
    names = {node.targets[0].id for node in assigned}
    assert "SOURCE" in names
    others = [ast.parse(as_python(other.source)) for other in code(book) if other is not cell]
    found = [node for tree in others for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assert not names & {node.id for node in found if isinstance(node.ctx, ast.Store)}
    # each is used, in Python or in a command
    text = "\n".join(other.source for other in code(book) if other is not cell)
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("name", ["finetune", "tpu"])
def test_every_model_of_the_form_has_its_configurations(name):
    """Executes the definitions that depend on MODEL alone, and validates the configurations that the commands use."""
    text = "\n".join(cell.source for cell in code(nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4)))
    [choices] = re.findall(r"^MODEL = .*# @param (\[.*\])$", text, re.M)
    definitions = "\n".join(re.findall(r"^\w+ = MODEL\..*$", text, re.M))
    used = set(re.findall(r"--config=(configs/\w+\.py):\{(\w+)\}", text))
    assert used and len(ast.literal_eval(choices)) > 5
    for model in ast.literal_eval(choices):
        names = {"MODEL": model}
        exec(definitions, names)
        for file, argument in used:
            config = without_weights(load_config(f"{ROOT / file}:{names[argument]}"))
            validate(config)
            check_heads(config)
        if name == "tpu":  # as in the file that it writes
            assert f"deit_{names['published'].replace(',', '_')}_patch16_224" in list_models()


def test_no_address_is_made_up(book):
    addresses = {
        re.sub(r"^https?://", "", found)
        for cell in book.cells
        for found in re.findall(r"https?://[\w./-]+", cell.source)
    }
    assert {address for address in addresses if "OWNER" not in address} <= {"...", ""}
    [source] = [cell.source for cell in code(book) if cell.source.startswith("SOURCE")]
    assert 'SOURCE = "git+https://github.com/OWNER/deit_jax"' in source
