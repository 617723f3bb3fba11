import json
import os
import pickle
import re
import sys

import pytest

from deit_jax import plugins
from deit_jax.config import ConfigError
from deit_jax.config_check import validate
from deit_jax.data.assembling import _InWorker
from deit_jax.plugins import ImportedPlugins, import_plugins
from deit_jax.training.record import read_config
from tests.tiny import tiny_config
from tests.training.test_record import claim, edit

LOSS = """
import jax.numpy as jnp
import deit_jax

def build(scale: float = 1.0):
    return lambda outputs, targets, teacher_logits: (scale * jnp.mean(outputs.class_logits**2), {})

deit_jax.register_loss("NAME", build, teaches_token=True)
"""


def recorded(workdir, *names):
    """Writes a config.json that names plugins into a workdir."""
    claim(workdir, tiny_config())
    edit_plugins(workdir, names)
    return workdir


def edit_plugins(workdir, value):
    path = workdir / "config.json"
    record = json.loads(path.read_text())
    record["config"]["plugins"] = value
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    "name", ["my/plugin", "/tmp/plugin.py", ".plugin", "..", "", "plugin.", "my-plugin", "a.class", "a b"]
)
def test_invalid_module_names_are_refused(name):
    with pytest.raises(ConfigError, match=rf"^config\.plugins: {re.escape(repr(name))} is not a module name"):
        validate(tiny_config(plugins=(name,)))


def test_a_plugin_is_imported_before_names_are_checked_and_printed_once(modules, capsys):
    folder = modules(my_losses__cubic=LOSS.replace("NAME", "cubic"), my_losses____init__="")
    config = tiny_config(plugins=("my_losses.cubic",), distillation__kind="cubic", teacher__weights="")
    for _ in range(2):
        validate(config)
    assert capsys.readouterr().out == f"plugin my_losses.cubic, from {folder}/my_losses/cubic.py\n"
    assert config.cubic.scale == 1.0 and config.is_locked


def test_plugins_of_a_recipe_are_imported(modules):
    modules(of_teacher=LOSS.replace("NAME", "of_teacher"))
    config = tiny_config(teacher__weights="")
    config.teacher.recipe = tiny_config(plugins=("of_teacher",), distillation__kind="of_teacher", teacher__weights="")
    config.teacher.name = config.teacher.recipe.model.name
    validate(config)
    assert config.teacher.recipe.of_teacher.scale == 1.0 and "of_teacher" not in config


def test_the_error_for_a_missing_plugin_names_it(modules):
    modules(package____init__="raise SystemExit", package__other="")
    with pytest.raises(
        ConfigError, match=r"^config\.plugins: there is no module 'nowhere': install it, or put its folder"
    ):
        validate(tiny_config(plugins=("nowhere",)))
    with pytest.raises(ConfigError, match=r"there is no module 'package\.lost' of the plugin package\.lost\.x:"):
        import_plugins(["package.lost.x"], "config.plugins")  # the package was not run
    with pytest.raises(ConfigError, match=r"there is no module 'package\.other\.x'"):
        import_plugins(["package.other.x"], "config.plugins")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = 1\n1 / 0", "ZeroDivisionError: division by zero (FILE, line 2)"),
        ("import json\njson.loads('{')", "JSONDecodeError: "),
        ("\nimport is_not_installed", "ModuleNotFoundError: No module named 'is_not_installed' (FILE, line 2)"),
        ("def f(:", "SyntaxError: invalid syntax (FILE, line 1)"),
        ("raise SystemExit", "SystemExit (FILE, line 1)"),
        (
            "import deit_jax\ndeit_jax.register_loss('hard', dict)",
            "ValueError: register_loss: there is already a loss 'hard'",
        ),
    ],
)
def test_a_plugin_that_raises_is_reported_in_one_line(modules, code, said):
    folder = modules(broken=code)
    with pytest.raises(ConfigError) as raised:
        import_plugins(["broken"], "config.plugins")
    message = str(raised.value)
    assert message.startswith("config.plugins: the plugin broken raises " + said.replace("FILE", f"{folder}/broken.py"))
    assert "\n" not in message and f"({folder}/broken.py, line " in message and message.endswith("; fix it")
    modules(broken="fixed = True\n\n")
    import_plugins(["broken"], "config.plugins")


def test_a_missing_plugin_of_a_workdir_is_reported(modules, tmp_path, capsys):
    workdir = recorded(tmp_path / "run", "lost_plugin")
    with pytest.raises(
        ConfigError, match=rf"^plugins of {workdir}/config\.json: there is no module 'lost_plugin': install"
    ):
        read_config(workdir)
    modules(lost_plugin="")
    read_config(workdir)
    assert "plugin lost_plugin, from" in capsys.readouterr().out
    for damaged in (["a/b"], "text", [1], {"a": 1}):
        edit_plugins(workdir, damaged)
        with pytest.raises(ConfigError, match=rf"^plugins of {workdir}/config\.json"):
            read_config(workdir)


@pytest.mark.parametrize("where", ["", "teacher", "linked"])
def test_code_inside_a_workdir_is_not_run(modules, tmp_path, monkeypatch, where):
    modules()
    student = recorded(tmp_path / "student", "package.evil")
    (student / "checkpoints").mkdir()
    (student / "package").mkdir()
    (student / "package/__init__.py").write_text("raise AssertionError('the package was run')")
    (student / "package/evil.py").write_text("raise AssertionError('the module was run')")
    workdir = recorded(student / "teacher", "package.evil") if where == "teacher" else student
    if where == "linked":
        workdir = tmp_path / "link"
        workdir.symlink_to(student)
    monkeypatch.syspath_prepend(str(student))
    with pytest.raises(
        ConfigError, match=r"the plugin package\.evil is in the workdir \(.*\), where no code is imported from"
    ):
        read_config(workdir)
    assert "package" not in sys.modules
    # in a package around the workdir, and through a symlink
    monkeypatch.syspath_prepend(str(tmp_path))
    edit_plugins(student, ["student.package.evil"])
    with pytest.raises(ConfigError, match="is in the workdir"):
        read_config(student)
    (tmp_path / "elsewhere.py").write_text("raise AssertionError('the module was run')")
    (student / "direct.py").symlink_to(tmp_path / "elsewhere.py")
    edit_plugins(student, ["direct"])
    with pytest.raises(ConfigError, match="is in the workdir"):
        read_config(student)


def test_plugins_may_change_if_the_used_names_are_registered(modules, tmp_path):
    modules(first=LOSS.replace("NAME", "cubic"), second="import first", third="")
    fields, workdir = dict(distillation__kind="cubic", teacher__weights=""), tmp_path / "run"

    def start(*names, **changes):
        config = tiny_config(plugins=names, **fields, **changes)
        validate(config)
        claim(workdir, config)

    start("first")
    start("second", "third")
    assert read_config(workdir)["config"]["plugins"] == ["second", "third"]
    edit_plugins(workdir, ["was_renamed"])
    start("first")  # the recorded plugin need not exist
    edit(workdir, lambda config: config.pop("plugins"))  # a run before the field existed
    start("first")
    config = tiny_config(plugins=("first",), **fields)
    validate(config)
    config.cubic.scale = 2.0
    with pytest.raises(ConfigError, match=r"differs in cubic\.scale;"):
        claim(workdir, config)


def test_a_field_added_to_a_loss_later_may_be_at_its_default(modules, tmp_path):
    modules(first=LOSS.replace("NAME", "cubic"))
    config, workdir = tiny_config(plugins=("first",), distillation__kind="cubic", teacher__weights=""), tmp_path / "run"
    validate(config)
    claim(workdir, config)
    edit(workdir, lambda config: config["cubic"].pop("scale"))
    config.cubic.scale = 3.0
    with pytest.raises(ConfigError, match=r"differs in cubic\.scale;"):
        claim(workdir, config)
    config.cubic.scale = 1.0
    claim(workdir, config)
    assert read_config(workdir)["config"]["cubic"] == {"scale": 1.0}


def test_a_process_that_unpickles_a_reader_imports_the_plugins_first(modules):
    modules(decoder="", uses_decoder="import sys\nsys.modules['decoder']\ndef read(text): return {'number': int(text)}")
    import_plugins(["decoder"], "config.plugins")
    import uses_decoder

    pickled = pickle.dumps(_InWorker(ImportedPlugins(), uses_decoder.read), protocol=2)
    for name in ("decoder", "uses_decoder"):
        del sys.modules[name]
    plugins._imported.clear()
    assert pickle.loads(pickled)("7")["number"] == 7
    assert "decoder" in plugins._imported and os.path.isfile(plugins._imported["decoder"])
