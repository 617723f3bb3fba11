import subprocess
import sys

import pytest
from absl import flags

from deit_jax import command_line
from deit_jax.config import OPTIONS
from deit_jax.help import MARKDOWN_COMMAND, config_fields, page, requested
from deit_jax.modes import MODES
from tests.end_to_end.commands import ROOT


def test_every_field_is_listed_with_default_and_meaning():
    fields = config_fields()
    assert sorted(field.name for field in fields) == sorted(OPTIONS)
    assert [field.name for field in fields if not field.meaning] == []
    by_name = {field.name: field for field in fields}
    assert by_name["train.batch_size"].default == "1024" and by_name["data.crop_scale"].default == "(0.08, 1.0)"
    assert by_name["image_size"].default == "None" and by_name["model.overrides"].default == "{}"
    assert by_name["model.weights"].meaning.startswith("initial weights: a workdir of this project")
    assert by_name["data.path"].meaning.startswith(
        "npz: the file; folder:"
    )  # text within parentheses of the declaration
    assert by_name["teacher.weights"].meaning.endswith("One for each name")  # a text of several lines


def test_modes_are_listed_with_their_flags_and_a_command():
    text = page("short", command_line.__name__)
    ours = [flag.name for flag in flags.FLAGS.flags_by_module_dict()[command_line.__name__] if "." not in flag.name]
    assert all(f"--{name} " in text for name in ours if name != "mode")
    for name, mode in MODES.items():
        assert f"\n{name}: " in text and mode.example in text
    export = text[text.index("\nexport:") : text.index("\npreview:")]
    assert "--layout" in export and "onnx" in export and "--topology" not in export
    assert "(timm | hf | mmpretrain | flax | jax | jax_float | onnx; default timm)" in " ".join(export.split())
    assert max(map(len, text.splitlines())) <= 110


def test_every_example_uses_existing_flags():
    for mode in MODES.values():
        for word in mode.example.split():
            if word.startswith("--"):
                assert word.startswith("--config.") or word[2:].split("=")[0] in flags.FLAGS


def test_the_page_of_the_docs_is_up_to_date():
    assert page("markdown", command_line.__name__) == (ROOT / "docs/options.md").read_text(), MARKDOWN_COMMAND


@pytest.mark.parametrize(
    ("argument", "which"),
    [("--help", "short"), ("--help=markdown", "markdown"),
     ("-h", "short"), ("--help=config", "config"), ("--helpfull", "full"), ("help", None),
     ("--output=help", None)],
)  # fmt: skip
def test_help_flags_are_recognized(argument, which):
    assert requested(argument) == which


def test_the_full_page_ends_with_the_flags_of_the_libraries():
    done = subprocess.run(
        [sys.executable, "run.py", "--helpfull"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stderr == ""
    places = [
        done.stdout.index(word)
        for word in ("MODES", "--config.train.batch_size=1024", "FLAGS OF THE LIBRARIES", "--pdb")
    ]
    assert places == sorted(places)
