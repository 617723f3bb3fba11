"""The order of the packages, see docs/design.md."""

import ast
from pathlib import Path

import deit_jax

PACKAGE = Path(deit_jax.__file__).parent

# From the bottom up: a package or module of deit_jax imports only from the lines above its own in this list.
LAYERS = [
    {"errors", "version", "printable", "registration", "loss_kinds"},
    {"console", "cache_folder", "options"},
    {"config", "storage"},
    {"paths", "plugins", "config_losses", "config_record", "models", "augment"},
    {"data", "weights"},
    {"parallel", "config_model"},
    {"config_features"},
    {"reporting", "config_check", "recipes", "answers"},
    {"config_file", "aot", "paper", "evaluation"},
    {"training"},
    {"network_sources", "host_teacher"},
    {"network"},
    {"inference"},
    {"modes"},
    {"help"},
    {"command_line"},
    {"main"},
    {"__init__", "__main__"},
]
LAYER = {unit: number for number, units in enumerate(LAYERS) for unit in units}


def imported(file):
    """Yields the parts of the package that a file imports, at its top, within functions or for types only."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "deit_jax":
            yield from (name.name for name in node.names if name.name in LAYER)
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("deit_jax."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("deit_jax."))


def test_no_import_points_upward():
    files = {file: file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in PACKAGE.rglob("*.py")}
    files = {file: unit for file, unit in files.items() if unit != "configs"}  # in an installed wheel
    assert set(files.values()) == set(LAYER)
    upward = [
        f"{file.relative_to(PACKAGE)} imports {other}"
        for file, unit in files.items()
        for other in imported(file)
        if other != unit and LAYER[other] >= LAYER[unit]
    ]
    assert not upward
