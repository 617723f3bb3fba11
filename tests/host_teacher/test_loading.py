"""Which teachers are found, and the one line for those that are not."""

import sys

import pytest

from deit_jax import plugins
from deit_jax.config import ConfigError
from deit_jax.host_teacher.loading import load_callable

CODE = """
class Networks:
    def __call__(self, images):
        return images
    mean = 0.5, 0.5, 0.5

network = Networks()
teach = network.__call__
image_size = 3
"""


def load(spec):
    return load_callable(spec, f"--teacher={spec}")


def test_a_callable_may_be_anything_that_is_called(modules):
    folder = modules(inner____init__="", inner__nets=CODE)
    found = load("inner.nets:network")
    assert found.call is sys.modules["inner.nets"].network and found.mean == (0.5, 0.5, 0.5)
    assert (found.std, found.image_size, found.class_names, found.file) == (None, None, None, f"{folder}/inner/nets.py")
    assert load("inner.nets:network.__call__").call(3) == 3
    assert "inner.nets" not in plugins._imported  # the loader's processes do not import it


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nets", "give my_module:function, timm:NAME or hf:NAME"),
        (":teach", "give my_module:function"),
        ("nets:", "give my_module:function"),
        ("my-nets:teach", "'my-nets' is not the name of a module"),
        ("./nets.py:teach", "'./nets.py' is not the name of a module"),
        ("nets:teach()", r"'teach\(\)' is not the name of a function"),
        ("nets:class", "'class' is not the name of a function"),
        ("nets.py:teach", "names a file: give the module, nets:teach"),
        ("nowhere:teach", "there is no module 'nowhere': install it, or put its folder on PYTHONPATH"),
        ("nets.lost:teach", "there is no module 'nets.lost'"),
        ("nets:taech", "nets has no 'taech'; the nearest is 'teach'"),
        ("nets:network.zzz", "nets has no 'network.zzz'"),
        ("nets:image_size", "is a int, not a function"),
        ("broken:teach", r"the module broken raises ZeroDivisionError: division by zero \(.*broken\.py, line 1\); fix it"),
        ("ends:teach", "the module ends raises SystemExit"),
        ("needs:teach", "the module needs raises ModuleNotFoundError: No module named 'is_not_installed'"),
    ],
)  # fmt: skip
def test_what_cannot_be_found_is_one_line(modules, spec, message):
    modules(nets=CODE, broken="1 / 0", ends="raise SystemExit", needs="import is_not_installed")
    with pytest.raises(ConfigError, match=message) as raised:
        load(spec)
    assert str(raised.value).startswith(f"--teacher={spec}") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("mean = 123.7, 116.3, 103.5", r"its mean is \(123\.7, .*: give three numbers, of RGB in \[0, 1\]"),
        ("mean = 0.5", "its mean is 0.5"),
        ("mean = 0.5, float('nan'), 0.5", "its mean is"),
        ("mean = 'rgb'", "its mean is 'rgb'"),
        ("std = 0.5, 0.0, 0.5", "its std is"),
        ("std = abs", "its std is"),
        ("image_size = 224, 224", r"its image_size is \(224, 224\): give one whole number"),
        ("image_size = 0", "its image_size is 0"),
        ("image_size = True", "its image_size is True"),
    ],
)
def test_attributes_that_cannot_be_meant_are_refused(modules, attribute, message):
    modules(nets=f"def teach(images): ...\nteach.{attribute}")
    with pytest.raises(ConfigError, match=message):
        load("nets:teach")


@pytest.mark.parametrize("spec", ["timm:regnety_002", "hf:facebook/deit-tiny-patch16-224"])
def test_a_library_that_is_not_there_is_named_with_the_extra(monkeypatch, spec):
    package = "timm" if spec.startswith("timm") else "transformers"
    monkeypatch.setitem(sys.modules, package, None)  # what Python makes of a package that is not installed
    with pytest.raises(
        ConfigError, match=rf"{spec} needs {package}, .*its extra 'teachers', or pip install {package} torch"
    ):
        load(spec)
