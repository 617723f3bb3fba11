import pytest

from deit_jax.config_record import differing_fields
from deit_jax.errors import UserError
from deit_jax.paths import expand_paths, folder, typed_path
from deit_jax.weights.files import kind_of
from tests.tiny import tiny_config


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_tilde_is_expanded(home, monkeypatch):
    assert typed_path("--output", "~/a/b.json") == f"{home}/a/b.json"
    assert typed_path("--output", "~") == str(home)
    assert typed_path("--output", "a~/~b") == "a~/~b"
    monkeypatch.chdir(home)
    (home / "~$letter.jpg").touch()  # as left by an editor
    assert typed_path("the file", "~$letter.jpg") == "~$letter.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("~nobody-of-this-name/run", "there is no user 'nobody-of-this-name'; .* write ./~nobody-of-this-name/run"),
        (" run", "starts or ends with a space"),
        ("run ", "starts or ends with a space"),
        ('"run"', "quotation marks"),
    ],
)
def test_paths_with_stray_quotes_or_spaces_are_refused(text, message):
    with pytest.raises(UserError, match=f"^--workdir=.*{message}"):
        folder("--workdir", text)


def test_a_file_is_refused_as_a_workdir(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match="is a file: give a folder"):
        folder("--workdir", str(tmp_path / "run"))
    assert folder("--workdir", str(tmp_path / "other")) == tmp_path / "other"


@pytest.mark.parametrize("take", [lambda path: folder("--workdir", path), kind_of])
def test_a_name_that_is_too_long_is_refused_in_one_line(tmp_path, take):
    with pytest.raises(UserError, match=rf"^{tmp_path}/x+.* cannot be read \(File name too long\)"):
        take(str(tmp_path / ("x" * 300)))


def test_every_path_of_a_configuration_is_expanded(home):
    config = tiny_config(data__path="~/images", model__weights="~/trained", teacher__weights="random,~/b.npz, ~/c")
    config.teacher.name = "regnety_002,regnety_004,regnety_006"
    fields = {"source": "folder", "name": "", "split": ""}
    with config.unlocked():
        config.evaluation.extra.real = fields | {"path": "~/val", "labels": "~/real.json"}
    config.teacher.recipe = tiny_config(data__path="~/images", model__weights="pretrained", teacher__weights="~/x,y")
    expand_paths(config)
    assert (config.data.path, config.model.weights) == (f"{home}/images", f"{home}/trained")
    assert config.teacher.weights == f"random,{home}/b.npz,{home}/c"
    assert (config.evaluation.extra.real.path, config.evaluation.extra.real.labels) == (
        f"{home}/val",
        f"{home}/real.json",
    )
    recipe = config.teacher.recipe
    assert (recipe.data.path, recipe.model.weights) == (f"{home}/images", "pretrained")
    assert recipe.teacher.weights == f"{home}/x,y"  # a single teacher
    config.data.path = "~nobody-of-this-name"
    with pytest.raises(UserError, match=r"--config\.data\.path=~nobody-of-this-name"):
        expand_paths(config)


def test_a_recorded_tilde_equals_the_expanded_path(home):
    recorded = {"model": {"weights": "~/trained"}, "data": {"path": "~/a"}}
    assert differing_fields(recorded, {"model": {"weights": f"{home}/trained"}, "data": {"path": f"{home}/b"}}) == [
        "data.path"
    ]


def test_recorded_tildes_of_several_teachers_equal_the_expanded_paths(home):
    recorded = {"teacher": {"weights": "~/a, random,~/b.npz"}}
    assert differing_fields(recorded, {"teacher": {"weights": f"{home}/a, random,{home}/b.npz"}}) == []
    assert differing_fields(recorded, {"teacher": {"weights": f"{home}/a, random,{home}/c.npz"}}) == ["teacher.weights"]


def test_cache_folders_are_expanded_or_checked(home, monkeypatch):
    for place, expected in (("~/lists", f"{home}/lists"), ("auto", "auto"), ("", "")):
        config = tiny_config(data__index=place, parallel__compilation_cache="~/programs")
        expand_paths(config)
        assert config.data.index == expected
        assert config.parallel.compilation_cache == "~/programs"
    for field in ("data.index", "parallel.compilation_cache"):
        config = tiny_config(**{field.replace(".", "__"): "~nobody-of-this-name/a"})
        with pytest.raises(UserError, match=f"--config.{field}=~nobody-of-this-name/a: there is no user"):
            expand_paths(config)
    monkeypatch.setenv("HOME", "")
    expand_paths(tiny_config(parallel__compilation_cache="~/programs"))  # ignored for such a user
