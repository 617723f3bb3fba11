import numpy as np

from deit_jax.reporting.html import Series, line_chart
from tests.html_pages import Page


def test_long_curves_are_thinned_and_stay_inside_the_picture():
    x = np.arange(100_000)
    drawn = line_chart("a", [Series("b", x, np.sin(x / 9000))], x_end=100_000, x_label="step", y_label="y")
    points = np.array([p.split(",") for p in next(a["points"] for a in Page(drawn).all("polyline")).split()], float)
    assert 100 < len(points) <= 300
    assert points.min() > 0 and points[:, 0].max() <= 430 and points[:, 1].max() <= 212
    assert points[0, 0] < points[-1, 0]
