import json

import pytest

from deit_jax.modes.models import model_size, show_models

# Parameters, and GMACs of linear layers and convolutions and with the products of attention: counted on the released PyTorch
# models (DeiT), published by pycls and timm (RegNetY, which has no attention).
SIZES = {
    "deit_small_patch16_224": (22_050_664, 4.241, 4.599),
    "deit_base_distilled_patch16_384": (87_630_032, 49.434, 55.591),
    "regnety_002": (3_162_996, 0.200, 0.200),
    "regnety_160": (83_590_140, 15.912, 15.912),
}


# tests/models counts the parameters and multiply-adds of all.
@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_as_published(name):
    size = model_size(name)
    assert size.parameters == SIZES[name][0]
    assert (round(size.linear_macs / 1e9, 3), round(size.macs / 1e9, 3)) == SIZES[name][1:]


def test_sizes_are_printed_and_written(tmp_path, capsys):
    names = ["deit_tiny_patch16_224", "regnety_002"]
    show_models(names, tmp_path / "deep" / "models.json")
    printed = capsys.readouterr().out
    for text in ("deit_tiny_patch16_224", "5,717,416", "1.075", "1.254", "3,162,996", "0.200"):
        assert text in printed, text
    rows = json.loads((tmp_path / "deep" / "models.json").read_text())
    assert [row["name"] for row in rows] == names and rows[0]["parameters"] == 5_717_416
