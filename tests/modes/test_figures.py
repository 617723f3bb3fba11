import json

import numpy as np
import pytest
from PIL import Image

from deit_jax.config import ConfigError
from deit_jax.modes.figures import draw, read_result
from tests.tiny import STUDENT, tiny_config

from .workdirs import untrained

SCORES = {
    "raw": {"class": {"top1": 40.0}, "fused_logits": {"top1": 50.0}, "fused_softmax": {"top1": 51.0}},
    "ema": {"class": {"top1": 41.0}, "fused_logits": {"top1": 52.0}, "fused_softmax": {"top1": 53.0}},
}
SPEED = {
    "model": "deit_tiny_distilled_patch16_224", "image_size": 28, "overrides": STUDENT, "devices": 2, "device": "TPU v5e",
    "compute_dtype": "bfloat16", "inference": {"images_per_second": 1234.5},
}  # fmt: skip


@pytest.fixture
def workdir(tmp_path):
    """A run with the files of a finished one."""
    workdir = untrained(tmp_path / "run", tiny_config())
    steps = json.loads((workdir / "config.json").read_text())["resolved"]["steps_per_epoch"]
    results = {"step": 3 * steps, "eval_images": 90, "teacher": None, "scores": SCORES}
    (workdir / "results.json").write_text(json.dumps(results))
    return workdir


def test_a_result_is_read_from_the_workdir(workdir):
    (workdir / "throughput.json").write_text(json.dumps(SPEED))
    found = read_result(workdir, "ema", with_throughput=True)
    assert found.label == "run" and found.data == "fashion_mnist_10k"
    assert (found.kind, found.epochs, found.top1) == ("hard distillation, token, 28", 3.0, 52.0)
    assert (found.images_per_second, found.device) == (1234.5, "2 x TPU v5e, bfloat16")
    draw("1", workdir / "1.png", workdirs=[workdir])
    assert len(np.unique(np.asarray(Image.open(workdir / "1.png").convert("L")))) > 50


def test_missing_inputs_of_a_figure_are_errors(workdir, tmp_path):
    with pytest.raises(ConfigError, match=r"throughput\.json does not exist: run\.py --mode=throughput"):
        draw("1", tmp_path / "1.png", workdirs=[workdir])
    (workdir / "throughput.json").write_text(json.dumps(SPEED | {"image_size": 56}))
    with pytest.raises(ConfigError, match="is of another model"):
        draw("1", tmp_path / "1.png", workdirs=[workdir])
    (workdir / "throughput.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"throughput\.json is damaged"):
        draw("1", tmp_path / "1.png", workdirs=[workdir])
    (workdir / "results.json").write_text('{"step": 3}')
    with pytest.raises(ConfigError, match=r"results\.json is damaged \(these are not the results of a run\)"):
        draw("3", tmp_path / "3.png", workdirs=[workdir])
    with pytest.raises(ConfigError, match="a figure must end in"):
        draw("3", tmp_path / "3.txt")
    (workdir / "results.json").unlink()
    with pytest.raises(ConfigError, match=r"results\.json does not exist: the run is not finished"):
        draw("3", tmp_path / "3.png", workdirs=[workdir])
