import numpy as np
import pytest
from PIL import Image

from deit_jax.models import list_models
from deit_jax.paper import figures, tables
from deit_jax.paper.figures import OwnResult, epochs_against_top1, throughput_against_top1


@pytest.fixture
def drawn(monkeypatch):
    """The axes of every figure that is saved, with the picture."""
    kept = []
    save = figures.save
    monkeypatch.setattr(figures, "save", lambda figure, path: (save(figure, path), kept.append(figure.axes)))
    return kept


OWN = [
    OwnResult("a", "cifar10", "hard distillation, token", 10.0, 80.0, 900.0, "1 x cpu, float32"),
    OwnResult("b", "cifar10", "hard distillation, token", 20.0, 84.0, 950.0, "1 x cpu, float32"),
    OwnResult("c", "cifar10", "no distillation", 10.0, 79.0, 990.0, "1 x cpu, float32"),
]


def points(axis):
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axis.get_lines()}


def test_figure_1_has_every_row_of_table_5_and_own_results(drawn, tmp_path):
    throughput_against_top1(tmp_path / "deep" / "1.png", OWN)
    published_axis, own_axis = drawn[0]
    found = points(published_axis)
    assert all(label.startswith("published, V100: ") for label in found)
    expected = {(row.images_per_second, row.imagenet) for row in tables.TABLE_5}
    assert {point for line in found.values() for point in line} == expected
    assert points(own_axis) == {
        f"own: {r.label}, cifar10, 1 x cpu, float32": [(r.images_per_second, r.top1)] for r in OWN
    }
    picture = Image.open(tmp_path / "deep" / "1.png")
    assert picture.width > 1000 and len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_figure_3_marks_exact_points_and_joins_runs_of_a_kind(drawn, tmp_path):
    epochs_against_top1(tmp_path / "3.png", OWN)
    published_axis, own_axis = drawn[0]
    found = points(published_axis)
    assert found["published: hard distillation, token"] == [(300, 83.4), (500, 84.1), (800, 84.2), (1000, 84.2)]
    assert len([label for label in found if label.startswith("published: ")]) == 5
    assert "hollow: read off" in published_axis.get_title()
    assert points(own_axis)["own: hard distillation, token, cifar10"] == [(10.0, 80.0), (20.0, 84.0)]
    assert points(own_axis)["own: no distillation, cifar10"] == [(10.0, 79.0)]


def test_imagenet_results_share_the_axes_of_the_paper(drawn, tmp_path):
    own = [OwnResult("a", "imagenet2012", "hard distillation", 300.0, 83.1)]
    epochs_against_top1(tmp_path / "3.svg", own)
    (axis,) = drawn[0]
    assert points(axis)["own: hard distillation, imagenet2012"] == [(300.0, 83.1)]


def test_published_tables_are_consistent():
    table_4 = np.array(tables.TABLE_4)
    np.testing.assert_array_equal(table_4, table_4.T)
    np.testing.assert_array_equal(np.diag(table_4), 0)
    assert len(tables.TABLE_4_NAMES) == len(table_4)
    names = {row.model for row in tables.TABLE_5 if row.model} | {row.teacher for row in tables.TABLE_2}
    assert names | {row.model for row in tables.TABLE_7} <= set(list_models())
    # What one table prints twice or two tables print is the same number.
    by_model = {(row.model, row.epochs): row for row in tables.TABLE_5}
    fused = tables.TABLE_3[-1]
    for size, top1 in (("tiny", fused.tiny), ("small", fused.small), ("base", fused.base)):
        assert by_model[f"deit_{size}_distilled_patch16_224", 300].imagenet == top1
    assert by_model["deit_base_distilled_patch16_384", 300].imagenet == fused.base_384
    assert tables.FIGURE_3["hard distillation, token"][0] == fused.base
    assert (
        tables.FIGURE_3["hard distillation, token, 384"][-1]
        == by_model["deit_base_distilled_patch16_384", 1000].imagenet
    )
    for row in tables.TABLE_10[1::2]:
        same = by_model[f"deit_base_patch16_{row.image_size}", 300]
        assert (row.imagenet, row.real, row.v2) == (same.imagenet, same.real, same.v2)
