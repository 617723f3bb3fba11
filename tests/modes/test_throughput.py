import json

import pytest

from deit_jax.config import ConfigError
from deit_jax.models import create_model
from deit_jax.models.flops import forward_flops
from deit_jax.modes.throughput import published_throughput, throughput
from tests.fewer_devices import fewer_devices
from tests.tiny import STUDENT, tiny_config


@pytest.fixture(scope="module", autouse=True)
def devices():
    with fewer_devices(2):
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(returned, written) figures of a training and an inference measurement; the teacher has no weights."""
    output = tmp_path_factory.mktemp("throughput") / "deep" / "speed.json"
    config = tiny_config(
        teacher__weights="", log__peak_tflops=0.5, model__overrides__depth=1, augment__erase_probability=0.0
    )
    return throughput(config, batch_size=32, runs=3, output=output), json.loads(output.read_text())


def test_the_figures_are_consistent(measured):
    report, written = measured
    assert written == json.loads(json.dumps(report))
    assert (report["devices"], report["platform"], report["compute_dtype"]) == (2, "cpu", "float32")
    assert report["teacher"] == "regnety_002" and report["weights"] == "random"
    for what in ("inference", "training"):
        found = report[what]
        assert len(found["seconds"]) == 3 and found["batch_size"] == 32 and "--batch_size" in found["rule"]
        assert found["images_per_second"] == pytest.approx(32 * 3 / sum(found["seconds"]))
        assert found["images_per_second_median"] == pytest.approx(32 / sorted(found["seconds"])[1])
        flops = found["gflops_per_image"] * 1e9 * found["images_per_second"]
        assert found["mfu"] == pytest.approx(flops / (2 * 0.5e12))
    model = create_model("deit_tiny_distilled_patch16_224", 10, 28, **STUDENT | {"depth": 1})
    assert report["inference"]["gflops_per_image"] * 1e9 == forward_flops(model, 28)
    assert report["training"]["gflops_per_image"] > 3 * report["inference"]["gflops_per_image"]  # and the teacher's


@pytest.mark.long
def test_the_batch_size_is_searched_by_default(capsys):
    report = throughput(tiny_config(), measures=("inference",), runs=1)
    found = report["inference"]
    sizes = [trial["batch_size"] for trial in found["tried"]]
    assert sizes == [2 << i for i in range(len(sizes))] and len(sizes) >= 3 and found["batch_size"] in sizes
    assert "training" not in report
    printed = capsys.readouterr().out
    assert (
        "gained no more than 3 %" in printed
        and "2 x cpu" in printed
        and "the peak of this device is not listed" in printed
    )


def test_published_figures_are_found_by_model_and_size():
    assert published_throughput("deit_base_patch16_224", 224) == 292.3
    assert published_throughput("deit_base_patch16_224", 320) == 134.0
    assert published_throughput("deit_base_distilled_patch16_384", 384) == 85.8
    assert published_throughput("regnety_160", 224) == 334.7
    assert published_throughput("regnety_160", 320) is None
    assert published_throughput("regnety_002", 224) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "both must be at least 1"),
        ({"batch_size": 13, "measures": ("inference",)}, "does not divide among 2 devices"),
        ({"batch_size": 24, "measures": ("training",)}, "batch_size=24"),
    ],
)
def test_invalid_batch_sizes_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        throughput(tiny_config(augment__group_size=4, augment__groups_per_block=4), runs=1, **options)
