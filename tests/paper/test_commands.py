"""The rows of the paper as commands: completeness, printing and the page in docs."""

import pytest

from deit_jax.errors import UserError
from deit_jax.models.flops import train_flops
from deit_jax.models.registry import create_model
from deit_jax.paper import commands as recipes
from deit_jax.paper import tables
from deit_jax.paper.commands import training_cost
from deit_jax.paper.page import PAGE_COMMAND, TITLES, list_recipes
from deit_jax.paper.rows import rows_of
from tests.end_to_end.commands import ROOT, run
from tests.recipes.programs import CONFIGS, get_config


@pytest.fixture(scope="module")
def commands():
    return recipes.load_commands()


def figures(commands, where):
    """{"file:argument what": figures} of a table."""
    found = [command for command in commands if command.row.where == where]
    return {f"{command.file}:{command.row.argument} {command.row.what}": command.row.published for command in found}


def test_every_table_and_figure_has_rows_in_the_order_of_the_paper(commands):
    places = list(dict.fromkeys(command.row.where for command in commands))
    assert places == list(TITLES)
    tables = {f"Table {number}" for number in range(1, 11)} | {"Figure 3"}
    assert tables <= set(places)


def test_every_published_figure_has_a_row(commands):
    def values(where):
        return sorted(value for row in figures(commands, where).values() for value in row.values())

    assert values("Table 8") == sorted(value for row in tables.TABLE_8 for value in (row.top1, row.top1_384))
    assert values("Table 7") == sorted(
        [*tables.CIFAR10_FROM_SCRATCH.values(), *(value for row in tables.TABLE_7 for value in row[1:])]
    )
    assert values("Table 3") == sorted(value for row in tables.TABLE_3 for value in row[3:])
    assert values("Table 10") == sorted(value for row in tables.TABLE_10 for value in row[2:])
    assert values("Table 2") == sorted(value for row in tables.TABLE_2 for value in row[1:])
    table_5 = [row for row in tables.TABLE_5 if row.model]  # ViT-B/16 is Table 9's other recipe
    assert values("Table 5") == sorted(value for row in table_5 for value in (row.imagenet, row.real, row.v2))
    curves = [value for values in tables.FIGURE_3.values() for value in values]
    no_teacher = [tables.TABLE_3[0].base] + [tables.FIGURE_3_NO_DISTILLATION] * 3
    assert values("Figure 3") == sorted(curves + no_teacher)


def test_the_rows_that_a_row_builds_on_exist(commands):
    known = {f"{command.file}.py:{command.row.argument}" for command in commands}
    for command in commands:
        config = command.config()
        for needed in filter(None, (command.row.start, command.row.teacher)):
            file, argument = needed.split(".py:")
            assert {*argument.split(",")} in [
                {*name.split(":")[1].split(",")} for name in known if name.startswith(file)
            ], needed
        assert bool(command.row.start) == (config.model.weights != "")
        assert bool(command.row.teacher) == (config.distillation.kind in ("soft", "hard"))
        if command.row.teacher:
            teacher = get_config(command.row.teacher.replace(".py", ""))
            assert teacher.model.name == config.teacher.name
            assert (teacher.image_size or 224) == (
                config.image_size or 224
            ) and teacher.num_classes == config.num_classes
        if command.row.start:
            start = get_config(command.row.start.replace(".py", ""))
            assert start.model.name.rsplit("_", 1)[0] == config.model.name.rsplit("_", 1)[0]


def test_teachers_train_for_the_epochs_of_table_9(commands):
    starts = {f"{command.file}.py:{command.row.argument}": command.row.start for command in commands}

    def root(name):  # of what is fine-tuned, the training that it continues
        return root(starts[name]) if starts[name] else name

    teachers = {root(command.row.teacher) for command in commands if command.row.teacher}
    epochs = {name: get_config(name.replace(".py", "")).train.epochs for name in teachers}
    assert (
        epochs.pop("transfer.py:cifar10,regnety_160,scratch") == 7200
    )  # as its student: the images of 300 of ImageNet
    assert set(epochs) == {f"teacher.py:regnety_{size}" for size in ("040", "080", "120", "160")} | {"deit.py:base"}
    assert set(epochs.values()) == {300}


def test_cost_is_model_flops_times_images():
    config = get_config("deit:base,distilled")
    student, teacher = create_model("deit_base_distilled_patch16_224"), create_model("regnety_160")
    cost = training_cost(config)
    assert cost.images == 300 * 1251 * 1024
    assert cost[1:] == train_flops(student, teacher, 224)
    assert cost.exaflop == pytest.approx(cost.images * (3 * 17.657 + 15.912) * 2e9 / 1e18, rel=1e-3)
    assert cost.hours == pytest.approx(cost.exaflop * 1e18 / (8 * 0.4 * 312e12) / 3600)
    assert training_cost(get_config("distillation:token_labels,base")).teacher_flops == 0


def test_rows_are_selected_by_name_and_an_unknown_name_is_an_error(commands):
    assert {command.row.where for command in recipes.select(commands, "table8")} == {"Table 8"}
    assert {command.row.where for command in recipes.select(commands, "Figure 3")} == {"Figure 3"}
    assert {command.file for command in recipes.select(commands, "finetune")} == {"finetune"}
    assert recipes.select(commands, "all") == commands
    with pytest.raises(UserError, match=r"--list=table12: give one of table1, .*figure3, .*ablation"):
        recipes.select(commands, "table12")


def test_the_page_is_what_the_command_writes(tmp_path):
    page = tmp_path / "recipes.md"
    list_recipes(output=page)
    assert page.read_text() == (ROOT / "docs/recipes.md").read_text(), f"out of date: {PAGE_COMMAND}"
    row = next(line for line in page.read_text().splitlines() if "`configs/ablation.py:no_mixup`" in line)
    assert "ImageNet 78.7" in row and "has not yet run any of these rows" in page.read_text()


def test_the_list_agrees_with_the_commands(commands, capsys):
    list_recipes("table8")
    printed = capsys.readouterr().out
    for command in recipes.select(commands, "table8"):
        assert command.name in printed and f"{training_cost(command.config()).exaflop:.3g}" in printed
    printed = " ".join(printed.split())  # undo the folding
    assert "has not yet run any of these rows" in printed and "an estimate" in printed


@pytest.mark.parametrize(("columns", "wanted", "files"), [(100, "all", CONFIGS), (200, "ablation", ["ablation"])])
def test_commands_are_not_folded_in_a_narrow_terminal(columns, wanted, files, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    list_recipes(wanted)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    for file in files:
        for row in rows_of(file):
            assert any(line.startswith(f"configs/{file}.py:{row.argument} ") for line in lines)


def test_the_flag_works_alone_and_refuses_an_unknown_table(tmp_path):
    assert "configs/ablation.py:no_mixup" in run("--list=table8", cwd=tmp_path).stdout  # the configs next to run.py
    done = run("--list=table11")
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: --list=table11: give one of")
        and done.stderr.count("\n") == 1
    )
