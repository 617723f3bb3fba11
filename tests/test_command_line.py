"""`parse` in the process of the tests; tests/end_to_end runs whole commands."""

import pytest
from absl import flags
from absl.testing import flagsaver

from deit_jax import command_line
from deit_jax.errors import UserError


@pytest.fixture
def parse():
    def parsed(*arguments):
        rest = command_line.parse(["run.py", *arguments])
        return command_line._GIVEN.config, rest[1:]

    flags.FLAGS.unparse_flags()
    with flagsaver.flagsaver():
        yield parsed
    flags.FLAGS.unparse_flags()
    command_line._GIVEN.config = None


def test_fields_may_come_before_the_file(parse):
    config, rest = parse("a.jpg", "--config.train.epochs=7", "--config", "configs/deit.py:tiny", "b.jpg")
    assert (config.train.epochs, config.model.name, rest) == (7, "deit_tiny_patch16_224", ["a.jpg", "b.jpg"])
    assert config.is_locked


def test_plugins_may_come_before_the_file(parse, modules):
    modules(own_loss="import deit_jax\ndeit_jax.register_loss('own', lambda size=1.0: None)\n")
    config, _ = parse(
        "--config.own.size=3", "--config.distillation.kind=own", "--config.plugins=own_loss", "--config=configs/deit.py:tiny"
    )  # fmt: skip
    assert (config.plugins, config.own.size) == (("own_loss",), 3.0)


def test_fields_without_effect_and_questionable_values_are_warnings(parse, capsys):
    typed = ("--config.teacher.top_k=3", "--config.schedule.warmup_epochs=9", "--config.train.epochs=2")
    config, _ = parse("--config=configs/quickstart.py", *typed)
    for mode, reported in (("train", True), ("record", False)):
        command_line._warn_of_fields(config, command_line.MODES[mode])
        printed = " ".join(capsys.readouterr().out.split())
        assert ("warning: without effect: config.teacher.top_k (teacher.record is empty)" in printed) == reported
        assert "warning: config.schedule.warmup_epochs=9 is not less than config.train.epochs=2: the" in printed


def test_a_flagfile_may_contain_fields(parse, tmp_path):
    (tmp_path / "flags").write_text("--config=configs/quickstart.py\n--config.seed=3\n")
    assert parse(f"--flagfile={tmp_path}/flags", "--config.log.images=no")[0].seed == 3


def test_the_tilde_in_a_configuration_file_is_expanded(parse, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "from deit_jax.config import default_config\ndef get_config(seed='0'):\n    config = default_config()\n"
    (tmp_path / "mine.py").write_text(
        text + "    config.seed = int(seed)\n    config.data.path = '~/data'\n    return config\n"
    )
    config, _ = parse("--config=~/mine.py:8")
    assert (config.seed, config.data.path) == (8, f"{tmp_path}/data")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.seed=1"], r"--config\.seed sets a field of --config=FILE, which is missing"),
        (["--config=configs/deit.py", "--workdir="], "--workdir is empty"),
        (["--config="], "--config is empty"),
        (["--config=configs/deit.py", "--wokrdir=x"], "'wokrdir'. Did you mean: workdir"),
        (["--config=configs/deit.py", "--confg.ema.decay=0"], r"the configuration's is --config\.ema\.decay"),
        (["--config=configs/deit.py", "--runs=x"], "--runs=x: give a whole number"),
        (["--config=configs/deit.py", "--", "--config.seed=3"], "--config.seed=3 comes after --"),
        (["--config=~/nothing.py"], "--config=.*nothing.py: there is no such file"),
    ],
)
def test_mistakes_are_reported_in_one_line(parse, arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        parse(*arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/deit.py:tiny", "--workdir=a", "--layout=onnx"], "--layout .* --mode=train: it is for export$"),
        (["--config=configs/deit.py:tiny", "--workdir=a", "--output=b"], "--output .* --mode=train: it is for record, eval, "),
        (["--mode=eval", "--config=configs/deit.py:tiny", "--weights=ema"], "--weights .* --mode=eval: it is for report, "),
        (["--mode=eval", "--config=configs/deit.py:tiny", "--noversion", "--runs=3"], "--runs .* --mode=eval: it is for thr"),
        (["--mode=models", "--config=configs/deit.py:tiny"], "--config has no effect in --mode=models: it is for train, "),
        (["--mode=throughput", "--config=configs/deit.py:tiny", "--workdir=a"], "--workdir .* --mode=throughput"),
        (["--mode=export", "--workdir=a", "--output=b", "--process_id=0"], "--process_id .* --mode=export: it is for train"),
        (["--mode=compile", "--config=configs/deit.py:tiny"], "--topology is missing: the devices to compile for"),
        (["--mode=predict", "--config=configs/deit.py:tiny", "--workdir=a", "b.jpg"], "predict takes either --workdir"),
        (["--mode=preview", "--config=configs/deit.py:tiny", "--output=b", "--held_out_list="], "--held_out_list is empty"),
        (["--mode=preview", "--config=configs/deit.py:tiny", "--output=b", "--held_out_list=gs://a/b"], "is an address"),
        (["--mode=figures", "--output=b", "c.jpg"], "unexpected argument 'c.jpg'"),
    ],
)  # fmt: skip
def test_missing_and_unknown_flags_of_a_mode_are_refused(parse, arguments, message):
    _, files = parse(*arguments)
    with pytest.raises(UserError, match=message) as raised:
        command_line.run(["run.py", *files])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("arguments", [
    ("eval", "--config=configs/deit.py:tiny"), ("report", "--workdir=a"), ("compile", "--config=configs/deit.py:tiny",
    "--topology=v5e-8"), ("throughput", "--config=configs/deit.py:tiny"), ("models",), ("figures", "--figure=1"),
    ("preview", "--config=configs/deit.py:tiny"), ("predict", "--workdir=a", "c.png"),
])  # fmt: skip
def test_an_output_that_cannot_be_written_is_refused_before_the_mode_runs(parse, tmp_path, arguments):
    (tmp_path / "file").write_text("kept")
    for name, reason in ((tmp_path, "Is a directory"), (tmp_path / "file" / "new" / "a.json", "Not a directory")):
        _, files = parse(f"--mode={arguments[0]}", *arguments[1:], f"--output={name}")
        with pytest.raises(UserError, match=rf"^--output={name} cannot be written \({reason}\)$"):
            command_line.run(["run.py", *files])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
