import json

import pytest

from deit_jax.models import list_models
from deit_jax.modes.models import model_size, show_models

# Parameters, and GMACs of linear layers and convolutions and with the products of attention: counted on the released PyTorch
# models (DeiT), published by pycls and timm (RegNetY, which has no attention).
SIZES = {
    "deit_tiny_patch16_224": (5_717_416, 1.075, 1.254),
    "deit_small_patch16_224": (22_050_664, 4.241, 4.599),
    "deit_base_patch16_224": (86_567_656, 16.849, 17.564),
    "deit_base_patch16_384": (86_859_496, 49.348, 55.484),
    "deit_tiny_distilled_patch16_224": (5_910_800, 1.080, 1.261),
    "deit_small_distilled_patch16_224": (22_436_432, 4.263, 4.624),
    "deit_base_distilled_patch16_224": (87_338_192, 16.934, 17.657),
    "deit_base_distilled_patch16_384": (87_630_032, 49.434, 55.591),
    "regnety_002": (3_162_996, 0.200, 0.200),
    "regnety_004": (4_344_144, 0.402, 0.402),
    "regnety_006": (6_055_160, 0.601, 0.601),
    "regnety_008": (6_263_168, 0.797, 0.797),
    "regnety_016": (11_202_430, 1.612, 1.612),
    "regnety_032": (19_436_338, 3.176, 3.176),
    "regnety_040": (20_646_656, 3.973, 3.973),
    "regnety_064": (30_583_252, 6.355, 6.355),
    "regnety_080": (39_180_068, 7.963, 7.963),
    "regnety_120": (51_822_544, 12.092, 12.092),
    "regnety_160": (83_590_140, 15.912, 15.912),
    "regnety_320": (145_046_770, 32.280, 32.280),
}


def test_the_table_has_every_model():
    assert list(SIZES) == list_models()


_QUICK = ("deit_small_patch16_224", "deit_base_distilled_patch16_384", "regnety_002", "regnety_160")


@pytest.mark.parametrize(
    "name", [name if name in _QUICK else pytest.param(name, marks=pytest.mark.long) for name in SIZES]
)
def test_sizes_are_as_published(name):
    size = model_size(name)
    assert size.parameters == SIZES[name][0]
    assert (round(size.linear_macs / 1e9, 3), round(size.macs / 1e9, 3)) == SIZES[name][1:]


def test_sizes_are_printed_and_written(tmp_path, capsys):
    names = ["deit_tiny_patch16_224", "regnety_002"]
    show_models(names, tmp_path / "models.json")
    printed = capsys.readouterr().out
    for text in ("deit_tiny_patch16_224", "5,717,416", "1.075", "1.254", "3,162,996", "0.200"):
        assert text in printed, text
    rows = json.loads((tmp_path / "models.json").read_text())
    assert [row["name"] for row in rows] == names and rows[0]["parameters"] == 5_717_416
