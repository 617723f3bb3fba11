"""The Python and the pictures of README and docs: names exist, code runs where that is cheap, pictures can be made again."""

import ast
import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

import deit_jax
from deit_jax.config import default_config
from deit_jax.data.registry import open_source
from deit_jax.loss_kinds import loss_kind
from tests.inference.conftest import CHINA
from tests.modes.workdirs import untrained
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path):
    """(number of the line, code) of the fenced Python blocks of a page, and of its indented lines that import."""
    text = path.read_text()
    for found in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S):
        yield text.count("\n", 0, found.start()) + 2, found[1]
    for found in re.finditer(r"^    ((?:import|from) \w[\w.]*.*)$", text, re.M):
        yield text.count("\n", 0, found.start()) + 1, found[1]


BLOCKS = [pytest.param(code, id=f"{path.relative_to(ROOT)}:{line}") for path in PAGES for line, code in blocks(path)]


def cells(path):
    """(number, code) of the cells of a notebook, without lines that are commands."""
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            yield number, re.sub(r"^( *)[!%].*$", r"\1pass", "".join(cell["source"]), flags=re.M)


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CELLS = [pytest.param(code, id=f"{path.name}:{number}") for path in NOTEBOOKS for number, code in cells(path)]


def test_the_blocks_are_found():
    assert len(BLOCKS) > 12 and any("load_pretrained" in block.values[0] for block in BLOCKS)


@pytest.mark.parametrize("code", BLOCKS + CELLS)
def test_what_is_imported_and_used_of_the_package_exists(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "deit_jax":
            module = importlib.import_module(node.module)
            missing = [name.name for name in node.names if not hasattr(module, name.name)]
            assert not missing, f"{node.module} does not have {missing}"
        elif isinstance(node, ast.Attribute):
            names = ast.unparse(node).split(".")
            if names[0] == "deit_jax" and all(name.isidentifier() for name in names):
                found = deit_jax
                for name in names[1:]:
                    assert hasattr(found, name), f"{ast.unparse(node)} does not exist"
                    found = getattr(found, name)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("deit_jax."):
            arguments_fit(node)


def arguments_fit(call):
    """The arguments of a call of the package are parameters of it."""
    function = deit_jax
    for name in ast.unparse(call.func).split(".")[1:]:
        function = getattr(function, name)
    named = {word.arg: None for word in call.keywords}
    inspect.signature(function).bind(*[None] * len(call.args), **named)


def documented(page, containing):
    """The block of a page with a text."""
    [code] = [code for _, code in blocks(ROOT / page) if containing in code]
    return code


def test_the_model_of_the_readme_is_registered(modules):
    names = {}
    exec(documented("README.md", "TinyNet"), names)
    model = deit_jax.create_model("tiny_net", num_classes=3)
    images = jnp.zeros((2, 28, 28, 3))
    assert model.apply(model.init(jax.random.key(0), images), images).shape == (2, 3)


def test_the_pretrained_model_of_the_readme_has_these_shapes():
    code = documented("README.md", "load_pretrained")
    name = re.search(r'load_pretrained\("(.*?)"\)', code)[1]
    shapes = re.search(r"# \((.*?)\), \((.*?)\)$", code, re.M)
    model = deit_jax.create_model(name)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    output = jax.eval_shape(model.apply, variables, images)
    found = [str(one.shape).replace("2,", "B,") for one in (output.logits, output.distillation_logits)]
    assert found == [f"({shape})" for shape in shapes.groups()]
    assert name in deit_jax.list_pretrained()
    assert re.search(r'from_pretrained\("(.*?)"\)', code)[1] in deit_jax.list_pretrained()


def test_the_classifier_of_the_inference_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    untrained(Path("runs/flowers"), tiny_config())
    Path("rose.jpg").write_bytes(CHINA.read_bytes())
    pixels = np.zeros((30, 40, 3), np.uint8)
    code = documented("docs/inference.md", "from_workdir").replace(', checkpoint="best"', "")  # none was evaluated
    names = {"pil_image": Image.fromarray(pixels), "array": pixels}
    one, three, [best], probabilities = values_of(code, names)
    assert len(one) == 5 and len(three) == 3 and three[0] == one
    assert best.label in open_source(tiny_config().data, "eval").class_names
    assert probabilities.shape == (1, 10) and probabilities.dtype == np.float32


def test_the_weights_of_the_inference_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, classes, size in (("deit_tiny", 1000, 224), ("flowers", 5, 64)):
        model = deit_jax.create_model("deit_tiny_patch16_224", classes, size)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
        deit_jax.save_weights(zeros, model, f"{name}.safetensors")
    names = {"deit_jax": deit_jax, "images": jnp.zeros((2, 64, 64, 3))}
    exec(documented("docs/inference.md", 'layout="hf"'), names)
    assert {path.name for path in Path("exported").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    exec(documented("docs/inference.md", "num_classes=5"), names)
    assert names["outputs"].logits.shape == (2, 5)


def values_of(code, names):
    """Runs the lines of a block; yields the values of those that are expressions."""
    for line in ast.parse(code).body:
        if isinstance(line, ast.Expr):
            yield eval(ast.unparse(line), names)
        else:
            exec(ast.unparse(line), names)


def test_the_extra_sets_of_the_evaluation_page():
    code, config = documented("docs/evaluation.md", "imagenet_extra_sets"), default_config()
    exec(code, {"config": config})
    assert list(config.evaluation.extra) == ["real", "v2"]
    for name, entry in config.evaluation.extra.items():
        assert f"{name}: {entry.name}" in code and entry.source == "tfds"


def test_the_sketches_of_the_extending_page_are_registered(modules):
    """What they leave out (...) is in examples/extending, which has its own tests."""
    names = {"nn": nn, "deit_jax": deit_jax, "dataclasses": dataclasses}
    for kind in ("register_model", "register_source", "register_loss"):
        exec(documented("docs/extending.md", kind), names)
    assert deit_jax.create_model("convmixer_tiny").width == 64
    assert loss_kind("logit_matching").needs_teacher


def test_parquet_files_with_small_row_groups_as_on_the_data_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("DIR", "OTHER_DIR"):
        Path(folder).mkdir()
    table = pyarrow.table({"label": list(range(20))})
    parquet.write_table(table, "DIR/train.parquet", row_group_size=20)
    exec(documented("docs/data.md", "iter_batches"), {})
    written = parquet.ParquetFile("OTHER_DIR/train.parquet")
    assert written.num_row_groups == 3 and written.read().equals(table)


def test_folders_of_inaturalist_as_on_the_data_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for year_split, number in (("train2019", 3), ("val2019", 4)):
        image = f"{year_split}_1.jpg"
        Path(image).write_bytes(CHINA.read_bytes())
        content = {
            "annotations": [{"image_id": 9, "category_id": number}],
            "images": [{"id": 9, "file_name": image}],
        }
        Path(f"{year_split}.json").write_text(json.dumps(content))
    exec(documented("docs/data.md", "annotations"), {})
    assert sorted(path.as_posix() for path in Path("DIR").rglob("*.jpg")) == [
        "DIR/train/3/train2019_1.jpg",
        "DIR/validation/4/val2019_1.jpg",
    ]


# --- pictures and figures --------------------------------------------------------------------------------------------


def pictures():
    for path in PAGES:
        for found in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", path.read_text()):
            yield path, (path.parent / found).resolve()


def code_of(text):
    """What is code on a page, on one line each."""
    text = re.sub(r" *\\\n\s*", " ", text)
    return re.findall(r"^    .+$", text, re.M) + re.findall(r"`[^`]+`", text)


@pytest.mark.parametrize("file", sorted({file for _, file in pictures()}), ids=lambda file: file.name)
def test_a_picture_has_the_command_that_makes_it(file):
    name = file.relative_to(ROOT).as_posix()
    assert file.stat().st_size < 300_000
    assert any(name in line for path in PAGES for line in code_of(path.read_text())), f"no command writes {name}"


def test_every_picture_is_shown():
    assert {file for _, file in pictures()} == set((ROOT / "docs/images").iterdir())


def test_figures_of_the_readme_name_their_command():
    """A section that shows measured figures, in a table, a picture or with a unit, has the command that gives them."""
    measured = re.compile(r"^\|.*\d\.\d|^!\[|\d+ (?:min|s|hours?|minutes|GB)\b", re.M)
    found = [section for section in re.split(r"^(?=## )", README.read_text(), flags=re.M) if measured.search(section)]
    assert len(found) >= 3
    for section in found:
        commands = [line for line in code_of(section) if re.search(r"\b(?:python (?:run\.py|benchmarks/)|make )", line)]
        assert commands, section.partition("\n")[0]
