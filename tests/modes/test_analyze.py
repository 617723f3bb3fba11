import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from configs.quickstart import get_config
from deit_jax.config import ConfigError
from deit_jax.data.decoding import decode
from deit_jax.data.registry import open_source
from deit_jax.data.sources import DataError
from deit_jax.modes.analyze import analyze
from deit_jax.modes.compared import compared_networks
from deit_jax.modes.export import export
from deit_jax.network import load_network
from deit_jax.training.checkpointing import load_variables
from deit_jax.weights import WeightsError
from tests.evaluation.conftest import GOLDEN
from tests.tiny import tiny_config, tiny_teacher_config

from .workdirs import untrained

CHINA = str(GOLDEN / "crops_china.jpg")


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """A distilled run with its teacher in it, and a plain run of another seed."""
    root = tmp_path_factory.mktemp("analyze")
    distilled = untrained(root / "distilled", tiny_config(data__max_eval_images=50))
    untrained(distilled / "teacher", tiny_teacher_config())
    plain = {"model__name": "deit_tiny_patch16_224", "distillation__kind": "none", "teacher__weights": "", "seed": 1}
    return distilled, untrained(root / "plain", tiny_config(**plain))


@pytest.fixture(scope="module")
def analysis(workdirs, tmp_path_factory):
    """(folder, what was returned) of the analysis of the two runs and an exported file of the first."""
    output = tmp_path_factory.mktemp("analysis")
    file = export(workdirs[0], output / "exported.safetensors", layout="timm", which="raw")
    compare = [str(workdirs[1]), str(file)]
    return output / "deep" / "a", analyze(
        workdirs[0], others=compare, image_files=[CHINA], output=output / "deep" / "a"
    )


def test_the_matrix_compares_the_predictions_of_the_networks(workdirs, analysis):
    folder, found = analysis
    names = found["disagreement"]["names"]
    assert names == [
        "ground truth", "distilled, class", "distilled, distillation", "distilled, both", "distilled/teacher", "plain",
        "exported.safetensors, class", "exported.safetensors, distillation", "exported.safetensors, both",
    ]  # fmt: skip
    matrix = np.array(found["disagreement"]["matrix"])
    np.testing.assert_array_equal(matrix, matrix.T)
    # The exported file is the same network.
    np.testing.assert_array_equal(matrix[1:4], matrix[6:9])
    assert matrix[1, 6] == matrix[2, 7] == matrix[3, 8] == 0
    config = tiny_config()
    source = open_source(config.data, "eval")
    images = np.stack([np.repeat(source[i].image[:, :, None], 3, axis=2) for i in range(50)]) / 255
    images = ((images - np.array(config.augment.mean)) / np.array(config.augment.std)).astype(np.float32)
    labels = np.array([source[i].label for i in range(50)])
    one, other = (load_network(workdir) for workdir in workdirs)
    distilled, plain = (jax.jit(c.model.apply)(c.variables, images) for c in (one, other))
    decided = {
        "ground truth": labels, "distilled, class": np.argmax(distilled.class_logits, -1),
        "distilled, both": np.argmax(distilled.logits, -1), "plain": np.argmax(plain.logits, -1),
    }  # fmt: skip
    for first, a in decided.items():
        for second, b in decided.items():
            assert matrix[names.index(first), names.index(second)] == pytest.approx(np.mean(a != b))
    assert json.loads((folder / "disagreement.json").read_text()) == found["disagreement"]
    text = (folder / "disagreement.md").read_text()
    assert f"| plain | {matrix[5, 0]:.3f} |" in text and "Published (arXiv 2012.12877v2, Table 4" in text


def test_every_table_and_picture_is_written(analysis):
    folder, found = analysis
    assert sorted(path.name for path in folder.iterdir()) == [
        "attention.npz", "attention_0_crops_china.png", "attention_0_crops_china.svg",
        "attention_0_crops_china_class_heads.png", "attention_0_crops_china_distillation_heads.png", "disagreement.json",
        "disagreement.md", "disagreement.png",
        "position_embedding.json", "position_embedding.png", "tokens.json", "tokens.png",
    ]  # fmt: skip
    for path in folder.glob("*.png"):
        assert len(np.unique(np.asarray(Image.open(path).convert("L")))) > 30, path
    # Two networks have a distillation token, and both are the same.
    assert list(found["tokens"]["cosines"]) == ["distilled", "exported.safetensors"]
    curve = found["tokens"]["cosines"]["distilled"]
    assert len(curve["after_block"]) == 2 and curve["images"] == 50
    assert curve == found["tokens"]["cosines"]["exported.safetensors"]
    versions = found["position_embedding"]["versions"]
    assert list(versions) == ["as trained, 28 px", "bicubic, 42 px", "bilinear, 42 px"]
    assert versions["bilinear, 42 px"]["norm_mean"] < versions["bicubic, 42 px"]["norm_mean"]
    # The accuracy as trained is the first row of the matrix.
    assert versions["as trained, 28 px"]["top1"] == pytest.approx(100 * (1 - found["disagreement"]["matrix"][0][3]))
    with np.load(folder / "attention.npz") as arrays:
        assert arrays["maps"].shape == (1, 2, 2, 2, 2, 2) and arrays["rollout"].shape == (1, 2, 2, 2)


def test_the_moving_average_is_loaded_on_request(trained_teacher):
    for which in ("raw", "ema"):
        found = load_network(trained_teacher, which=which)
        expected, _ = load_variables(trained_teacher, which)
        assert which in found.description
        jax.tree.map(np.testing.assert_array_equal, found.variables, expected)


def test_a_single_convnet_is_compared_with_the_labels(trained_teacher, tmp_path, capsys):
    # A configuration that distils needs no teacher here.
    config = tiny_config(teacher__weights="", data__max_eval_images=20, evaluation__batch_size=8)
    found = analyze(trained_teacher, config=config, output=tmp_path)
    assert found["tokens"] is None and found["position_embedding"] is None
    assert np.array(found["disagreement"]["matrix"]).shape == (2, 2)
    printed = capsys.readouterr().out
    assert "none of these networks has a distillation token" in printed and "is not a transformer" in printed


def test_equal_names_get_distinct_labels(workdirs):
    labels = compared_networks(workdirs[0], [str(workdirs[0])], which="raw")
    assert list(labels) == ["distilled", "distilled/teacher", "distilled (2)"]


def test_invalid_arguments_are_refused(workdirs, tmp_path):
    distilled, _ = workdirs
    with pytest.raises(ConfigError, match="not a multiple of distilled's patches of 14"):
        analyze(distilled, image_size=30)
    with pytest.raises(DataError, match=r"--images: .*gone\.jpg cannot be read"):
        analyze(distilled, image_files=[str(tmp_path / "gone.jpg")])
    with pytest.raises(ConfigError, match="nothing: no such file or folder"):
        analyze(distilled, others=[str(tmp_path / "nothing")])
    with pytest.raises(WeightsError, match=r"gone\.npz: there is no such file"):
        analyze(distilled, others=[f"regnety_002:{tmp_path}/gone.npz"])
    twelve = {"num_classes": 12, "distillation__kind": "none", "teacher__weights": ""}
    other = untrained(tmp_path / "twelve", tiny_config(**twelve))
    with pytest.raises(ConfigError, match="has 12 classes"):
        analyze(distilled, others=[str(other)])


def test_unreadable_images_are_left_out_of_every_part(workdirs, tmp_path, capsys):
    source = open_source(tiny_config().data, "eval")
    for i in range(30):
        image, label = source[i]
        folder = tmp_path / "val" / source.class_names[label].replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    for path in list(tmp_path.glob("val/*/*.png"))[:2]:
        path.write_bytes(b"not an image")
    config = tiny_config(
        data__source="folder", data__path=str(tmp_path), data__on_bad_image="replace", data__max_eval_images=None
    )
    other = tmp_path / "renamed"
    shutil.copytree(workdirs[1], other)
    record = json.loads((other / "config.json").read_text())
    record["resolved"]["class_names"] = [name.replace("/", "-") for name in record["resolved"]["class_names"]]
    (other / "config.json").write_text(json.dumps(record))
    found = analyze(other, config=config, output=tmp_path / "a")
    hits = [row["top1"] * 28 / 100 for row in found["position_embedding"]["versions"].values()]
    assert hits == pytest.approx([round(count) for count in hits], abs=1e-4)  # of 28 images, not 30
    assert capsys.readouterr().out.count("left out: ") == 2
    config.data.on_bad_image = "stop"
    with pytest.raises(DataError, match="cannot be decoded"):
        analyze(other, config=config, output=tmp_path / "b")


def test_the_embedded_teacher_of_a_run_is_compared(tmp_path):
    config = get_config("soft")
    config.model.overrides.update({"depth": 1, "embed_dim": 16, "num_heads": 1})
    run = untrained(tmp_path / "run", config)
    network = compared_networks(run, [], which="raw")["run's teacher"]
    source = open_source(config.data, "eval")
    images = np.stack([decode(source[index].image) for index in range(200)])
    labels = np.array([source[index].label for index in range(200)])
    pixels = (images / 255.0 - np.array(network.mean)) / np.array(network.std)
    logits = network.model.apply(network.variables, pixels.astype(np.float32)).logits
    assert (np.asarray(logits).argmax(-1) == labels).mean() > 0.88  # 92.4 % of all 2,000
